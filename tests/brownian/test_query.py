"""Coefficients of an interval's moments: linear algebra proves that the law is exact.

Moments are `Z = sum_k c_k xi_k` with i.i.d. `xi_k`, so the covariance of all moments of
all intervals is the Gram matrix of their coefficients. It is compared with the
integrals of products of Legendre polynomials over the overlaps, taken between exact
rational times.
"""

import functools as ft
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathax.brownian import _legendre as lg, _query


BATCH = 16  # intervals at a time, so that each geometry is compiled once
ORDERS = [0, 1, 2, 3, 4]

Time = tuple[int, float]  # leaf, and fraction of it
Interval = tuple[Time, Time]

# In eps. Coefficients are sums over order + 1 points of products of polynomials, each
# with a few roundings of its argument; measured errors are below a third of these.
TOLERANCE = {0: 8, 1: 24, 2: 64, 3: 128, 4: 192}


@ft.cache
def _compiled(depth: int, unbounded: bool, order: int, dtype: str, width: int = 1):
    return _expansion(_query.Geometry(depth, unbounded), order, np.dtype(dtype), width)


def _expansion(geometry, order: int, dtype: np.dtype, width: int = 1) -> Callable:
    """A function from intervals to coefficients and labels of their terms."""

    @jax.jit
    @jax.vmap
    def expand(first, second):
        terms = _query.expand(geometry, first, second, order, order + 1, dtype, width)
        out = [
            (t.coefficients, t.low, t.high, jnp.asarray(t.rank), t.used) for t in terms
        ]
        high = [jnp.zeros_like(x[1]) if x[2] is None else x[2] for x in out]
        join = lambda i: jnp.concatenate([x[i] for x in out], axis=-1)
        return join(0), join(1), jnp.concatenate(high), join(3), join(4)

    def query(intervals: list[Interval]):
        ends = []
        for side in range(2):
            leaf = np.array([i[side][0] for i in intervals], geometry.int_dtype)
            fraction = np.array([i[side][1] for i in intervals], dtype)
            ends.append(_query.Position(jnp.asarray(leaf), jnp.asarray(fraction)))
        coefficients, low, high, rank, used = map(np.asarray, expand(*ends))
        labels = np.stack([high, low, rank], axis=-1).astype(np.int64)
        return coefficients.astype(np.float64), labels, used

    return query


def _gram(coefficients, labels) -> np.ndarray:
    """Covariance of all moments, by matching labels of terms between intervals."""
    count, rows, _ = coefficients.shape
    _, place = np.unique(labels.reshape(-1, 3), axis=0, return_inverse=True)
    place = place.reshape(labels.shape[:2])
    table = np.zeros((count, rows, place.max() + 1))
    for i in range(count):
        np.add.at(table[i].T, place[i], coefficients[i].T)
    table = table.reshape(count * rows, -1)
    return table @ table.T


def _time(t: Time) -> Fraction:
    return t[0] + Fraction(float(t[1]))


def _exact_covariance(intervals: list[Interval], order: int) -> np.ndarray:
    """`E[Z_m[a, b] Z_n[c, d]]` by quadrature in float64 between rational times."""
    nodes, weights = lg.gauss(order + 2)
    count, rows = len(intervals), order + 1
    out = np.zeros((count, rows, count, rows))
    ends = [(_time(a), _time(b)) for a, b in intervals]

    def basis(a, b, low, high):
        x = float((low - a) / (b - a)) + nodes * float((high - low) / (b - a))
        values = np.polynomial.legendre.legvander(2 * x - 1, order)
        return values * np.sqrt(2 * np.arange(rows) + 1)

    for i, (a, b) in enumerate(ends):
        for j, (c, d) in enumerate(ends):
            low, high = max(a, c), min(b, d)
            if high <= low:
                continue
            mass = float((high - low) ** 2 / ((b - a) * (d - c))) ** 0.5
            left, right = basis(a, b, low, high), basis(c, d, low, high)
            out[i, :, j] = mass * np.einsum("ym,y,yn->mn", left, weights, right)
    return out.reshape(count * rows, count * rows)


