"""Least squares by Gauss-Newton steps whose linear problems are solved by Lineax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PyTree


class Step(NamedTuple):
    """A Gauss-Newton step and what it took."""

    direction: PyTree
    products: Int[Array, ""]  # with the Jacobian, and as many with its transpose


class Accepted(NamedTuple):
    """Where a search along a direction ended."""

    z: PyTree
    norm: Float[Array, ""]
    trials: Int[Array, ""]


def norm(x: PyTree) -> Float[Array, ""]:
    """Euclidean, over all leaves."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)))


def gauss_newton_step(
    residual: Callable[[PyTree], PyTree],
    z: PyTree,
    change: Callable[[PyTree], PyTree],
    space: PyTree,
    tolerance: Float[Array, ""],
    max_products: int,
) -> Step:
    """Minimize `|J d + r|` over `d = change(y)`, by conjugate gradients for `y`.

    `change` is linear and makes `J change` nearly an isometry, so that the normal
    equations are well conditioned; `space` is a zero of what it maps from.
    """
    r, jacobian = jax.linearize(residual, z)
    across = jax.linear_transpose(jacobian, z)
    _, back = jax.vjp(change, space)
    gradient = lambda r: back(across(r)[0])[0]
    right = jax.tree.map(jnp.negative, gradient(r))
    count = sum(leaf.size for leaf in jax.tree.leaves(right))
    rms = lambda x: norm(x) / jnp.sqrt(count * 1.0)
    operator = lx.FunctionLinearOperator(
        lambda y: gradient(jacobian(change(y))),
        jax.eval_shape(lambda: right),
        lx.positive_semidefinite_tag,
    )
    # One scale for all entries: many are zero, being outside of the band.
    small: Any = tolerance * rms(right)
    solver = lx.CG(rtol=0.0, atol=small, norm=rms, max_steps=max_products)
    solution = lx.linear_solve(operator, right, solver, throw=False)
    return Step(change(solution.value), solution.stats["num_steps"])


def backtrack(
    measure: Callable[[PyTree], Float[Array, ""]],
    z: PyTree,
    direction: PyTree,
    start: Float[Array, ""],
    halvings: int = 8,
) -> Accepted:
    """The longest of the steps 1, 1/2, 1/4, ... that lowers the norm; else none."""

    def at(length: Array) -> PyTree:
        return jax.tree.map(lambda a, b: a + length.astype(a.dtype) * b, z, direction)

    def worse(carry):
        _, found, trials = carry
        return ~(found < start) & (trials <= halvings)

    def shorter(carry):
        length, _, trials = carry
        length = jnp.where(trials == 0, length, length / 2)
        return length, measure(at(length)), trials + 1

    first = (jnp.ones_like(start), jnp.full_like(start, jnp.inf), jnp.zeros((), int))
    length, found, trials = jax.lax.while_loop(worse, shorter, first)
    better = found < start
    length = jnp.where(better, length, jnp.zeros_like(length))
    return Accepted(at(length), jnp.where(better, found, start), trials)
