"""The iterations of a refinement in one slab."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ._cost import ffts
from ._gauss_newton import backtrack, gauss_newton_step
from ._preconditioners import Map, blocks, identity, mean_flow, sweep
from ._space_time import Pairs, SpaceTimeProblem


class Options(NamedTuple):
    """What is static in a refinement; see `refine`."""

    method: str
    preconditioner: str
    max_steps: int
    max_products: int
    sweep_steps: int | None


class Progress(NamedTuple):
    """Of the iterations in a slab."""

    z: Pairs
    eta: Float[Array, ""]
    stalled: Bool[Array, ""]
    step: Int[Array, ""]
    etas: Float[Array, " steps"]
    products: Int[Array, " steps"]
    ffts: Float[Array, ""]  # a float, as there are many


_STALL = 0.9  # a step that leaves more of the residual than this is the last one
_HISTORY = 20  # pairs that L-BFGS remembers
# Linear problems are solved to a tenth of the residual's part, within these bounds.
_LOOSEST, _TIGHTEST = 1e-2, 1e-7


def _begin(problem: SpaceTimeProblem, z: Pairs, steps: int) -> Progress:
    eta = problem.norm(problem.residual(z))
    return Progress(
        z=z,
        eta=eta,
        stalled=jnp.zeros((), bool),
        step=jnp.zeros((), jnp.int32),
        etas=jnp.full((steps + 1,), jnp.nan, eta.dtype).at[0].set(eta),
        products=jnp.zeros((max(steps, 1),), jnp.int32),
        ffts=jnp.full((), ffts(problem.residual, z), eta.dtype),
    )


def _change(problem: SpaceTimeProblem, z: Pairs, options: Options) -> tuple[Map, Pairs]:
    if options.preconditioner == "sweep":
        return sweep(problem, z, options.sweep_steps or 4 * problem.degree)
    if options.preconditioner == "blocks":
        return blocks(problem)
    if options.preconditioner == "mean_flow":
        return blocks(problem, mean_flow(problem))
    return identity(problem)


# Gauss-Newton and Picard ------------------------------------------------------------


def gauss_newton(
    problem: SpaceTimeProblem,
    z: Pairs,
    goal: Float[Array, ""],
    options: Options,
    learning_rate: Any = None,
) -> Progress:
    """Least squares of the linearized residual, or of the one with a frozen carrier."""
    del learning_rate
    first = problem.norm(problem.residual(problem.persistence()))
    prepared = None
    if options.preconditioner != "sweep":  # the same at all steps
        prepared = _change(problem, z, options)
    measure = lambda z: problem.norm(problem.residual(z))
    once = ffts(problem.residual, z)

    def unfinished(p: Progress) -> Array:
        go_on = (p.eta > goal) & ~p.stalled & jnp.isfinite(p.eta)
        return go_on & (p.step < options.max_steps)

    def advance(p: Progress) -> Progress:
        change, space = prepared or _change(problem, p.z, options)
        residual = _linear_model(problem, p.z, options.method)
        part = jnp.minimum(p.eta / first, 1.0)
        tolerance = jnp.clip(0.1 * part, _TIGHTEST, _LOOSEST)
        found = gauss_newton_step(
            residual, p.z, change, space, tolerance, options.max_products
        )
        new = backtrack(measure, p.z, found.direction, p.eta)
        # A product, its transpose, and the two of the change of variables.
        each = 2 * once + _change_cost(change, space)
        count = lambda n: jnp.asarray(n).astype(p.ffts.dtype)
        spent = once * count(new.trials + 1) + each * count(found.products + 1)
        return Progress(
            z=new.z,
            eta=new.norm,
            stalled=~(new.norm <= _STALL * p.eta),
            step=p.step + 1,
            etas=p.etas.at[p.step + 1].set(new.norm),
            products=p.products.at[p.step].set(found.products.astype(jnp.int32)),
            ffts=p.ffts + spent,
        )

    return jax.lax.while_loop(
        unfinished, advance, _begin(problem, z, options.max_steps)
    )


def _change_cost(change: Map, space: Pairs) -> int:
    return 2 * ffts(change, space)


def _linear_model(
    problem: SpaceTimeProblem, at: Pairs, method: str
) -> Callable[[Pairs], Pairs]:
    """What a step solves in least squares, linearized about the same place."""
    if method == "gauss_newton":
        return problem.residual
    carriers = problem.at_nodes(problem.spectra(at))
    return lambda z: problem.residual(z, carriers)


# L-BFGS and Adam --------------------------------------------------------------------


def descend(
    problem: SpaceTimeProblem,
    z: Pairs,
    goal: Float[Array, ""],
    options: Options,
    learning_rate: Any,
) -> Progress:
    """First-order methods of Optax, on half the square of the residual."""
    change, space = _change(problem, z, options)
    tx = optax.adam(learning_rate)
    if options.method == "lbfgs":
        tx = optax.lbfgs(memory_size=_HISTORY)

    def objective(y: Pairs) -> Array:
        return 0.5 * jnp.sum(problem.residual(z + change(y)) ** 2)

    searches = options.method == "lbfgs"
    plain = jax.value_and_grad(objective)
    kept = optax.value_and_grad_from_state(objective)
    each = 2 * ffts(problem.residual, z)  # a value and its gradient

    def unfinished(carry) -> Array:
        p, _, _ = carry
        go_on = (p.eta > goal) & jnp.isfinite(p.eta)
        return go_on & (p.step < options.max_steps)

    def advance(carry):
        p, y, state = carry
        value, grad = kept(y, state=state) if searches else plain(y)
        updates, state = tx.update(
            grad, state, y, value=value, grad=grad, value_fn=objective
        )
        y: Any = optax.apply_updates(y, updates)
        trials = 1
        if searches:
            trials = optax.tree.get(state, "num_linesearch_steps")
            value = optax.tree.get(state, "value")
        # Of L-BFGS this is the new value; of Adam that of the place it left.
        eta = jnp.sqrt(2 * value)
        p = p._replace(
            eta=eta,
            step=p.step + 1,
            etas=p.etas.at[p.step + 1].set(eta),
            ffts=p.ffts + each * jnp.asarray(trials).astype(p.ffts.dtype),
        )
        return p, y, state

    p = _begin(problem, z, options.max_steps)
    p, y, _ = jax.lax.while_loop(unfinished, advance, (p, space, tx.init(space)))
    z = z + change(y)
    eta = problem.norm(problem.residual(z))
    return p._replace(z=z, eta=eta, etas=p.etas.at[p.step].set(eta))