# Intervals ----------------------------------------------------------------------------


@st.composite
def _intervals(draw, depth: int, dtype: str) -> list[Interval]:
    """One interval in each of the ways that an interval can lie on a tree."""
    leaves = 2**depth
    bits = np.finfo(dtype).nmant
    grain = st.integers(0, 2**bits - 1).map(lambda n: n * 2.0**-bits)
    fraction = st.one_of(st.just(0.0), st.just(0.5), st.just(1 - 2.0**-bits), grain)
    whole = st.integers(0, leaves - 1)

    def ordered(a: Time, b: Time) -> Interval:
        return (a, b) if _time(a) <= _time(b) else (b, a)

    out = []
    for kind in range(BATCH - 6):  # of any scale, from anywhere
        gap = draw(st.integers(0, 2 ** (depth * (kind + 1) // (BATCH - 6)) - 1))
        start = draw(st.integers(0, leaves - 1 - gap))
        a, b = (start, draw(fraction)), (start + gap, draw(fraction))
        out.append(ordered(a, b))
    leaf = draw(whole)
    out.append(ordered((leaf, draw(fraction)), (leaf, draw(fraction))))  # in one leaf
    out.append(((leaf, 0.0), (leaf, draw(fraction))))
    out.append(((0, draw(fraction)), (leaves - 1, 1.0)))
    out.append(((0, 0.0), (draw(whole), draw(fraction))))
    out.append(((draw(whole), draw(fraction)), (leaves - 1, 1.0)))
    level = draw(st.integers(0, depth))  # a whole node of the tree
    index = draw(st.integers(0, 2 ** (depth - level) - 1))
    end = (index + 1) << level
    whole_end = (end, 0.0) if end < leaves else (leaves - 1, 1.0)
    out.append(((index << level, 0.0), whole_end))
    return out


class Tree(NamedTuple):
    """A geometry, an order and a dtype, whose compiled expansion several tests use."""

    depth: int
    unbounded: bool
    dtype: str
    order: int

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.order] * float(np.finfo(self.dtype).eps)

    def query(self, intervals: list[Interval]):
        return _compiled(self.depth, self.unbounded, self.order, self.dtype)(intervals)


GEOMETRIES = [
    (18, False, "float32"),
    (30, True, "float32"),
    (40, False, "float64"),
    (52, True, "float64"),
]


@pytest.fixture(
    scope="module",
    params=[Tree(*x, order) for x in GEOMETRIES for order in ORDERS],
    ids=lambda t: f"{'un' * t.unbounded}bounded-{t.dtype}-{t.order}",
)
def tree(request) -> Iterator[Tree]:
    """Of module scope, so that the tests of one tree run one after another."""
    with jax.enable_x64(request.param.dtype == "float64"):
        yield request.param


@hypothesis.settings(max_examples=10)
@hypothesis.given(data=st.data())
def test_rows_are_orthonormal(tree, data):
    intervals = data.draw(_intervals(tree.depth, tree.dtype))
    coefficients, labels, used = tree.query(intervals)
    assert np.all(np.isfinite(coefficients))
    assert np.all(np.where(used[:, None], 0, coefficients) == 0)
    gram = np.einsum("imk,ink->imn", coefficients, coefficients)
    for i, (a, b) in enumerate(intervals):
        identity = np.eye(tree.order + 1) * (a != b)  # nothing happens in no time
        error = np.abs(gram[i] - identity).max()
        assert error < tree.tolerance, (a, b, error)
        # No label twice, as `_gram` would add them up but `gram` did not.
        mine = labels[i][np.any(coefficients[i] != 0, axis=0)]
        assert len(np.unique(mine, axis=0)) == len(mine)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_deepest_tree(dtype):
    """Float64 times, on a tree of 52 levels: positions are exact for float32 values."""
    order, depth = 2, 52
    start = 2**51 - 12345
    lengths = (2 ** (3 * np.arange(BATCH))).tolist()
    intervals = [((start, 0.25), (start + length, 0.625)) for length in lengths]
    with jax.enable_x64(True):
        coefficients, *_ = _compiled(depth, False, order, dtype)(intervals)
    gram = np.einsum("imk,ink->imn", coefficients, coefficients)
    error = np.abs(gram - np.eye(order + 1)).max()
    assert error < TOLERANCE[order] * np.finfo(dtype).eps


def test_far_below_a_leaf(tree):
    """Positions of far nodes in units of a tiny interval would overflow."""
    for exponent in (-10, -30, -60, -100):
        ends = [((i, 0.0), (i, 2.0**exponent)) for i in range(BATCH)]
        coefficients, *_ = tree.query(ends)
        gram = np.einsum("imk,ink->imn", coefficients, coefficients)
        assert np.abs(gram - np.eye(tree.order + 1)).max() < tree.tolerance


# The joint law ------------------------------------------------------------------------


def _random_times(rng, depth: int, count: int) -> list[Time]:
    """Times at distinct leaves, with gaps of all scales."""
    gaps = 2.0 ** rng.uniform(1, depth - np.log2(count) - 1, count)
    leaves = np.cumsum(gaps.astype(np.int64) + 1)
    leaves += rng.integers(0, 2**depth - leaves[-1])
    fractions = rng.integers(0, 2**20, count) * 2.0**-20
    fractions[rng.integers(0, count, count // 4)] = 0
    return list(zip(leaves.tolist(), fractions.tolist(), strict=True))


def _random_intervals(rng, depth: int) -> list[Interval]:
    """Adjacent ones, then overlapping and nested ones."""
    times = _random_times(rng, depth, 10)
    intervals = list(itertools.pairwise(times))
    while len(intervals) < BATCH:
        i, j = sorted(rng.integers(0, len(times), 2))
        if j > i + 1:
            intervals.append((times[i], times[j]))
    return intervals


def _joint_error(
    query: Callable, order: int, depth: int, rng, rounds: int = 8
) -> float:
    worst = 0.0
    for _ in range(rounds):
        intervals = _random_intervals(rng, depth)
        coefficients, labels, _ = query(intervals)
        difference = _gram(coefficients, labels) - _exact_covariance(intervals, order)
        worst = max(worst, float(np.abs(difference).max()))
    return worst


def test_joint_law_is_exact(tree, rng):
    assert _joint_error(tree.query, tree.order, tree.depth, rng) < tree.tolerance


def test_padding_changes_nothing(rng):
    """Unused terms that fill SIMD registers have no weight."""
    intervals = _random_intervals(rng, 18)
    plain, labels, _ = _compiled(18, False, 0, "float32")(intervals)
    padded, more_labels, used = _compiled(18, False, 0, "float32", 16)(intervals)
    assert padded.shape[-1] % 16 == 0
    assert np.all(np.where(used[:, None], 0, padded) == 0)
    assert np.array_equal(_gram(plain, labels), _gram(padded, more_labels))


# Negative controls --------------------------------------------------------------------


def _swap_halves(monkeypatch):
    original = lg.wavelet_coefficients
    monkeypatch.setattr(lg, "wavelet_coefficients", lambda n: original(n)[::-1])


def _flip_half_a_wavelet(monkeypatch):
    original = lg.wavelet_coefficients
    signs = np.array([1.0, -1.0])[:, None]

    def mutated(order):
        table = original(order).copy()
        table[:, :, 0] *= signs
        return table

    monkeypatch.setattr(lg, "wavelet_coefficients", mutated)


def _flip_a_whole_wavelet(monkeypatch):
    original = lg.wavelet_coefficients
    sign = lambda order: np.where(np.arange(order + 1) == 0, -1.0, 1.0)
    monkeypatch.setattr(
        lg, "wavelet_coefficients", lambda order: original(order) * sign(order)
    )


def _drop_the_leaves(monkeypatch):
    original = _query._leaves

    def mutated(*args):
        terms = original(*args)
        return terms._replace(coefficients=0 * terms.coefficients)

    monkeypatch.setattr(_query, "_leaves", mutated)


def _forget_what_is_known(monkeypatch):
    original = lg.split_coefficients
    monkeypatch.setattr(lg, "split_coefficients", lambda order: 0 * original(order))


def _share_labels_of_siblings(monkeypatch):
    original = _query._words

    def mutated(geometry, node):
        return original(geometry, jnp.where(node > 1, node & ~1, node))

    monkeypatch.setattr(_query, "_words", mutated)


MUTATIONS = [
    _swap_halves,
    _flip_half_a_wavelet,
    _drop_the_leaves,
    _forget_what_is_known,
    _share_labels_of_siblings,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_wrong_variants_have_another_law(mutate, monkeypatch, rng):
    mutate(monkeypatch)
    query = _expansion(_query.Geometry(18, False), 1, np.dtype(np.float32))
    assert _joint_error(query, 1, 18, rng) > 1e-2


def test_another_basis_has_the_same_law(monkeypatch, rng):
    """The sign of a whole wavelet is a convention, and no error."""
    _flip_a_whole_wavelet(monkeypatch)
    query = _expansion(_query.Geometry(18, False), 1, np.dtype(np.float32))
    assert _joint_error(query, 1, 18, rng) < TOLERANCE[1] * np.finfo(np.float32).eps


# Chen's relation ----------------------------------------------------------------------

_chen = jax.jit(_query.chen_coefficients, static_argnums=(3, 4))


def test_chen_relation(tree, rng):
    """Coefficients of `[a, c]` are those of `[a, b]` and `[b, c]`, combined."""
    times = _random_times(rng, tree.depth, 15)
    triples = [times[i : i + 3] for i in range(0, 15, 3)]
    intervals = [x for a, b, c in triples for x in ((a, c), (a, b), (b, c))]
    coefficients, labels, _ = tree.query([*intervals, intervals[0]])
    _, place = np.unique(labels.reshape(-1, 3), axis=0, return_inverse=True)
    place = place.reshape(labels.shape[:2])
    for i, (a, b, c) in enumerate(triples):
        start, middle, end = map(_time, (a, b, c))
        lengths = [float(middle - start), float(end - middle)]
        chen = _chen(
            jnp.asarray([0.0, lengths[0]], tree.dtype),
            jnp.asarray(lengths, tree.dtype),
            jnp.asarray(float(end - start), tree.dtype),
            tree.order,
            tree.order + 1,
        )
        dense = np.zeros((3, tree.order + 1, place.max() + 1))
        for part in range(3):
            at = 3 * i + part
            np.add.at(dense[part].T, place[at], coefficients[at].T)
        joined = np.einsum("mqp,pqk->mk", np.asarray(chen, np.float64), dense[1:])
        assert np.abs(joined - dense[0]).max() < tree.tolerance


@pytest.mark.parametrize("order", ORDERS)
@hypothesis.given(theta=st.floats(2.0**-10, 1 - 2.0**-10))
@hypothesis.settings(max_examples=10)
def test_chen_coefficients_are_the_split_matrices(order, theta):
    with jax.enable_x64(True):
        got = _chen(
            jnp.asarray([0.0, theta]),
            jnp.asarray([theta, 1 - theta]),
            jnp.asarray(1.0),
            order,
            order + 1,
        )
        got = np.asarray(got)
    expected = np.stack(lg.split_matrices(order, theta), axis=-1)
    assert np.abs(got - expected).max() < TOLERANCE[order] * np.finfo(np.float64).eps
