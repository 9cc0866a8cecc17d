"""Differential equations and stochastic simulation in JAX.

pathax joins the Diffrax / Equinox / Optax family: a path *is* a
`diffrax.AbstractBrownianPath`, a model *is* an `equinox.Module`, and what works with
those libraries (`jit`, `vmap`, `grad`, `SaveAt`, adjoints, sharding) works here.

Folders:

- `pathax.brownian`: one key gives a whole Brownian path with its time integrals.
- `pathax.curvature`: what a second-order method must know about a loss.
- `pathax.operators`: spectral layers and neural operators.
- `pathax.optimizers`: Optax transformations that use it.
- `pathax.regularizers`: what makes a learned equation cheap to solve.
- `pathax.simulation`: statistics of many paths, on many devices.
- `pathax.solvers`: exact numbers of evaluations.
- `pathax.training`: one loop that trains every model with any of them.
"""

from importlib.metadata import version as _version

from . import (
    brownian as brownian,
    curvature as curvature,
    operators as operators,
    optimizers as optimizers,
    regularizers as regularizers,
    simulation as simulation,
    solvers as solvers,
    training as training,
)


__version__ = _version("pathax")

__all__ = [
    "__version__",
    "brownian",
    "curvature",
    "operators",
    "optimizers",
    "regularizers",
    "simulation",
    "solvers",
    "training",
]
