"""A window of gradients as a ring, and the inverse Fisher matrix it stands for.

With gradients as rows of `R`, `F = damping I + R^T R / N` and
`K = N damping I + R R^T`, `F^-1 R^T c = N R^T K^-1 c`: for a vector in the span of the
rows no difference is taken, so float32 is enough.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, Int

from ...curvature._tree import wide_dtype


def zeros_window(leaf: Array, length: int, dtype: Any) -> Array:
    """An empty window of a leaf: `(length, *shape)`, complex leaves in their dtype."""
    keep = dtype is None or jnp.iscomplexobj(leaf)
    dtype = wide_dtype(leaf.dtype) if keep else dtype
    # Like the leaf, so that a sharded parameter has a sharded window.
    return jnp.broadcast_to(jnp.zeros_like(leaf, dtype=dtype), (length, *leaf.shape))


def real_wide(leaf: Array) -> Any:
    """The dtype of inner products of leaves like this one."""
    return jnp.finfo(wide_dtype(leaf.dtype)).dtype


def products(window: Array, row: Array) -> Float[Array, " length"]:
    """Real inner products of every row of a window with one."""
    dtype = real_wide(window)
    axes = list(range(1, window.ndim))

    def contract(a: Array, b: Array) -> Array:
        a, b = a.astype(dtype), b.astype(dtype)
        over = (axes, list(range(b.ndim)))
        return jnp.tensordot(a, b, axes=over, precision="highest")

    if jnp.iscomplexobj(window):
        parts = (jnp.real, jnp.imag)
        return sum(
            (contract(f(window), f(row)) for f in parts),
            jnp.zeros(window.shape[0], dtype),
        )
    return contract(window, row)


def combine(weights: Float[Array, " length"], window: Array) -> Array:
    """The sum of rows by weight, in single precision at least."""
    wide = window.astype(wide_dtype(window.dtype))
    axes = ([0], [0])

    def contract(x: Array) -> Array:
        return jnp.tensordot(weights.astype(x.dtype), x, axes=axes, precision="highest")

    if jnp.iscomplexobj(wide):
        return jax.lax.complex(contract(jnp.real(wide)), contract(jnp.imag(wide)))
    return contract(wide)


def total(parts: Sequence[Array], length: int) -> Float[Array, " length"]:
    """Inner products of whole trees, from those of their leaves."""
    dtype = max(
        (p.dtype for p in parts),
        key=lambda d: d.itemsize,
        default=jnp.dtype(jnp.float32),
    )
    out = jnp.zeros(length, dtype)
    for part in parts:
        out = out + part.astype(dtype)
    return out


def insert(
    gram: Float[Array, "length length"],
    row: Float[Array, " length"],
    slot: Int[Array, ""],
    filled: Int[Array, ""],
) -> Float[Array, "length length"]:
    """The Gram matrix after row `slot` was written; rows not yet written are zero."""
    known = jnp.arange(row.size, dtype=filled.dtype) < filled
    row = jnp.where(known, row, jnp.zeros_like(row))
    row = row.astype(gram.dtype)
    return gram.at[slot, :].set(row).at[:, slot].set(row)


def coefficients(
    gram: Float[Array, "length length"],
    target: Float[Array, " length"],
    damping: float | Array,
    count: Float[Array, ""],
    solver: str,
) -> Float[Array, " length"]:
    """`N K^-1 target`: the weights of the rows in `F^-1 R^T target`.

    Where rows are parallel to rounding, their inner products don't tell a damping from
    none. What is below that level is raised to it (Cholesky) or left out (eigh), or
    the weights would be noise.
    """
    length = gram.shape[0]
    shift = (count * jnp.asarray(damping)).astype(gram.dtype)
    target = target.astype(gram.dtype)
    eps = jnp.asarray(length * jnp.finfo(gram.dtype).eps, gram.dtype)
    noise = eps * jnp.max(jnp.diagonal(gram))

    def spectral(_: None) -> Array:
        values, vectors = jnp.linalg.eigh(gram)
        inner = jnp.matmul(vectors.T, target, precision="highest")
        known = (values > noise) | (shift > noise)
        safe = jnp.where(known, jnp.maximum(values, 0) + shift, 1)
        inner = jnp.where(known, inner / safe, jnp.zeros_like(inner))
        return jnp.matmul(vectors, inner, precision="highest")

    if solver == "eigh":
        out = spectral(None)
    else:
        eye = jnp.eye(length, dtype=gram.dtype)
        factor = jnp.linalg.cholesky(gram + jnp.maximum(shift, noise) * eye)
        out = jsl.cho_solve((factor, True), target)
        out = jax.lax.cond(jnp.all(jnp.isfinite(out)), lambda _: out, spectral, None)
    return count.astype(gram.dtype) * out
