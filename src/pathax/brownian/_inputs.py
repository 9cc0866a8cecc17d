"""What a user passes: times, shapes and keys, checked and brought to one form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree


RealScalar = Any  # a Python number, a NumPy scalar or a real array of shape ()


@jax.custom_jvp
def _constant(t: Array) -> Array:
    return t


def _no_tangent(primals, tangents):
    (t,), (dt,) = primals, tangents
    if type(dt) is not jax.custom_derivatives.SymbolicZero:
        raise ValueError(
            "A Brownian path is nowhere differentiable, so there is no gradient with "
            "respect to the times at which it is evaluated. Wrap them in "
            "`jax.lax.stop_gradient` to treat them as constants."
        )
    return _constant(t), jnp.zeros_like(t)


_constant.defjvp(_no_tangent, symbolic_zeros=True)


def as_time(t: RealScalar, dtype: np.dtype) -> Float[Array, ""]:
    """A query time as an array of the path's time dtype, without gradient."""
    t = jnp.asarray(t)
    if t.shape != ():
        raise ValueError(
            f"Times must be scalars; got an array of shape {t.shape}. Write "
            "`jax.vmap(path.evaluate)(t0s, t1s)` to evaluate at many times."
        )
    if not jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(dtype)
    return _constant(t).astype(dtype)


def as_traced(t: Any) -> Any:
    """A number as an array, for `eqx.filter_jit` to trace; anything else as it is."""
    return np.asarray(t) if isinstance(t, int | float | np.generic) else t


def time_dtype(*times: RealScalar) -> np.dtype:
    """The common floating dtype of some times, Python numbers being weak."""
    dtypes = [jnp.asarray(t).dtype for t in times if not isinstance(t, int | float)]
    known = [dtype for dtype in dtypes if jnp.issubdtype(dtype, np.floating)]
    default = np.dtype(jnp.result_type(float))
    out = known[0] if known else default
    for dtype in known[1:]:
        out = jnp.promote_types(out, dtype)
    return np.dtype(out) if np.dtype(out).itemsize >= 4 else np.dtype(np.float32)


def real_dtype(dtype: Any) -> np.dtype:
    """The real dtype that an inexact dtype is made of."""
    return np.dtype(jnp.finfo(dtype).dtype)


def compute_dtype(dtype: Any) -> np.dtype:
    """float64 for 64-bit reals and complex numbers of them, else float32."""
    return np.dtype(np.float64 if real_dtype(dtype).itemsize == 8 else np.float32)


def check_shape(shape: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """Normalise `shape` to a PyTree of structs, or say what it should have been."""
    if isinstance(shape, int | np.integer):
        raise ValueError(f"`shape` must be a tuple; got {shape!r}. Write `({shape},)`.")
    if isinstance(shape, list) and all(isinstance(n, int) for n in shape):
        raise ValueError(
            f"`shape` must be a tuple or a PyTree of `jax.ShapeDtypeStruct`; got the "
            f"list {shape!r}. Write `{tuple(shape)!r}`."
        )
    if isinstance(shape, tuple) and all(isinstance(n, int | np.integer) for n in shape):
        _check_sizes(shape)
        return jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    structs = jax.tree.leaves(shape)
    if not structs:
        raise ValueError("`shape` must have at least one array; got an empty PyTree.")
    for struct in structs:
        if not (hasattr(struct, "shape") and hasattr(struct, "dtype")):
            raise ValueError(
                "`shape` must be a tuple of integers or a PyTree of "
                f"`jax.ShapeDtypeStruct`; got a leaf {struct!r}."
            )
        _check_sizes(struct.shape)
        _check_dtype(struct.dtype)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), shape)


def _check_sizes(shape: tuple[int, ...]) -> None:
    if any(n < 0 for n in shape):
        raise ValueError(f"Sizes in `shape` must not be negative; got {shape}.")


_DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def _check_dtype(dtype: Any) -> None:
    name = np.dtype(dtype).name
    if name not in _DTYPES:
        raise ValueError(
            "Brownian paths are floating-point: the dtypes in `shape` must be among "
            f"{', '.join(_DTYPES)}; got {name}."
        )
    if name in ("float64", "complex128") and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f'A path of dtype {name} needs `jax.config.update("jax_enable_x64", True)` '
            "at the start of the program."
        )


def check_key(key: Any) -> Array:
    """A single JAX key, of the new or the legacy style."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(
            f"`key` must be a JAX random key; got {key!r}. Write "
            "`jax.random.key(seed)`."
        )
    key = jnp.asarray(key)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(
            f"`key` must be a JAX random key; got an array of dtype {key.dtype}. Write "
            "`jax.random.key(seed)`."
        )
    if key.ndim != (0 if typed else 1):
        raise ValueError(
            f"`key` must be a single key; got keys of shape {key.shape}. For many "
            "paths write "
            "`jax.vmap(lambda key: VirtualBrownianTree(..., key=key))(keys)`."
        )
    return key


def concrete(x: Any) -> float | None:
    """The value of a scalar, or `None` while it is traced."""
    if isinstance(x, Tracer):
        return None
    return float(x)
