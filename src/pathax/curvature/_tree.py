"""Small pieces that all estimates share: real coordinates, precision, devices."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._real import from_real, to_real


def wide_dtype(dtype: Any) -> Any:
    """The dtype in which estimates add up: single precision at least."""
    if jnp.finfo(dtype).bits >= 32:
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32)


def widen(tree: Any) -> Any:
    """The tree in single precision at least."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)


def in_real(
    fn: Callable[[Any], Any], params: PyTree
) -> tuple[Callable[[Any], Any], PyTree]:
    """The function of real coordinates, and the coordinates of `params`."""
    params = jax.tree.map(jnp.asarray, params)
    return lambda x: fn(from_real(x, params)), to_real(params)


def norm(tree: Any) -> Array:
    """The Euclidean norm of a real tree, in single precision at least."""
    squares = [jnp.sum(x**2) for x in jax.tree.leaves(widen(tree))]
    dtypes = [s.dtype for s in squares]
    dtype = max(dtypes, key=lambda d: jnp.finfo(d).bits, default=jnp.dtype("float32"))
    total = jnp.zeros((), dtype)
    for square in squares:
        total = total + square.astype(dtype)
    return jnp.sqrt(total)


def largest_eps(tree: Any) -> float:
    """The rounding unit of the leaf with the fewest digits."""
    return max(
        (float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree)), default=0.0
    )


def size(tree: Any) -> int:
    """The number of entries of all leaves."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def split_key(key: Array, num: int) -> Array:
    """So many keys; for one, the key itself."""
    return jax.random.split(key, num) if num > 1 else key[None]


# Devices ----------------------------------------------------------------------------


def local(tree: Any, axis_name: Any) -> Any:
    """The tree as a thing that may differ by device.

    `jax.shard_map` adds gradients up over devices where it knows that all share the
    parameters. Estimates take means themselves, so the gradients must stay local.
    """
    if axis_name is None:
        return tree

    def vary(x: Array) -> Array:
        try:
            return jax.lax.pcast(x, axis_name, to="varying")
        except ValueError:  # varies already, or the axis belongs to a vmap
            return x

    return jax.tree.map(vary, tree)


def mean_over(tree: Any, axis_name: Any) -> Any:
    """The mean over devices, if there is an axis of them."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


# Errors -----------------------------------------------------------------------------

# How differentiation fails where a derivative is defined by a rule of its own, as in
# most adjoints of Diffrax, or where a loop has no reverse mode.
_SIGNS = (
    "to a custom_vjp function",
    "does not work for lax.while_loop",
    "filter_custom_vjp",
    "differentiation of a custom_vjp function",
)


@contextmanager
def explained(what: str, instead: str) -> Iterator[None]:
    """Say what to do where JAX says that a function can't be differentiated so."""
    try:
        yield
    except Exception as error:
        if any(sign in str(error) for sign in _SIGNS):
            raise TypeError(
                f"{what}, which this function does not allow. If it solves a "
                "differential equation, write diffrax.diffeqsolve(..., "
                f"adjoint=diffrax.DirectAdjoint()){instead}"
            ) from error
        raise
