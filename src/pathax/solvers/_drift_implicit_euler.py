"""Drift-implicit Euler for the root of a Cox-Ingersoll-Ross process."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._cir import CIR, _root
from ._evaluations import Evaluations


class DriftImplicitEuler(dfx.AbstractItoSolver):
    r"""Drift-implicit Euler for the root of a Cox-Ingersoll-Ross process.

    $Y = \sqrt X$ has additive noise,
    $dY = \tfrac{a}{2} (\tilde b / Y - Y) \, dt + \tfrac{\sigma}{2} \, dW$, and Euler's
    step with the drift at its end is a quadratic equation. With
    $T = Y_0 + \tfrac{\sigma}{2} W$,

    $$Y_1 = \frac{T + \sqrt{\bigl(T^2 + (2 + a h) \, a \tilde b h\bigr)^+}}{2 + a h},
    \qquad X_1 = Y_1^2.$$

    `Y` is kept between steps: it is not always the positive root of `X`, where
    `sigma^2 > 4 a b`.

    **Arguments:**

    - `cir`: a [`pathax.solvers.CIR`][]; the terms of the solve are `cir.terms(path)`,
      of which the noise alone is read.

    Strong order 1 if `sigma^2 < a b`, and less the closer the process comes to zero.

    **Raises:** `TypeError` if `cir` is not a `CIR`.

    **Cost:** one square root and one query a step.

    **Gradients:** of any order where the root is not zero.

    **Precision:** that of the state; where the sum in the numerator would cancel, it is
    the product of the roots that is used.

    **Reference:** Alfonsi, "Strong order one convergence of a drift implicit Euler
    scheme", Statist. Probab. Lett. 83 (2013); Dereich, Neuenkirch, Szpruch, "An
    Euler-type method for the strong approximation of the Cox-Ingersoll-Ross process",
    Proc. R. Soc. A 468 (2012).

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> cir = px.solvers.CIR(a=1.0, b=1.0, sigma=0.5)
    >>> path = px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-8, (), jax.random.key(0))
    >>> solver = px.solvers.DriftImplicitEuler(cir)
    >>> x = dfx.diffeqsolve(cir.terms(path), solver, 0.0, 1.0, 1 / 16, jnp.array(1.0))
    >>> bool(x.ys[0] > 0)
    True
    """

    cir: CIR

    term_structure = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    interpolation_cls = dfx.LocalLinearInterpolation

    def __check_init__(self):
        if not isinstance(self.cir, CIR):
            raise TypeError(
                f"`cir` must be a `pathax.solvers.CIR`; got {type(self.cir).__name__}. "
                "Write `DriftImplicitEuler(CIR(a, b, sigma))`."
            )

    def order(self, terms: PyTree) -> int:
        return 1

    def strong_order(self, terms: PyTree) -> float:
        return 1.0

    def init(self, terms, t0, t1, y0, args) -> Array:
        """The root of the initial state."""
        return _root(y0)

    def func(self, terms, t0, y0, args) -> PyTree:
        """The vector fields at one time."""
        return terms.vf(t0, y0, args)

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`."""
        return Evaluations(drift=1, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        a, sigma, h = self.cir.a, self.cir.sigma, t1 - t0
        shift = a * self.cir.b - sigma**2 / 4  # a times the level of Stratonovich
        kept = jnp.where(made_jump, _root(y0), solver_state)
        moved = kept + sigma / 2 * terms.terms[1].contr(t0, t1)
        below = 2 + a * h
        spread = _root(moved**2 + below * shift * h)
        # Below zero, the sum is the difference of numbers that are close.
        cancels = (moved < 0) & (spread > 0)
        other = shift * h / jnp.where(cancels, spread - moved, 1)
        root = jnp.where(cancels, other, (moved + spread) / below)
        y1 = jnp.square(root)
        return y1, None, {"y0": y0, "y1": y1}, root, dfx.RESULTS.successful


DriftImplicitEuler.__module__ = "pathax.solvers"
