"""ShOULD with an estimate of its error."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evaluations import Evaluations
from ._langevin import (
    AbstractEmbeddedLangevinSolver,
    Leaf,
    chi,
    gradient,
    omega,
    phi,
    psi,
    rejectable,
)


class ShOULD(AbstractEmbeddedLangevinSolver):
    r"""ShOULD, of order three for underdamped Langevin diffusion, with an estimate.

    The steps are those of `diffrax.ShOULD`, which has no estimate of its error: a
    Runge-Kutta method with gradients at the start, in the middle and at the end, that
    is Simpson's rule for the force. The estimate is the difference to the trapezoidal
    rule, a second difference of the gradient,

    $$-\tfrac13 u h \bigl(\nabla f(x_0) - 2 \nabla f(x_{1/2}) + \nabla f(x_1)\bigr)$$

    for the velocity, and half of it times `h` for the position. It falls like
    $h^{5/2}$, an order below the error of the step. It is infinite for a step that
    leaves the numbers, so that it is tried again.

    **Arguments:** none.

    The terms and the path are as for [`pathax.solvers.QUICSORT`][].

    **Raises:** `ValueError` for a path without a space-time-time area.

    **Cost:** two gradients a step that is tried, and one before the first; one query.

    **Gradients:** of any order.

    **Precision:** that of the state; coefficients of short steps are summed by series.

    **Reference:** Foster, Lyons, Oberhauser, "The shifted ODE method for underdamped
    Langevin MCMC", arXiv:2101.03446, definition 7.1, for the steps. The estimate is our
    own.

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 8.0, 2**-10, (2,), jax.random.key(0), dfx.SpaceTimeTimeLevyArea
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.UnderdampedLangevinDriftTerm(1.0, 1.0, lambda x, args: x**3),
    ...     dfx.UnderdampedLangevinDiffusionTerm(1.0, 1.0, path),
    ... )
    >>> solution = dfx.diffeqsolve(
    ...     terms, px.solvers.ShOULD(), 0.0, 8.0, 0.1, (jnp.ones(2), jnp.zeros(2)),
    ...     stepsize_controller=dfx.PIDController(rtol=0, atol=1e-2, dtmin=2**-9),
    ... )
    >>> solution.ys[0].shape
    (1, 2)
    """

    minimal_levy_area = dfx.AbstractSpaceTimeTimeLevyArea

    def order(self, terms: PyTree) -> int:
        return 3

    def strong_order(self, terms: PyTree) -> float:
        return 3.0

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`."""
        again = jnp.asarray(made_jump).astype(jnp.int32)
        return Evaluations(drift=2 + again, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        parts, tree = self._begin(terms, t0, t1, y0)
        at = lambda xs: gradient(terms)(tree.unflatten(xs), args)
        scaled = lambda g: [
            p.force * g for p, g in zip(parts, tree.flatten_up_to(g), strict=True)
        ]
        start = self._first(terms, y0, args, solver_state, made_jump)
        first = scaled(start)
        pairs = zip(parts, first, strict=True)
        middle = scaled(at([_middle(p, f) for p, f in pairs]))
        xs = [_position(*each) for each in zip(parts, first, middle, strict=True)]
        last = at(xs)
        forces = list(zip(parts, first, middle, scaled(last), strict=True))
        y1 = tree.unflatten(xs), tree.unflatten([_velocity(*each) for each in forces])
        bends = [(p, (f - 2 * m + e) / 3) for p, f, m, e in forces]
        error = (
            tree.unflatten([-p.dt / 2 * bend for p, bend in bends]),
            tree.unflatten([-bend for _, bend in bends]),
        )
        y1, last, error = rejectable(y0, start, y1, last, error)
        return y1, error, {"y0": y0, "y1": y1}, last, dfx.RESULTS.successful


ShOULD.__module__ = "pathax.solvers"


def _middle(p: Leaf, first: Array) -> Array:
    half = p.friction / 2
    moved = phi(half) / 2 * (p.v + p.noise * (p.h + 6 * p.k))
    pushed = psi(half) / 4 * (p.noise * (p.w - 12 * p.k) - first)
    return p.x + p.dt * (moved + pushed)


def _areas(p: Leaf) -> Array:
    return chi(p.friction) * p.h + omega(p.friction) * p.k


def _position(p: Leaf, first: Array, middle: Array) -> Array:
    weight = psi(p.friction)
    moved = phi(p.friction) * p.v - weight * (first + 2 * middle) / 3
    return p.x + p.dt * (moved + p.noise * (weight * p.w + _areas(p)))


def _velocity(p: Leaf, first: Array, middle: Array, last: Array) -> Array:
    kept, half = jnp.exp(-p.friction), jnp.exp(-p.friction / 2)
    v = kept * p.v - (kept * first + 4 * half * middle + last) / 6
    return v + p.noise * (phi(p.friction) * p.w - p.friction * _areas(p))
