"""How far a trajectory is from solving its equation, on a grid that sees all of it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from . import _time_basis as time_basis
from ._grid import scaled
from ._polynomial import PolynomialTrajectory
from ._semilinear import AbstractSemilinear
from ._sobolev import _root, sobolev_inner


class Estimate(NamedTuple):
    """A posteriori.

    **Attributes:**

    - `eta`: the residual's norm, all of it.
    - `inside`: of the modes that a Galerkin method can make zero.
    - `outside`: of those that it can't: what the grid does not resolve.
    - `scale`: of the time derivative, in the same norm.
    - `tail`: the part of the field's mean square in the outer third of the modes, at
      the time at which it is largest.
    - `resolved`: whether `outside` and `tail` are small. If not, `eta` says little
      about the error, and `inside` nothing.
    """

    eta: Float[Array, ""]
    inside: Float[Array, ""]
    outside: Float[Array, ""]
    scale: Float[Array, ""]
    tail: Float[Array, ""]
    resolved: Bool[Array, ""]


def estimate(
    equation: AbstractSemilinear,
    trajectory: PolynomialTrajectory,
    *,
    order: float = -1.0,
    nodes: int | None = None,
    tolerance: float = 1e-3,
) -> Estimate:
    r"""The residual of a trajectory in $L^2(0, T; H^s)$, with nothing left out.

    The right-hand side is evaluated on twice the points along each axis, where products
    of fields that the grid resolves have no aliases at all, and over time by Gauss
    quadrature. For two-dimensional flow, with error $e$ in velocity and the residual
    $R$ of velocity in the dual norm of its gradient, which is order -2 of vorticity,

    $$\sup_t \|e\|^2 + \nu \int_0^T \|\nabla e\|^2 \le C \Bigl( \|e(0)\|^2 +
      \frac2\nu \int_0^T \|R\|_{V'}^2 \Bigr), \qquad
      C = \exp\Bigl(\frac{2 C_L^2}\nu \int_0^T \|\nabla u_N\|^2\Bigr),$$

    with the constant $C_L$ of Ladyzhenskaya's inequality: it bounds the error
    (reliability), though by a factor that grows exponentially with the window. The
    other way, $\|R\|$ is at most the sum of norms of $\partial_t e$, $\nu \nabla e$ and
    a product of $e$ with both flows (efficiency).

    **Arguments:**

    - `equation`: what the trajectory should solve.
    - `trajectory`: a [`pathax.operators.PolynomialTrajectory`][].
    - `order`: $s$.
    - `nodes`: Gauss nodes a slab; $2 M + 1$ if `None`, exact for quadratic equations.
    - `tolerance`: what `outside` relative to `scale`, and `tail`, may be.

    **Returns:** an [`pathax.operators.Estimate`][].

    **Raises:** `ValueError` in single precision, where the residual of a good
    trajectory is all rounding.

    **Cost:** one evaluation of the right-hand side a node, on the finer grid.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner, ICLR 2025, for the idea;
    the inequalities follow from testing the equation of the error with $e$.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> with jax.enable_x64(True):
    ...     grid = px.operators.Grid((16,), (2 * jnp.pi,))
    ...     heat = px.operators.Burgers(viscosity=0.1)
    ...     problem = px.operators.SpaceTimeProblem(
    ...         heat, grid, 0.1 * jnp.sin(grid.points()[0]), 1.0
    ...     )
    ...     found = px.operators.refine(problem)
    ...     checked = px.operators.estimate(heat, found.trajectory)
    ...     print(checked.resolved, checked.eta < 1e-5)
    True True

    ```
    """
    if trajectory.coefficients.dtype != np.complex128:
        raise ValueError(
            "`estimate` works in double precision; the trajectory is "
            f"{trajectory.coefficients.dtype.name}. Write "
            '`jax.config.update("jax_enable_x64", True)` at the start of the program.'
        )
    nodes = 2 * trajectory.degree + 1 if nodes is None else nodes
    return _estimate(equation, trajectory, float(order), nodes, tolerance)


@eqx.filter_jit
def _estimate(
    equation: AbstractSemilinear,
    trajectory: PolynomialTrajectory,
    order: float,
    nodes: int,
    tolerance: float,
) -> Estimate:
    grid = trajectory.grid
    fine = grid.refined(2)
    length = trajectory.horizon / trajectory.slabs
    quadrature = time_basis.gauss(length, nodes)
    starts = length * np.arange(trajectory.slabs)
    times = jnp.asarray((starts[:, None] + quadrature.nodes[None]).reshape(-1))
    weights = np.tile(quadrature.weights, trajectory.slabs)
    axes = list(zip(fine.frequencies(), grid.shape, strict=True))
    band = np.all([3 * np.abs(m) < n for m, n in axes], axis=0).astype(float)

    def at(t: Array) -> Array:
        """Squares of the residual, all and inside; of the rate; the tail."""
        w = grid.resample(trajectory.spectrum(t), fine)
        rate = grid.resample(trajectory.spectrum_rate(t), fine)
        residual = rate - equation.rhs(fine, w)
        square = lambda x: _square(fine, x, order)
        return jnp.stack(
            [
                square(residual),
                square(scaled(residual, band)),
                square(rate),
                outer_part(t),
            ]
        )

    def outer_part(t: Array) -> Array:
        spectrum = trajectory.spectrum(t)
        outer = np.zeros(grid.spectrum_shape, bool)
        for m, n in zip(grid.frequencies(), grid.shape, strict=True):
            outer |= 9 * np.abs(m) > 2 * n  # a third of the band
        squares = jnp.abs(spectrum) ** 2 * grid.multiplicity()
        return jnp.sum(squares * outer.astype(float)) / jnp.maximum(
            jnp.sum(squares), 1e-300
        )

    found = jax.lax.map(at, times)
    totals = jnp.asarray(weights) @ found[:, :3]
    eta, inside, scale = (_root(x) for x in totals)
    outside = _root(jnp.maximum(totals[0] - totals[1], 0))
    tail = found[:, 3].max()
    resolved = (outside <= tolerance * scale) & (tail <= tolerance)
    return Estimate(eta, inside, outside, scale, tail, resolved)


def _square(grid: Any, x: Array, order: float) -> Array:
    """The homogeneous norm, the mean weighted as the longest wave."""
    mean = jnp.abs(x[(0,) * grid.dimension]) ** 2 * grid.volume
    least = 2 * np.pi / max(grid.lengths)
    return sobolev_inner(grid, x, x, order) + mean * least ** (2 * order)
