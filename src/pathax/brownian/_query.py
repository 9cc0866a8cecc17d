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

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from . import _legendre as lg
from ._overlap import (
    AnyArray,
    Length,
    Pieces,
    basis,
    horner,
    inverse,
    lengths,
    overlap,
    padded,
)


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
    cuts = _cuts(first, second, span, gap, order)
    terms = [
        _nodes(geometry, first, second, cuts.span, order, rows, width),
        _leaves(geometry, first, second, cuts, order, rows, width),
    ]
    if geometry.unbounded:
        terms.append(_blocks(geometry, first, second, cuts.span, order, rows))
    return terms


def _words(
    geometry: Geometry, node: Int[Array, " terms"]
) -> tuple[UInt32[Array, " terms"], UInt32[Array, " terms"] | None]:
    if not geometry.is_deep:
        return node.astype(jnp.uint32), None
    return (node & 0xFFFFFFFF).astype(jnp.uint32), (node >> 32).astype(jnp.uint32)


def _dyadic(
    start: AnyArray, length: AnyArray, first: Position, second: Position
) -> Pieces:
    """Pieces that begin at whole leaves and are whole leaves long."""
    dtype = first.fraction.dtype
    return Pieces(
        jnp.asarray(start - first.leaf).astype(dtype) - first.fraction,
        jnp.asarray(start + length - first.leaf).astype(dtype) - first.fraction,
        (second.leaf - start).astype(dtype) + second.fraction,
        lengths(jnp.asarray(length).astype(dtype)),
    )


def _nodes(
    geometry: Geometry,
    first: Position,
    second: Position,
    span: Length,
    order: int,
    rows: int,
    width: int,
) -> Terms:
    """Nodes above the leaves: the path to the first time, then that to the second.

    A bounded tree's root vector comes first, as the innovation of a node one level up
    whose first half is the whole tree and whose wavelets are the `p_n` there.
    """
    depth, integer, dtype = geometry.depth, geometry.int_dtype, span.value.dtype
    top = depth if geometry.unbounded else depth + 1
    path = np.arange(top, 0, -1)
    slots = np.concatenate([path, np.arange(depth - 1, 0, -1)]).astype(integer)
    rank = padded(np.repeat(np.arange(order + 1), slots.size), width)
    heights = padded(np.tile(slots, order + 1), width)
    is_second = np.arange(slots.size) >= path.size
    is_second = padded(np.tile(is_second, order + 1), width)
    table = padded(_node_functions(geometry, slots, order, dtype), width)
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
        at = overlap(pieces, span, order + 1)
        for outer, inner, mass in zip(*at, strict=True):
            wavelet = mass * horner(list(table[side]), inner)
            test = horner(basis(rows - 1, dtype), outer[None])
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
    """A leaf (or what is left of it) that is cut at a time, and its part in `[a, b]`.

    Lengths in leaves.
    """

    cut: Array  # from the start of what is cut
    parent: Array  # length of what is cut
    start: Array  # of the part that meets [a, b], after a
    length: Array  # of that part
    offset: Array  # of that part in the parent


class _Factors(NamedTuple):
    """What divisions and roots make of a leaf."""

    theta: Array  # where the cut is, as a fraction; 1 if nothing is cut
    per_parent: Array
    per_length: Array
    root_per_length: Array
    shrink0: Array  # root of (part 0 / parent) (part in [a, b] / parent)
    shrink1: Array  # the same of part 1


def _cut_leaves(
    first: Position, second: Position, span: Array, gap: Array
) -> tuple[_Leaf, _Leaf]:
    """When both times are in one leaf, the second cuts what the first left over."""
    same_leaf = first.leaf == second.leaf
    zero, one, rest = jnp.zeros_like(span), jnp.ones_like(span), 1 - first.fraction
    remainder = jnp.where(same_leaf, rest, 1)
    length = jnp.where(same_leaf, gap, second.fraction)
    start = jnp.where(same_leaf, 0, span - length)
    return (
        _Leaf(first.fraction, one, zero, rest, first.fraction),
        _Leaf(length, remainder, start, length, zero),
    )


class _Cuts(NamedTuple):
    """Both leaves, and the interval itself."""

    leaves: tuple[_Leaf, _Leaf]
    span: Length
    factors: tuple[_Factors, _Factors] | None  # of the leaves, if known already


def _one_by_one(function, values: list[Array]) -> list[Array]:
    return [function(x) for x in values]


def _at_once(function, values: list[Array]) -> list[Array]:
    return list(function(jnp.stack(values)))


def _factors(leaves: list[_Leaf], span: Array, each) -> tuple[list[_Factors], Length]:
    """All divisions and roots that a query takes."""
    values = [x for leaf in leaves for x in (leaf.parent, leaf.length)]
    per_span, *inverses = each(inverse, [span, *values])
    thetas, squares = [], []
    for leaf, per_parent, per_length in zip(
        leaves, inverses[::2], inverses[1::2], strict=True
    ):
        theta = jnp.where(leaf.cut < leaf.parent, leaf.cut * per_parent, 1)
        share = leaf.length * per_parent
        thetas.append(theta)
        squares += [per_length, theta * share, (1 - theta) * share]
    root_per_span, *roots = each(jnp.sqrt, [per_span, *squares])
    parts = (
        thetas,
        inverses[::2],
        inverses[1::2],
        roots[::3],
        roots[1::3],
        roots[2::3],
    )
    factors = [_Factors(*x) for x in zip(*parts, strict=True)]
    return factors, Length(span, per_span, root_per_span)


