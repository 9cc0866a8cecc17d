"""What a penalty sees of one step of a solver."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree


class Tolerances(NamedTuple):
    """What errors are measured against.

    **Attributes:**

    - `rtol`: relative tolerance.
    - `atol`: absolute tolerance.
    - `norm`: a function from a tree to a scalar; by default the root mean square.
    """

    rtol: Any
    atol: Any
    norm: Callable = optx.rms_norm


class Step(NamedTuple):
    """One step, as the solver made it.

    **Attributes:**

    - `t0`, `t1`: start and end; `t1 > t0` also where the equation is solved backwards.
    - `y0`, `y1`: the solution there.
    - `error`: the solver's estimate of its error, or `None`.
    - `scaled_error`: its norm in units of the tolerances, below 1 where the controller
      accepted the step; or `None`.
    - `error_order`: the power of the step size that the error goes with, or `None`.
    - `dense_info`: what the solver's interpolation is made from.
    - `terms`, `args`, `solver`: what was solved, and with what.
    """

    t0: Array
    t1: Array
    y0: PyTree
    y1: PyTree
    error: PyTree
    scaled_error: Array | None
    error_order: Any
    dense_info: PyTree
    terms: PyTree
    args: PyTree
    solver: Any

    @property
    def size(self) -> Array:
        """Step size, held constant for derivatives."""
        return jax.lax.stop_gradient(self.t1 - self.t0)


def scaled_error(y0: PyTree, y1: PyTree, error: PyTree, tol: Tolerances) -> Array:
    """Norm of the error in units of the tolerances, as Diffrax's controllers take it.

    With a derivative that is finite where the error is infinite (a step that will be
    rejected) or zero (a field that the solver integrates exactly). Where the norm is
    not finite, zero.
    """
    q = _as_controllers(tol.norm, y0, y1, error, tol.rtol, tol.atol)
    return jnp.where(jnp.isfinite(q), q, jnp.zeros_like(q))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _as_controllers(norm, y0, y1, error, rtol, atol) -> Array:
    """By the very operations of `diffrax.PIDController`: in a solve that has one the
    compiler finds them twice and computes them once."""

    def scale(start: Array, end: Array, err: Array) -> Array:
        # What the solver returns as NaN the controller is given as infinite.
        err = jnp.where(jnp.isnan(err), jnp.inf, err)
        end = jnp.where(jnp.isnan(end).any(), start, end)
        size = jnp.maximum(jnp.abs(start), jnp.abs(end))
        with jax.numpy_dtype_promotion("standard"):
            return err / (atol + size * rtol)

    return jnp.asarray(norm(jax.tree.map(scale, y0, y1, error)))


@_as_controllers.defjvp
def _derivative(norm, primals, tangents):
    _, tangent = jax.jvp(functools.partial(_with_care, norm), primals, tangents)
    value = _as_controllers(norm, *primals)
    return value, tangent.astype(value.dtype)


def _with_care(norm, y0, y1, error, rtol, atol) -> Array:
    """The same where it is finite, from operations that have derivatives elsewhere."""
    finite = lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))

    def scale(start: Array, end: Array, err: Array) -> Array:
        end = jnp.where(jnp.isfinite(end), end, start)
        size = jnp.maximum(jnp.abs(start), jnp.abs(end))
        with jax.numpy_dtype_promotion("standard"):
            scaled = err / (atol + size * rtol)
        return finite(scaled.astype(err.dtype))

    return safe_norm(jax.tree.map(scale, y0, y1, jax.tree.map(finite, error)), norm)


def safe_norm(tree: PyTree, norm: Callable = optx.rms_norm) -> Array:
    """The norm, with derivative zero at zero."""
    if norm is optx.rms_norm:
        return _root_mean_square(tree)
    is_zero = jnp.ones((), bool)
    for x in jax.tree.leaves(tree):
        is_zero = is_zero & jnp.all(x == 0)
    safe = jax.tree.map(lambda x: jnp.where(is_zero, jnp.ones_like(x), x), tree)
    value = norm(safe)
    return jnp.where(is_zero, jnp.zeros_like(value), value)


def _root_mean_square(tree: PyTree) -> Array:
    """In one pass: a solver's step is followed by nothing else of the state's size."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    count = sum(x.size for x in leaves)
    dtype = real_dtype(tree)
    total = jnp.zeros((), dtype)
    for x in leaves:
        total = total + jnp.sum(jnp.real(x * jnp.conj(x))).astype(dtype)
    is_zero = total == 0
    mean = jnp.where(is_zero, jnp.ones_like(total), total / max(count, 1))
    return jnp.where(is_zero, jnp.zeros_like(mean), jnp.sqrt(mean))


def real_dtype(y: PyTree) -> Any:
    """The real dtype of a state."""
    leaves = jax.tree.leaves(y)
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return jnp.finfo(dtype).dtype
