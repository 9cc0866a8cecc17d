"""From the expansion of an interval to values: draw the normals, sum them up.

This is where the time goes for paths with many components, so the form depends on the
size of the path. Small ones have the terms along the contiguous axis, padded to whole
SIMD registers; large ones the components. Where even one query's noise is large, a loop
over groups of terms keeps the memory at a small multiple of the answer's, and skips the
groups that the interval does not need.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from ._noise import normals
from ._query import Terms


# Lanes of the widest SIMD registers in use (16 float32, AVX-512).
LANES = 16

# Elements of noise drawn at once; above it a query loops over groups of terms.
_WIDE = 1 << 18

# Elements of noise that a batch of queries draws at once on CPU, for its cache.
_BATCH = 1 << 19


def width(size: int, order: int) -> int:
    """What the number of terms of each part of an expansion must be a multiple of."""
    if size >= LANES:
        return 1
    return LANES if order == 0 else LANES // 2


def draw(
    words: UInt32[Array, "2"],
    nodes: tuple[UInt32[Array, " terms"], UInt32[Array, " terms"] | None],
    rank: UInt32[Array, " terms"] | UInt32[np.ndarray, " terms"],
    size: int,
    dtype: np.dtype,
    axis: int = 0,
) -> Array:
    """Normals number `rank size, ..., rank size + size - 1` of each node.

    Returns `(terms, size)`, or `(size, terms)` for `axis=1`.
    """
    element = np.expand_dims(np.arange(size, dtype=np.uint32), axis)
    rank = jnp.expand_dims(rank * np.uint32(size), 1 - axis)
    low, high = nodes
    low = jnp.expand_dims(low, 1 - axis)
    high = None if high is None else jnp.expand_dims(high, 1 - axis)
    return normals(words, (low, high), jnp.asarray(element + rank), dtype)


@ft.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def draw_top(
    words: UInt32[Array, "2"],
    shape: tuple[int, int],
    is_deep: bool,
    size: int,
    dtype: np.dtype,
) -> Float[Array, "ranks nodes size"]:
    """The normals of `shape[0]` functions of the first `shape[1]` nodes."""
    rank, node = np.indices(shape, np.uint32).reshape(2, -1)
    low = jnp.asarray(node)
    high = jnp.zeros_like(low) if is_deep else None
    return draw(words, (low, high), rank, size, dtype).reshape(*shape, size)


def total(
    terms: list[Terms],
    words: UInt32[Array, "2"],
    order: int,
    size: int,
    cache: Float[Array, "ranks nodes size"] | None,
) -> Float[Array, "rows size"]:
    """`Z[m] = sum_k coefficients[m, k] xi[k]` over all terms."""
    if cache is None:
        return _draw_all(terms, words, order, size)
    parts = []
    for term in terms:
        cached = term.level < cache.shape[1].bit_length() - 1
        if cached.any():
            table = _select(term, cached)
            xi = cache[table.rank, table.low]
            parts.append(_weigh(table.coefficients, xi))
        if not cached.all():
            parts.append(_draw_and_weigh(_select(term, ~cached), words, size))
    return sum(parts[1:], start=parts[0])


def _draw_all(
    terms: list[Terms], words: UInt32[Array, "2"], order: int, size: int
) -> Float[Array, "rows size"]:
    """All terms of one query, in the form that is fastest for it.

    The forms differ in speed and memory alone. A single query of a small path joins the
    parts, as a contraction without batch axes costs a library call; at order 0 its
    coefficients are so cheap that the compiler fuses them into the sum. A batch doesn't
    join; for large paths it is drawn in groups that stay in cache, on CPU.
    """
    ranks, levels = [t.rank for t in terms], [t.level for t in terms]
    arrays = [(t.coefficients, t.low, t.high, t.used) for t in terms]

    def restored(arrays):
        return [
            Terms(c, low, high, rank, used, level)
            for (c, low, high, used), rank, level in zip(
                arrays, ranks, levels, strict=True
            )
        ]

    def apart(arrays, words):
        drawn = [_draw_and_weigh(term, words, size) for term in restored(arrays)]
        return sum(drawn[1:], start=drawn[0])

    def single(arrays, words):
        if size >= LANES or size == 1 or order == 0:
            return apart(arrays, words)
        return _draw_and_weigh(_joined(restored(arrays)), words, size)

    count = sum(rank.size for rank in ranks)
    batched = ft.partial(_batched, apart, max(1, _BATCH // max(1, count * size)))
    query = jax.custom_batching.custom_vmap(single)
    query.def_vmap(batched)
    return query(arrays, words)


def _batched(function, group: int, axis_size: int, in_batched, *args):
    """A batching rule: `vmap`, but in groups on CPU, where a batch exceeds one."""
    leaves, treedef = jax.tree.flatten(args)
    mapped = jax.tree.leaves(in_batched)
    constant = [x for x, m in zip(leaves, mapped, strict=True) if not m]
    varying = tuple(x for x, m in zip(leaves, mapped, strict=True) if m)

    def call(varying, constant):
        sources = iter(varying), iter(constant)
        merged = [next(sources[0] if m else sources[1]) for m in mapped]
        return function(*jax.tree.unflatten(treedef, merged))

    def at_once(varying, constant):
        return jax.vmap(call, in_axes=(0, None))(varying, constant)

    def in_groups(varying, constant):
        size = next(
            (g for g in range(group, group // 2, -1) if axis_size % g == 0), group
        )
        one = lambda x: call(x, constant)
        return jax.lax.map(one, varying, batch_size=size)

    if group >= axis_size:
        return at_once(varying, constant), True
    out = jax.lax.platform_dependent(varying, constant, cpu=in_groups, default=at_once)
    return out, True


def _joined(terms: list[Terms]) -> Terms:
    """All parts in one, padded to whole registers."""
    extra = -sum(term.rank.size for term in terms) % LANES

    def join(*parts):
        kind = np if isinstance(parts[0], np.ndarray) else jnp
        padding = kind.zeros((*parts[0].shape[:-1], extra), parts[0].dtype)
        return kind.concatenate([*parts, padding], axis=-1)

    return jax.tree.map(join, *terms)


def _select(term: Terms, mask: np.ndarray) -> Terms:
    return Terms(
        term.coefficients[:, mask],
        term.low[mask],
        None if term.high is None else term.high[mask],
        term.rank[mask],
        term.used[mask],
        term.level[mask],
    )


def _weigh(
    coefficients: Float[Array, "rows terms"], xi: Float[Array, "terms size"]
) -> Float[Array, "rows size"]:
    return jnp.matmul(coefficients, xi, precision="highest")


def _draw_and_weigh(
    term: Terms, words: UInt32[Array, "2"], size: int
) -> Float[Array, "rows size"]:
    dtype = term.coefficients.dtype
    nodes, count = (term.low, term.high), term.low.shape[0]
    if size < LANES:
        xi = draw(words, nodes, term.rank, size, dtype, axis=1)
        return jnp.einsum("mk,ek->me", term.coefficients, xi, precision="highest")
    group = max(1, _WIDE // size)
    if group >= count:
        return _weigh(term.coefficients, draw(words, nodes, term.rank, size, dtype))

    groups = -(-count // group)

    def grouped(x):
        x = jnp.moveaxis(jnp.asarray(x), -1, 0)
        x = jnp.pad(x, [(0, groups * group - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(groups, group, *x.shape[1:])

    data = jax.tree.map(grouped, (term.coefficients, nodes, term.rank, term.used))

    def step(accumulated, group_data):
        coefficients, nodes, rank, used = group_data

        def add(_):
            xi = draw(words, nodes, rank, size, dtype)
            return accumulated + _weigh(coefficients.T, xi)

        return jax.lax.cond(jnp.any(used), add, lambda _: accumulated, None), None

    start = jnp.zeros((term.coefficients.shape[0], size), dtype)
    return jax.lax.scan(step, start, data)[0]
