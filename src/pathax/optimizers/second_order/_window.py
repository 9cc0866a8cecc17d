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

from ...curvature._gram import noise, resolved, shifted
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


def products(window: Array, rows: Array) -> Float[Array, "length rows"]:
    """Real inner products of every row of a window with some."""
    dtype = real_wide(window)
    axes = list(range(1, window.ndim))

    def contract(a: Array, b: Array) -> Array:
        a, b = a.astype(dtype), b.astype(dtype)
        return jnp.tensordot(a, b, axes=(axes, axes), precision="highest")

    if jnp.iscomplexobj(window):
        real = contract(jnp.real(window), jnp.real(rows))
        return real + contract(jnp.imag(window), jnp.imag(rows))
    return contract(window, rows)


def combine(weights: Float[Array, " length"], window: Array) -> Array:
    """The sum of rows by weight, in single precision at least."""
    wide = window.astype(wide_dtype(window.dtype))
    axes = ([0], [0])

    def contract(x: Array) -> Array:
        return jnp.tensordot(weights.astype(x.dtype), x, axes=axes, precision="highest")

    if jnp.iscomplexobj(wide):
        return jax.lax.complex(contract(jnp.real(wide)), contract(jnp.imag(wide)))
    return contract(wide)


def total(parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Inner products of whole trees, from those of their leaves."""
    dtype = max(
        (p.dtype for p in parts),
        key=lambda d: d.itemsize,
        default=jnp.dtype(jnp.float32),
    )
    out = jnp.zeros(shape, dtype)
    for part in parts:
        out = out + part.astype(dtype)
    return out


def insert(
    gram: Float[Array, "length length"],
    columns: Float[Array, "length rows"],
    slots: Int[Array, " rows"],
    filled: Int[Array, ""],
) -> Float[Array, "length length"]:
    """The Gram matrix after these rows were written; those not yet written are zero."""
    known = jnp.arange(len(gram), dtype=filled.dtype) < filled
    both = known[:, None] & known[slots][None, :]
    columns = jnp.where(both, columns, jnp.zeros_like(columns))
    columns = columns.astype(gram.dtype)
    gram = gram.at[:, slots].set(columns).at[slots, :].set(columns.T)
    # Products among several new rows are computed twice, and rounded in two ways.
    return gram if len(slots) == 1 else (gram + gram.T) / 2


def coefficients(
    gram: Float[Array, "length length"],
    target: Float[Array, " length"],
    damping: float | Array,
    count: Float[Array, ""],
    solver: str,
) -> Float[Array, " length"]:
    """`N K^-1 target`: the weights of the rows in `F^-1 R^T target`.

    Where rows are parallel to rounding and the damping is below that, the directions
    that nothing is known of are left out, or the weights would be noise.
    """
    shift = (count * jnp.asarray(damping)).astype(gram.dtype)
    unit, scale = shifted(gram, shift)
    target = scale * target.astype(gram.dtype)

    def spectral(_: None) -> Array:
        values, vectors = jnp.linalg.eigh(unit)
        inner = jnp.matmul(vectors.T, target, precision="highest")
        known = values > noise(unit)
        safe = jnp.where(known, values, jnp.ones_like(values))
        inner = jnp.where(known, inner / safe, jnp.zeros_like(inner))
        return jnp.matmul(vectors, inner, precision="highest")

    if solver == "eigh":
        out = spectral(None)
    else:
        root = jnp.linalg.cholesky(unit)
        direct = lambda _: jsl.cho_solve((root, True), target)
        out = jax.lax.cond(resolved(root), direct, spectral, None)
    return count.astype(gram.dtype) * scale * out
