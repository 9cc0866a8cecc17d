"""Gauss-Newton steps for parameters and a trajectory at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from . import _time_basis as time_basis
from ._observed import Observations
from ._polynomial import PolynomialTrajectory
from ._responses import (
    Causes,
    Make,
    Pieces,
    at_end,
    chained,
    in_turn,
    marched,
    propagators,
)
from ._smoother import Chain, smooth


class Inference(NamedTuple):
    """What frames say of parameters.

    **Attributes:**

    - `parameters`: the most likely ones.
    - `deviation`: their standard deviations, each with the others unknown as well.
    - `covariance`: of the flattened parameters, from the Gauss-Newton Hessian.
    - `trajectory`: the solution that belongs to them.
    - `misfit`: root mean square of what the frames differ by, over the noise; about one
      if equation and noise are right.
    - `eta`: the residual's norm.
    - `change`: how far each step moved what is seen, in units of the noise; NaN for
      steps not taken. Steps with jumps are not among them.
    - `converged`: whether the last step was small.
    """

    parameters: PyTree
    deviation: PyTree
    covariance: Float[Array, "p p"]
    trajectory: PolynomialTrajectory
    misfit: Float[Array, ""]
    eta: Float[Array, ""]
    change: Float[Array, " steps"]
    converged: Bool[Array, ""]


class Plan(NamedTuple):
    """What is static in an inference; see `infer`."""

    sweep_steps: int
    explicit: tuple[bool, ...]  # whether the equation depends on each parameter
    together: bool
    members: tuple[tuple[int, ...], ...]  # frames of each slab, and -1 to fill
    tolerance: float
    max_steps: int


class _State(NamedTuple):
    theta: Float[Array, " p"]
    pieces: Pieces
    covariance: Float[Array, "p p"]
    change: Float[Array, ""]
    changes: Float[Array, " steps"]
    step: Array


@eqx.filter_jit
def fit(
    make: Make,
    unravel: Callable[[Array], Any],
    theta: Array,
    pieces: Pieces | None,
    prior: tuple[Array, Array],
    observations: Observations,
    plan: Plan,
    jumps: Array,
) -> Inference:
    """Steps with jumps, then steps without until the last one is small.

    A prior is its centers and one over its deviations.
    """
    begun = marched(make(theta), plan.sweep_steps) if pieces is None else pieces

    def relax(carry: tuple[Array, Pieces], jump: Array) -> tuple[Any, None]:
        return _relaxed(make, plan, *carry, prior, observations, jump), None

    if jumps.size:
        (theta, begun), _ = jax.lax.scan(relax, (theta, begun), jumps)

    def unfinished(s: _State) -> Array:
        return (s.change > plan.tolerance) & (s.step < plan.max_steps)

    first = _State(
        theta,
        begun,
        jnp.full((theta.size, theta.size), jnp.nan, theta.dtype),
        jnp.full((), jnp.inf, theta.dtype),
        jnp.full((plan.max_steps,), jnp.nan, theta.dtype),
        jnp.zeros((), jnp.int32),
    )
    advance = lambda s: _advance(make, plan, prior, observations, s)
    s = jax.lax.while_loop(unfinished, advance, first)
    return _result(make, unravel, observations, plan, s)


def _advance(make, plan: Plan, prior, observations: Observations, s: _State) -> _State:
    """A step in which the trajectory is joined and solves the linearized equation."""
    center, precision = prior
    pieces = _joined(make, s.theta, s.pieces)
    found = _responses(make, plan, s.theta, pieces)
    seen = lambda pieces: observations.misfit(make(s.theta).grid, pieces)
    r, jacobian = jax.linearize(seen, pieces)
    columns = jax.vmap(jacobian, in_axes=1)(found)
    # Rows of the prior below those of the data; an orthogonal factor of both.
    rows = jnp.concatenate([columns[1:].T, jnp.diag(precision)])
    right = jnp.concatenate([r + columns[0], precision * (s.theta - center)])
    q, triangle = jnp.linalg.qr(rows)
    eye = jnp.eye(s.theta.size, dtype=s.theta.dtype)
    inverse = jax.scipy.linalg.solve_triangular(triangle, eye)
    step = -inverse @ (q.T @ right)
    weights = jnp.concatenate([jnp.ones((1,), step.dtype), step])
    change = jnp.linalg.norm(weights @ columns)
    change = jnp.hypot(change, jnp.linalg.norm(precision * step))
    mixed = jax.vmap(lambda x: _combined(weights, x))
    return _State(
        s.theta + step,
        jax.tree.map(lambda x, dx: x + mixed(dx), pieces, found),
        inverse @ inverse.T,
        change,
        s.changes.at[s.step].set(change),
        s.step + 1,
    )


def _relaxed(make, plan, theta, pieces, prior, observations, jump):
    """A step in which the trajectory may jump between slabs."""
    problem, pieces = make(theta), _joined(make, theta, pieces)
    explicit = np.array(plan.explicit)
    by = propagators(make, plan.sweep_steps, theta, pieces, explicit)
    count = 1 + by.named.size
    spread = np.eye(theta.size)[by.named]  # from named parameters to all
    r, jacobian = jax.linearize(
        lambda pieces: observations.each(problem.grid, pieces), pieces
    )
    slabs = jnp.arange(problem.slabs)
    starts = jnp.broadcast_to(by.causes.start, (slabs.size, *by.causes.start.shape))
    columns = jax.vmap(jacobian, in_axes=1)(Pieces(starts, by.found))
    members = np.array(plan.members)
    inside = jnp.asarray(members >= 0, r.dtype)[..., None]
    pick = lambda x: (x[members] * inside).reshape(problem.slabs, -1)
    columns = jax.vmap(pick, out_axes=2)(columns)
    ends = jax.vmap(jax.vmap(lambda d: at_end(problem, d)))(by.found)
    ends = jax.vmap(by.coordinates)(ends + starts)
    gaps = by.coordinates(by.gaps)
    initial = lambda theta: by.coordinates(make(theta).initial[None])[0]
    mix = lambda x: jnp.moveaxis(x, 1, 2) @ spread
    chain = Chain(
        start=jax.jacfwd(initial)(theta),
        seen=columns[..., count:],
        seen_theta=columns[..., 1:count] @ spread,
        left=pick(r) + columns[..., 0],
        move=jnp.moveaxis(ends[:, count:], 1, 2),
        move_theta=mix(ends[:, 1:count]),
        moved=ends[:, 0] + gaps,
    )
    center, precision = prior
    found = smooth(chain, (jnp.diag(precision), precision * (theta - center)), jump)
    step = jnp.broadcast_to(found.theta[by.named], (slabs.size, by.named.size))
    one = jnp.ones((slabs.size, 1), step.dtype)
    weights = jnp.concatenate([one, step, found.states], axis=1)
    return theta + found.theta, Pieces(
        pieces.starts + by.spectra(found.states),
        pieces.coefficients + jax.vmap(_combined)(weights, by.found),
    )


def _combined(weights: Array, x: Array) -> Array:
    return time_basis.mix(weights[None], x)[0]


def _joined(make: Make, theta: Array, pieces: Pieces) -> Pieces:
    """With the first slab at the start that belongs to the parameters."""
    return pieces._replace(starts=pieces.starts.at[0].set(make(theta).initial))


def _responses(make: Make, plan: Plan, theta: Array, pieces: Pieces) -> Pieces:
    """Of the trajectory to its defect, and to each parameter."""
    eye = jnp.eye(theta.size, dtype=theta.dtype)
    starts = jax.vmap(lambda d: jax.jvp(lambda t: make(t).initial, (theta,), (d,))[1])
    starts = starts(eye)
    causes = Causes(
        jnp.concatenate([jnp.zeros_like(eye[:1]), eye]),
        jnp.concatenate([jnp.zeros_like(starts[:1]), starts]),
        jnp.zeros((1 + theta.size,), theta.dtype).at[0].set(1),
    )
    if not plan.together:
        return in_turn(make, plan.sweep_steps, theta, pieces, causes)
    explicit = np.array(plan.explicit)
    by = propagators(make, plan.sweep_steps, theta, pieces, explicit)
    return chained(make(theta), by, causes)


def _result(make, unravel, observations, plan: Plan, s: _State) -> Inference:
    problem, pieces = make(s.theta), _joined(make, s.theta, s.pieces)
    misfit = observations.misfit(problem.grid, pieces)

    def eta(start: Array, c: Array) -> Array:
        here = problem.beginning_at(start)
        return here.norm(here.residual(here.pairs(c)))

    return Inference(
        parameters=unravel(s.theta),
        deviation=unravel(jnp.sqrt(jnp.diag(s.covariance))),
        covariance=s.covariance,
        trajectory=PolynomialTrajectory(*pieces, problem.grid, problem.horizon),
        misfit=jnp.sqrt(jnp.mean(misfit**2)),
        eta=jnp.linalg.norm(jax.vmap(eta)(*pieces)),
        change=s.changes,
        converged=s.change <= plan.tolerance,
    )