def _cuts(
    first: Position, second: Position, span: Array, gap: Array, order: int
) -> _Cuts:
    """From order 1 on, divisions and roots are taken together, of a few scalars.

    Each would be a kernel of its own, and launching that takes longer than running it.
    At order 0 the compiler makes one kernel of the whole query, which this would break.
    """
    leaves = _cut_leaves(first, second, span, gap)
    if order == 0:
        return _Cuts(leaves, lengths(span), None)
    factors, whole = _factors(list(leaves), span, _at_once)
    return _Cuts(leaves, whole, (factors[0], factors[1]))


def _of_terms(cuts: _Cuts, is_second: np.ndarray) -> tuple[_Leaf, _Factors]:
    """The leaf of each term."""

    def select(x, y):
        return jnp.where(is_second, y, x)

    leaf = _Leaf(*map(select, *cuts.leaves))
    if cuts.factors is None:
        return leaf, _factors([leaf], cuts.span.value, _one_by_one)[0][0]
    return leaf, _Factors(*map(select, *cuts.factors))


def _leaves(
    geometry: Geometry,
    first: Position,
    second: Position,
    cuts: _Cuts,
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
    indices = np.indices((order + 1, 2, 2)).reshape(3, -1)
    function, which, part = padded(indices, width)
    real = np.arange(function.size) < indices.shape[1]
    is_second = which == 1
    leaf, factors = _of_terms(cuts, is_second)
    index = (function, which, part)
    coefficients = _residual(leaf, factors, index, cuts.span, order, rows)
    used = jnp.asarray(real) & (factors.theta > 0) & (factors.theta < 1)
    coefficients = jnp.where(used[None], coefficients, 0)

    low, high = _words(
        geometry,
        jnp.where(is_second, second.leaf, first.leaf) + (1 << geometry.depth),
    )
    same_leaf = first.leaf == second.leaf
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
    factors: _Factors,
    index: tuple[np.ndarray, np.ndarray, np.ndarray],
    span: Length,
    order: int,
    rows: int,
) -> Float[Array, "rows terms"]:
    """`<p_m, (1 - Pi) p_q>` for the white noise of both parts of a split leaf.

    `Pi` projects on the polynomials of the whole parent, whose moments are known. It
    needs `Q[k, q] = <p_k of the parent, p_q of the part>`, for the second part by
    reflection of the first.
    """
    dtype, (function, which, part) = span.value.dtype, index
    free = np.where(which != part, 1.0, 0.0).astype(dtype)  # the part meets [a, b]
    fraction = jnp.where(part == 1, 1 - factors.theta, factors.theta)
    filters = lg.split_coefficients(order).astype(dtype)  # (powers, k, q)
    powers = lg.power_coefficients(order).astype(dtype)  # (powers, q)
    own = [c[function] * free for c in powers]
    shrink = jnp.where(part == 1, factors.shrink1, factors.shrink0)
    known = []
    for k in range(order + 1):
        parity = np.where(part == 1, (-1.0) ** (k + function), 1.0).astype(dtype)
        table = [parity * c[k][function] for c in filters[: k + 1]]
        known.append(shrink * horner(table, 2 * fraction - 1))

    total = jnp.zeros((rows, function.size), dtype)
    # The part ends inside of [a, b], or the interval ends inside of the part.
    to_end = jnp.where(which == 1, span.value, leaf.length)
    from_start = jnp.where(which == 1, leaf.length, span.value)
    length = Length(leaf.length, factors.per_length, factors.root_per_length)
    pieces = Pieces(leaf.start, to_end, from_start, length)
    at = overlap(pieces, span, order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        place = (leaf.offset + (inner + 1) / 2 * leaf.length) * factors.per_parent
        wavelet = horner(own, inner)
        for k in range(order + 1):
            whole = horner([c[k] for c in powers[: k + 1]], 2 * place - 1)
            wavelet = wavelet - known[k] * whole
        test = horner(basis(rows - 1, dtype), outer[None])
        total = total + test * (mass * wavelet)[None]
    return total


def _blocks(
    geometry: Geometry,
    first: Position,
    second: Position,
    span: Length,
    order: int,
    rows: int,
) -> Terms:
    """Root vectors of the blocks that tile an unbounded horizon.

    Block `j > 0` is labelled by the spine node that it hangs off, which is free.
    """
    integer, dtype = geometry.int_dtype, span.value.dtype
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
    at = overlap(pieces, span, order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        own = mass * horner(table, inner)
        total = total + horner(basis(rows - 1, dtype), outer[None]) * own[None]
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
    pieces = Pieces(start, inside, inside, lengths(length))
    at = overlap(pieces, lengths(span), order + 1)
    for outer, inner, mass in zip(*at, strict=True):
        own = horner([c[:, None] for c in powers], inner[None])
        test = horner(basis(rows - 1, dtype), outer[None])
        total = total + test[:, None] * (mass[None] * own)[None]
    return total
