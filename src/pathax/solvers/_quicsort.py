"""QUICSORT with an estimate of its error."""

import math
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evaluations import Evaluations
from ._langevin import (
    AbstractEmbeddedLangevinSolver,
    Leaf,
    gradient,
    phi,
    psi,
    rejectable,
)


_LEFT, _RIGHT = (3 - math.sqrt(3)) / 6, (3 + math.sqrt(3)) / 6
# Weights of a rule with nodes 0 and _RIGHT that is exact for straight lines, for the
# integral of the force and for that of its integral.
_VELOCITY = 1 - 1 / (2 * _RIGHT), 1 / (2 * _RIGHT)
_POSITION = 1 / 2 - 1 / (6 * _RIGHT), 1 / (6 * _RIGHT)


class QUICSORT(AbstractEmbeddedLangevinSolver):
    r"""QUICSORT, of order three for underdamped Langevin diffusion, with an estimate.

    The steps are those of `diffrax.QUICSORT`, which has no estimate of its error: with
    $V = v_0 + \rho (H + 6 K)$, $Y = \rho (W - 12 K)$, $\alpha = \gamma h$,
    $l, r = \tfrac{3 \mp \sqrt 3}{6}$, $a(c) = \tfrac{1 - e^{-c \alpha}}{\gamma}$,
    $b(c) = \tfrac{e^{-c \alpha} + c \alpha - 1}{\gamma \alpha}$,

    $$\begin{aligned}
    x_l &= x_0 + a(l) V + b(l) Y, \quad
    x_r = x_0 + a(r) V + b(r) Y - a(\tfrac13) \, u h \nabla f(x_l), \\
    x_1 &= x_0 + a(1) V + b(1) Y -
    \tfrac12 u h \bigl(a(r) \nabla f(x_l) + a(l) \nabla f(x_r)\bigr), \\
    v_1 &= e^{-\alpha} V -
    \tfrac12 u h \bigl(e^{-r \alpha} \nabla f(x_l) + e^{-l \alpha} \nabla f(x_r)\bigr)
    + \tfrac{a(1)}{h} Y - \rho (H - 6 K).
    \end{aligned}$$

    The estimate is the difference to a rule for the force that is exact for straight
    lines, with the nodes `0` and `r`: a second difference of the gradient,

    $$u h \bigl(0.366 \nabla f(x_0) - 0.5 \nabla f(x_l) + 0.134 \nabla f(x_r)\bigr)$$

    for the velocity, and likewise for the position. It falls like $h^{5/2}$, an order
    below the error of the step. It is infinite for a step that leaves the numbers, so
    that it is tried again.

    **Arguments:** none.

    The terms are as for [`pathax.solvers.UBU`][], the path's increments
    `diffrax.SpaceTimeTimeLevyArea`.

    **Raises:** `ValueError` for a path without a space-time-time area.

    **Cost:** three gradients a step that is tried, one query; `diffrax.HalfSolver`
    around `diffrax.QUICSORT` takes six and three.

    **Gradients:** of any order.

    **Precision:** that of the state; coefficients of short steps are summed by series.

    **Reference:** Foster, Lyons, Oberhauser, arXiv:2101.03446; Scott, O'Kane, Jelinčič,
    Foster, arXiv:2508.16485, for the steps. The estimate is our own.

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
    ...     terms, px.solvers.QUICSORT(), 0.0, 8.0, 0.1, (jnp.ones(2), jnp.zeros(2)),
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
        return Evaluations(drift=3 + again, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        parts, tree = self._begin(terms, t0, t1, y0)
        force = lambda xs: [
            p.force * g
            for p, g in zip(
                parts,
                tree.flatten_up_to(gradient(terms)(tree.unflatten(xs), args)),
                strict=True,
            )
        ]
        kept = self._first(terms, y0, args, solver_state, made_jump)
        first = [
            p.force * g for p, g in zip(parts, tree.flatten_up_to(kept), strict=True)
        ]
        left = force([_free(p, _LEFT) for p in parts])
        right = force(
            [
                _free(p, _RIGHT) - p.dt / 3 * phi(p.friction / 3) * f
                for p, f in zip(parts, left, strict=True)
            ]
        )
        ends = [_end(*each) for each in zip(parts, left, right, strict=True)]
        y1 = tuple(tree.unflatten(each) for each in zip(*ends, strict=True))
        errors = [_error(*each) for each in zip(parts, first, left, right, strict=True)]
        error = tuple(tree.unflatten(each) for each in zip(*errors, strict=True))
        last = gradient(terms)(y1[0], args)
        y1, last, error = rejectable(y0, kept, y1, last, error)
        return y1, error, {"y0": y0, "y1": y1}, last, dfx.RESULTS.successful


QUICSORT.__module__ = "pathax.solvers"


def _free(p: Leaf, part: float) -> Array:
    """The position after a part of the step, without the force."""
    alpha = part * p.friction
    moved = phi(alpha) * part * (p.v + p.noise * (p.h + 6 * p.k))
    return p.x + p.dt * (moved + psi(alpha) * part**2 * p.noise * (p.w - 12 * p.k))


def _end(p: Leaf, left: Array, right: Array) -> tuple[Array, Array]:
    """Position and velocity after the step."""
    decayed = lambda part: jnp.exp(-part * p.friction)
    weight = lambda part: part * phi(part * p.friction) / 2
    x = _free(p, 1.0) - p.dt * (weight(_RIGHT) * left + weight(_LEFT) * right)
    v = decayed(1.0) * (p.v + p.noise * (p.h + 6 * p.k))
    v = v - (decayed(_RIGHT) * left + decayed(_LEFT) * right) / 2
    v = v + phi(p.friction) * p.noise * (p.w - 12 * p.k) - p.noise * (p.h - 6 * p.k)
    return x, v


def _error(p: Leaf, first: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """Differences to the other rule, of position and velocity."""
    x = _POSITION[0] * first - _RIGHT / 2 * left
    x = x + (_POSITION[1] - _LEFT / 2) * right
    v = _VELOCITY[0] * first - left / 2 + (_VELOCITY[1] - 1 / 2) * right
    return p.dt * x, v
