"""From an interval to the node innovations it depends on, and their coefficients.

A Brownian path of order `N` on a dyadic tree is a sum over nodes of multiwavelets times
i.i.d. normal innovations. Its normalised Legendre moments over `[a, b]` are therefore
`Z = sum_node C_node xi_node` with `C_node[m, n] = <p_m on [a, b], psi_node,n>`, an
inner product of piecewise polynomials. This file computes all `C_node` of one interval
at once, by exact quadrature on the overlap of `[a, b]` with each half of each node:

- no recursion, so all levels are one wide operation;
- nothing is accumulated from the start of the tree and nothing is differenced: the rows
  of `C` have unit norm to rounding, whatever the scale of `[a, b]`;
- the nodes are those of the two paths from the root to the leaves that hold `a` and
  `b`, shared ones once.

Times are measured in leaves, as an integer plus a fraction, so positions are exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, UInt32

from . import _legendre as lg


class Position(NamedTuple):
    """A time on a tree: `leaf + fraction` leaves after its start."""

    leaf: Int[Array, ""]
    fraction: Float[Array, ""]


class Geometry(NamedTuple):
    """Static shape of a dyadic tree.

    `depth` levels of nodes. Bounded: one root over all `2^depth` leaves. Unbounded: the
    line is tiled by root blocks `[0, 1), [1, 2), [2, 4), ...` (in leaves), which are
    what hangs off the left spine of the bounded tree; the spine itself has no noise.
    """

    depth: int
    unbounded: bool

    @property
    def int_dtype(self) -> np.dtype:
        return np.dtype(np.int64 if self.is_deep else np.int32)

    @property
    def is_deep(self) -> bool:
        """Whether node labels take more than 32 bits."""
        return self.depth > (30 if self.unbounded else 29)


class Terms(NamedTuple):
    """Part of an expansion: `Z[m] += sum_k coefficients[m, k] xi[k]`.

    A term `k` is one function of one node. `xi[k]` are the normals that belong to the
    label `low[k]` (and `high[k]`, for trees deeper than 30 levels), from element number
    `rank[k] size` on. `used` is False where all coefficients of a term are zero.
    """

    coefficients: Float[Array, "rows terms"]
    low: UInt32[Array, " terms"]
    high: UInt32[Array, " terms"] | None
    rank: UInt32[np.ndarray, " terms"]
    used: Bool[Array, " terms"]
    level: np.ndarray  # of each term's node: -1 for the root, `depth` for a leaf


_SECOND_SPLIT = np.uint32(1 << 31)


def expand(
    geometry: Geometry,
    first: Position,
    second: Position,
    order: int,
    rows: int,
    dtype: np.dtype,
    width: int = 1,
) -> list[Terms]:
    """The expansion of moments `0..rows-1` over `[first, second]`, `first <= second`.

    Terms are padded by unused ones to a multiple of `width`, for whole SIMD registers.

    Costs `O(depth order^3)` flops in a fixed number of array operations, none of which
    depends on the shape of the path.
    """
    gap = (second.fraction - first.fraction).astype(dtype)
    span = (second.leaf - first.leaf).astype(dtype) + gap
    first = Position(first.leaf, first.fraction.astype(dtype))
    second = Position(second.leaf, second.fraction.astype(dtype))
    terms = [
        _nodes(geometry, first, second, span, order, rows, width),
        _leaves(geometry, first, second, span, gap, order, rows, width),
    ]
    if geometry.unbounded:
        terms.append(_blocks(geometry, first, second, span, order, rows))
    return terms


def _words(
    geometry: Geometry, node: Int[Array, " terms"]
) -> tuple[UInt32[Array, " terms"], UInt32[Array, " terms"] | None]:
    if not geometry.is_deep:
        return node.astype(jnp.uint32), None
    return (node & 0xFFFFFFFF).astype(jnp.uint32), (node >> 32).astype(jnp.uint32)


# Tables are NumPy arrays until they meet a time.
_Array = Array | np.ndarray


class _Overlap(NamedTuple):
    """`[a, b]` intersected with pieces: quadrature points in both coordinates."""

    outer: list[Array]  # positions in [a, b], scaled to [-1, 1], one entry a point
    inner: list[Array]  # positions in the piece, likewise
    mass: list[Array]  # weights, normalised so that |p_m| and |p_q| are orthonormal


class _Pieces(NamedTuple):
    """Intervals on which functions are polynomials, by their distances in leaves.

    Each distance is computed from integers where it may be short: taking one as the
    difference of two long ones would lose it.
    """

    start: Array  # from a to the start of the piece, signed
    to_end: Array  # from a to its end
    from_start: Array  # from its start to b
    length: Array


def _overlap(pieces: _Pieces, span: Array, points: int) -> _Overlap:
    """Quadrature over the overlap of `[a, b]`, of length `span`, with each piece.

    Sums over the points are exact inner products for polynomials whose degrees add up
    to at most `2 points - 1`.
    """
    length = pieces.length
    overlap = jnp.minimum(pieces.to_end, pieces.from_start)
    overlap = jnp.maximum(jnp.minimum(overlap, jnp.minimum(length, span)), 0)
    # Kept in range where nothing overlaps: powers of far positions would overflow.
    begin = jnp.clip(pieces.start, 0, span)
    inside = jnp.clip(-pieces.start, 0, length)
    per_span = jnp.where(span > 0, 1 / span, 0)
    per_piece = jnp.where(length > 0, 1 / length, 0)
    mass = overlap * (jnp.sqrt(per_span) * jnp.sqrt(per_piece))
    nodes, weights = lg.gauss(points)
    dtype = span.dtype.type
    return _Overlap(
        [2 * ((begin + dtype(y) * overlap) * per_span) - 1 for y in nodes],
        [2 * ((inside + dtype(y) * overlap) * per_piece) - 1 for y in nodes],
        [dtype(w) * mass for w in weights],
    )


def _dyadic(
    start: _Array, length: _Array, first: Position, second: Position
) -> _Pieces:
    """Pieces that begin at whole leaves and are whole leaves long."""
    dtype = first.fraction.dtype
    return _Pieces(
        jnp.asarray(start - first.leaf).astype(dtype) - first.fraction,
        jnp.asarray(start + length - first.leaf).astype(dtype) - first.fraction,
        (second.leaf - start).astype(dtype) + second.fraction,
        jnp.asarray(length).astype(dtype),
    )


def _horner(coefficients: Sequence[ArrayLike], y: Array) -> Array:
    """`sum_k coefficients[k] y^k`; the coefficients broadcast against `y`."""
    out = jnp.zeros_like(y) + coefficients[-1]
    for c in coefficients[-2::-1]:
        out = out * y + c
    return out


def _padded(x: np.ndarray, width: int) -> np.ndarray:
    """Repeat the last entry of the last axis up to a multiple of `width`."""
    extra = -x.shape[-1] % width
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)], mode="edge")


def _basis(order: int, dtype: np.dtype) -> list[np.ndarray]:
    """Power coefficients of `p_0, ..., p_order`, each of shape `(order + 1, 1)`."""
    return [c[:, None] for c in lg.power_coefficients(order).astype(dtype)]


def _nodes(
    geometry: Geometry,
    first: Position,
    second: Position,
    span: Array,
    order: int,
    rows: int,
    width: int,
) -> Terms:
    """Nodes above the leaves: the path to the first time, then that to the second.

    A bounded tree's root vector comes first, as the innovation of a node one level up
    whose first half is the whole tree and whose wavelets are the `p_n` there.
    """
    depth, integer, dtype = geometry.depth, geometry.int_dtype, span.dtype
    top = depth if geometry.unbounded else depth + 1
    path = np.arange(top, 0, -1)
    slots = np.concatenate([path, np.arange(depth - 1, 0, -1)]).astype(integer)
    rank = _padded(np.repeat(np.arange(order + 1), slots.size), width)
    heights = _padded(np.tile(slots, order + 1), width)
    is_second = np.arange(slots.size) >= path.size
    is_second = _padded(np.tile(is_second, order + 1), width)
    table = _padded(_node_functions(geometry, slots, order, dtype), width)
    real = np.arange(rank.size) < (order + 1) * slots.size

    leaf = jnp.where(is_second, second.leaf, first.leaf)
    index = leaf >> heights
    shared = is_second & (index == (first.leaf >> heights))
    spine = (index == 0) & geometry.unbounded
    used = jnp.asarray(real & ~(shared | spine))
    half = np.left_shift(integer.type(1), heights - 1)
    begin = index << heights
    total = jnp.zeros((rows, heights.size), dtype)
    for side in range(2):
        pieces = _dyadic(begin + half * side, half, first, second)
        at = _overlap(pieces, span, order + 1)
        for outer, inner, mass in zip(*at, strict=True):
            wavelet = mass * _horner(list(table[side]), inner)
            test = _horner(_basis(rows - 1, dtype), outer[None])
            total = total + test * wavelet[None]
    low, high = _words(geometry, (leaf + (1 << depth)) >> heights)
    total = jnp.where(used[None], total, 0)
    level = depth - heights
    return Terms(total, low, high, rank.astype(np.uint32), used, level)


def _node_functions(
    geometry: Geometry, slots: np.ndarray, order: int, dtype: np.dtype
) -> np.ndarray:
    """Power coefficients of all terms on the halves of nodes: `(half, power, term)`."""
    wavelets = lg.wavelet_coefficients(order)  # (halves, powers, n)
    root = np.stack([lg.power_coefficients(order), np.zeros((order + 1, order + 1))])
    is_root = (slots > geometry.depth)[:, None, None, None]
    table = np.where(is_root, root, wavelets)  # (slots, halves, powers, n)
    return table.transpose(1, 2, 3, 0).reshape(2, order + 1, -1).astype(dtype)


class _Leaf(NamedTuple):
    """A leaf (or what is left of it) split at a time, and its part in `[a, b]`."""

    theta: Float[Array, ""]  # where the split is, as a fraction
    parent: Float[Array, ""]  # length of the interval that is split
    start: Float[Array, ""]  # of the part that meets [a, b], after a
    length: Float[Array, ""]  # of that part
    offset: Float[Array, ""]  # of that part in the parent


def _leaves(
    geometry: Geometry,
    first: Position,
    second: Position,
    span: Array,
    gap: Array,
    order: int,
    rows: int,
    width: int,
) -> Terms:
    """What the leaves add: each is split at the time that it holds.

    Given its moments, the two parts of a leaf are sampled by conditioning (Matheron's
    rule): draw the moments of the parts freely, as white noise, and project out what is
    already known. This needs no matrix factor, so it is exact for any split and order;
    it costs a leaf `2 (order + 1)` normals instead of `order + 1`.

    When both times are in one leaf, the second split is of what the first one left over
    (with noise of its own), so the law of the increment is exact there too.

    Terms: (function) x (leaf of the first time, of the second) x (noise of a part).
    """
    same_leaf = first.leaf == second.leaf
    zero, rest = jnp.zeros_like(span), 1 - first.fraction
    remainder = jnp.where(same_leaf, rest, 1)
    length = jnp.where(same_leaf, gap, second.fraction)
    theta = jnp.minimum(length / jnp.where(remainder > 0, remainder, 1), 1)
    leaves = (
        _Leaf(first.fraction, jnp.ones_like(span), zero, rest, first.fraction),
        _Leaf(theta, remainder, jnp.where(same_leaf, 0, span - length), length, zero),
    )
    indices = np.indices((order + 1, 2, 2)).reshape(3, -1)
    function, which, part = _padded(indices, width)
    real = np.arange(function.size) < indices.shape[1]
    is_second = which == 1
    leaf = _Leaf(*(jnp.where(is_second, y, x) for x, y in zip(*leaves, strict=True)))
    coefficients = _residual(leaf, function, which, part, span, order, rows)
    used = jnp.asarray(real) & (leaf.theta > 0) & (leaf.theta < 1)
    coefficients = jnp.where(used[None], coefficients, 0)

    low, high = _words(
        geometry,
        jnp.where(is_second, second.leaf, first.leaf) + (1 << geometry.depth),
    )
    tag = jnp.where(is_second & same_leaf, _SECOND_SPLIT, np.uint32(0))
    if high is None:
        low = low ^ tag
    else:
        high = high ^ tag
    rank = (part * (order + 1) + function).astype(np.uint32)
    level = np.full(rank.size, geometry.depth)
    return Terms(coefficients, low, high, rank, used, level)


def _residual(
    leaf: _Leaf,
    function: np.ndarray,
    which: np.ndarray,
    part: np.ndarray,
    span: Array,
    order: int,
    rows: int,
) -> Float[Array, "rows terms"]:
    """`<p_m, (1 - Pi) p_q>` for the white noise of both parts of a split leaf.

    `Pi` projects on the polynomials of the whole parent, whose moments are known. It
    needs `Q[k, q] = <p_k of the parent, p_q of the part>`, for the second part by
    reflection of the first.
    """
    dtype = span.dtype
    free = np.where(which != part, 1.0, 0.0).astype(dtype)  # the part meets [a, b]
    fraction = jnp.where(part == 1, 1 - leaf.theta, leaf.theta)
    split = lg.split_coefficients(order).astype(dtype)  # (powers, k, q)
    powers = lg.power_coefficients(order).astype(dtype)  # (powers, q)
    own = [c[function] * free for c in powers]
    parent = jnp.where(leaf.parent > 0, leaf.parent, 1)
    shrink = jnp.sqrt(fraction * leaf.length / parent)
    known = []
    for k in range(order + 1):
        parity = np.where(part == 1, (-1.0) ** (k + function), 1.0).astype(dtype)
        table = [parity * c[k][function] for c in split[: k + 1]]
        known.append(shrink * _horner(table, 2 * fraction - 1))

    total = jnp.zeros((rows, function.size), dtype)
    # The part ends inside of [a, b], or the interval ends inside of the part.
    to_end = jnp.where(which == 1, span, leaf.length)
    from_start = jnp.where(which == 1, leaf.length, span)
    pieces = _Pieces(leaf.start, to_end, from_start, leaf.length)
    at = _overlap(pieces, span, order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        place = (leaf.offset + (inner + 1) / 2 * leaf.length) / parent
        wavelet = _horner(own, inner)
        for k in range(order + 1):
            whole = _horner([c[k] for c in powers[: k + 1]], 2 * place - 1)
            wavelet = wavelet - known[k] * whole
        test = _horner(_basis(rows - 1, dtype), outer[None])
        total = total + test * (mass * wavelet)[None]
    return total


def _blocks(
    geometry: Geometry,
    first: Position,
    second: Position,
    span: Array,
    order: int,
    rows: int,
) -> Terms:
    """Root vectors of the blocks that tile an unbounded horizon.

    Block `j > 0` is labelled by the spine node that it hangs off, which is free.
    """
    integer, dtype = geometry.int_dtype, span.dtype
    depth = geometry.depth
    doubling = np.left_shift(integer.type(1), np.arange(depth).astype(integer))
    rank = np.repeat(np.arange(order + 1), depth + 1)

    def tile(first_block, others):
        block = np.concatenate([np.array([first_block], integer), others])
        return np.tile(block, order + 1)

    starts, nodes = tile(0, doubling), tile(0, doubling[::-1])
    pieces = _dyadic(starts, tile(1, doubling), first, second)
    table = [c[rank] for c in lg.power_coefficients(order).astype(dtype)]
    total = jnp.zeros((rows, rank.size), dtype)
    at = _overlap(pieces, span, order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        own = mass * _horner(table, inner)
        total = total + _horner(_basis(rows - 1, dtype), outer[None]) * own[None]
    low, high = _words(geometry, jnp.asarray(nodes))
    used = (pieces.from_start > 0) & (pieces.to_end > 0)
    level = np.full(rank.size, -1)
    return Terms(total, low, high, rank.astype(np.uint32), used, level)


def chen_coefficients(
    start: Float[Array, " pieces"],
    length: Float[Array, " pieces"],
    span: Float[Array, ""],
    order: int,
    rows: int,
) -> Float[Array, "rows orders pieces"]:
    """Chen's relation for many pieces: `Z[m] = sum c[m, q, p] Z_piece[q, p]`.

    `Z` is over an interval of length `span`, pieces begin `start` after it begins.
    """
    dtype = span.dtype
    powers = lg.power_coefficients(order).astype(dtype)
    total = jnp.zeros((rows, order + 1, start.shape[0]), dtype)
    inside = jnp.broadcast_to(span, start.shape)  # all pieces lie in the interval
    at = _overlap(_Pieces(start, inside, inside, length), span, order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        own = _horner([c[:, None] for c in powers], inner[None])
        test = _horner(_basis(rows - 1, dtype), outer[None])
        total = total + test[:, None] * (mass[None] * own)[None]
    return total
