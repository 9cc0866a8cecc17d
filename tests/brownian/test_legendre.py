"""Algebra of Legendre moments, against closed forms, exact rationals and quadrature."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathax.brownian import _legendre as lg
from pathax.brownian._levy import from_moments


EPS = np.finfo(np.float64).eps
ORDERS = range(7)
SPLITS = st.floats(2.0**-20, 1 - 2.0**-20)

# W, H, K over a unit interval are these multiples of the normalised moments.
SCALES = np.array([1, -1 / (2 * math.sqrt(3)), 1 / (12 * math.sqrt(5))])


def _legendre(order, x):
    """Orthonormal polynomials on `[0, 1]`, stacked on the last axis."""
    basis = np.polynomial.legendre.legvander(2 * np.asarray(x) - 1, order)
    return basis * np.sqrt(2 * np.arange(order + 1) + 1)


def _quadrature(points=40):
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


# Splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@hypothesis.given(theta=SPLITS)
def test_combination_has_orthonormal_rows(order, theta):
    q = np.concatenate(lg.split_matrices(order, theta), axis=1)
    assert np.abs(q @ q.T - np.eye(order + 1)).max() < 1e-13


@pytest.mark.parametrize("order", ORDERS)
def test_midpoint_split_is_orthogonal(order):
    q = np.concatenate(lg.split_matrices(order, 0.5), axis=1)
    g = np.concatenate(lg.midpoint_filters(order), axis=1)
    full = np.concatenate([q, g])
    assert np.abs(full @ full.T - np.eye(2 * order + 2)).max() < 1e-13


@pytest.mark.parametrize("order", ORDERS)
def test_midpoint_filters_are_pinned(order):
    """One of all orthonormal bases, as another one would give another path."""
    left, _ = lg.midpoint_filters(order)
    assert np.abs(np.triu(left, 1)).max() < 1e-13
    assert np.all(np.diag(left) > 1e-5)


@hypothesis.given(theta=SPLITS)
def test_chen_relation_of_moments(theta):
    """Rows 0..3 of `L = A L' + B L''`, and `B` by reflection."""
    t = theta
    expected = np.array(
        [
            [1, 0, 0, 0],
            [t - 1, t, 0, 0],
            [(t - 1) * (2 * t - 1), 3 * t * (t - 1), t**2, 0],
            [
                (t - 1) * (5 * t**2 - 5 * t + 1),
                3 * t * (t - 1) * (3 * t - 2),
                5 * t**2 * (t - 1),
                t**3,
            ],
        ]
    )
    root = np.sqrt(2 * np.arange(4) + 1)
    left, right = lg.split_matrices(3, t)
    a = left / math.sqrt(t) * root / root[:, None]
    b = right / math.sqrt(1 - t) * root / root[:, None]
    assert np.allclose(a, expected, rtol=0, atol=1e-13)
    reflected, _ = lg.split_matrices(3, 1 - t)
    parity = (-1.0) ** np.add.outer(np.arange(4), np.arange(4))
    mirrored = parity * (reflected / math.sqrt(1 - t) * root / root[:, None])
    assert np.allclose(b, mirrored, rtol=0, atol=1e-13)


@hypothesis.given(theta=SPLITS)
def test_chen_relation_of_w_h_and_k(theta):
    """The closed forms in `W, H, K`, column by column, whatever the parts are."""
    t, s = theta, 1 - theta
    left, right = lg.split_matrices(2, t)
    got = np.concatenate(
        [  # a part of length t has moments sqrt(t) Z'
            SCALES[:, None] * left / SCALES / math.sqrt(t),
            SCALES[:, None] * right / SCALES / math.sqrt(s),
        ],
        axis=1,
    )
    expected = np.array(
        [  # W', H', K', W'', H'', K''
            [1, 0, 0, 1, 0, 0],
            [s / 2, t, 0, -t / 2, s, 0],
            [
                (1 - 2 * t) * s / 12,
                t * s / 2,
                t**2,
                -(1 - 2 * t) * t / 12,
                -t * s / 2,
                s**2,
            ],
        ]
    )
    assert np.allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2, 4])
@hypothesis.given(cuts=st.tuples(SPLITS, SPLITS))
def test_chen_relation_is_associative(order, cuts):
    """Three pieces, joined from the left and from the right."""
    first, second = cuts[0], cuts[0] + cuts[1] * (1 - cuts[0])
    hypothesis.assume(first < second < 1)
    outer, tail = lg.split_matrices(order, second)
    one, two = lg.split_matrices(order, first / second)
    left = np.concatenate([outer @ one, outer @ two, tail], axis=1)
    head, outer = lg.split_matrices(order, first)
    two, three = lg.split_matrices(order, (second - first) / (1 - first))
    right = np.concatenate([head, outer @ two, outer @ three], axis=1)
    # Ratios of lengths are themselves rounded, next to either end by the most.
    smallest = min(first, second - first, 1 - second)
    assert np.abs(left - right).max() < 1e-13 + 16 * EPS / smallest


# Conditional laws --------------------------------------------------------------------


@hypothesis.given(theta=SPLITS)
def test_conditional_means_of_w_h_and_k(theta):
    t, s = theta, 1 - theta
    left, _ = lg.split_matrices(2, t)
    mean = math.sqrt(t) * SCALES[:, None] * left.T / SCALES
    expected = [
        [t, 6 * t * s, 60 * t * s * (1 - 2 * t)],
        [0, t**2, 30 * t**2 * s],
        [0, 0, t**3],
    ]
    assert np.allclose(mean, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [0, 1, 2])
@hypothesis.given(theta=SPLITS)
def test_conditional_covariances_of_w_h_and_k(order, theta):
    t, e = theta, 1 - theta
    left, _ = lg.split_matrices(order, t)
    scales = SCALES[: order + 1]
    got = t * np.outer(scales, scales) * (np.eye(order + 1) - left.T @ left)
    if order == 0:
        expected = [[t * e]]
    elif order == 1:
        wh = -(t**3) * e / 2
        expected = [
            [t * e * (3 * t**2 - 3 * t + 1), wh],
            [wh, t * e * (1 + t + t**2) / 12],
        ]
    else:
        ww = t * e * (20 * t**4 - 40 * t**3 + 28 * t**2 - 8 * t + 1)
        wh = -(t**3) * e * (10 * t**2 - 15 * t + 6) / 2
        wk = t**4 * e * (2 * t - 1) / 12
        hh = t * e * (15 * t**4 - 15 * t**3 + t**2 + t + 1) / 12
        hk = -(t**5) * e / 24
        kk = t * e * (1 + t + t**2 + t**3 + t**4) / 720
        expected = [[ww, wh, wk], [wh, hh, hk], [wk, hk, kk]]
    assert np.allclose(got, expected, rtol=0, atol=1e-14)


def _midpoint_formulas(order):
    """`(W', ..., W'', ...)` from `(W, ..., innovations)`, and the inputs' variances."""
    if order == 0:
        return np.array([[0.5, 1], [0.5, -1]]), [1, 1 / 4]
    if order == 1:  # W, H, z, n
        rows = [[0.5, 1.5, 1, 0], [0, 0.25, -0.5, 0.5]]
        rows += [[0.5, -1.5, -1, 0], [0, 0.25, -0.5, -0.5]]
        return np.array(rows), [1, 1 / 12, 1 / 16, 1 / 12]
    left = [  # W, H, K, z, x1, x2
        [0.5, 1.5, 0, 1, 0, 0],
        [0, 0.25, 3.75, -0.5, 1, 0],
        [0, 0, 0.125, 0, -0.5, 1],
    ]
    right = [
        [0.5, -1.5, 0, -1, 0, 0],
        [0, 0.25, -3.75, -0.5, -1, 0],
        [0, 0, 0.125, 0, -0.5, -1],
    ]
    variances = [1, 1 / 12, 1 / 720, 1 / 16, 1 / 768, 1 / 2880]
    return np.array(left + right), variances


@pytest.mark.parametrize("order", [0, 1, 2])
def test_midpoint_formulas(order):
    """The published splits: the same means, and the same law of all outputs."""
    formulas, variances = _midpoint_formulas(order)
    scales, count = SCALES[: order + 1], order + 1
    outputs = np.tile(scales, 2) * math.sqrt(0.5)
    covariance = formulas * np.array(variances) @ formulas.T
    assert np.allclose(covariance, np.diag(outputs**2), rtol=0, atol=1e-15)

    q = np.concatenate(lg.split_matrices(order, 0.5), axis=1)
    means = outputs[:, None] * q.T / scales
    assert np.allclose(means, formulas[:, :count], rtol=0, atol=1e-14)
    # Hence the innovations span the same space, and have the same covariance.
    g = np.concatenate(lg.midpoint_filters(order), axis=1) * outputs
    theirs = formulas[:, count:] * np.array(variances[count:]) @ formulas[:, count:].T
    assert np.allclose(g.T @ g, theirs, rtol=0, atol=1e-15)


# Tables of coefficients --------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_gauss_is_exact(order):
    y, w = lg.gauss(order + 1)
    for degree in range(2 * order + 2):
        assert abs(np.sum(w * y**degree) - 1 / (degree + 1)) < 8 * EPS


@pytest.mark.parametrize("order", ORDERS)
def test_power_coefficients(order):
    x = np.linspace(0, 1, 23)
    powers = np.vander(2 * x - 1, order + 1, increasing=True)
    got = powers @ lg.power_coefficients(order)
    # Powers cancel: by up to (1 + sqrt 2)^n, the sum of absolute coefficients of P_n.
    assert np.abs(got - _legendre(order, x)).max() < 16 * EPS * 2.5**order


@pytest.mark.parametrize("order", ORDERS)
def test_wavelets_are_orthonormal_and_orthogonal_to_polynomials(order):
    """By quadrature over both halves, from the coefficients alone."""
    y, w = _quadrature()
    powers = np.vander(2 * y - 1, order + 1, increasing=True)
    table = lg.wavelet_coefficients(order)
    # Normalised for halves of length one, so on a node of length one by sqrt 2 less.
    values = np.stack([powers @ half for half in table]) * math.sqrt(2)
    polynomials = np.stack([_legendre(order, y / 2), _legendre(order, (1 + y) / 2)])
    gram = np.einsum("hym,y,hyn->mn", values, w / 2, values)
    overlap = np.einsum("hym,y,hyn->mn", polynomials, w / 2, values)
    assert np.abs(gram - np.eye(order + 1)).max() < 1e-13 * 2.5**order
    assert np.abs(overlap).max() < 1e-13 * 2.5**order


@pytest.mark.parametrize("order", ORDERS)
@hypothesis.given(theta=SPLITS)
def test_split_coefficients(order, theta):
    """`Q_A` as a polynomial in the split, against quadrature; `Q_B` by reflection."""
    left, right = lg.split_matrices(order, theta)
    table = lg.split_coefficients(order)
    parity = (-1.0) ** np.add.outer(np.arange(order + 1), np.arange(order + 1))

    def evaluate(t):
        powers = (2 * t - 1) ** np.arange(order + 1)
        return math.sqrt(t) * np.tensordot(powers, table, axes=1)

    assert np.abs(evaluate(theta) - left).max() < 1e-14 * 4.0**order
    assert np.abs(parity * evaluate(1 - theta) - right).max() < 1e-14 * 4.0**order


@pytest.mark.parametrize("order", ORDERS)
def test_known_moments_are_not_used_below_the_diagonal(order):
    """`P_k` has no component on the `P_q` of a part with `q > k`."""
    table = lg.split_coefficients(order)
    for k in range(order + 1):
        assert np.abs(table[:, k, k + 1 :]).max(initial=0) < 1e-12
        assert np.abs(table[k + 1 :, k]).max(initial=0) < 1e-12


# Iterated time integrals --------------------------------------------------------------


def _exact_integral_coefficients(order):
    """`(1 - x)^k / k!` in `P_n(2x - 1)`, in rational numbers."""

    def moment(j, n):  # of (1 - x)^j and P_n(2x - 1), by Rodrigues' formula
        if n > j:
            return Fraction(0)
        value = Fraction(math.factorial(j), math.factorial(j - n))
        for i in range(n + 1):
            value /= j + 1 + i
        return (-1) ** n * value

    return [
        [(2 * n + 1) * moment(k, n) / math.factorial(k) for n in range(order + 1)]
        for k in range(order + 1)
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_integral_coefficients_are_exact(order):
    exact = np.array(_exact_integral_coefficients(order), np.float64)
    got = lg.integral_coefficients(order)
    assert np.all(got[exact == 0] == 0)
    assert np.allclose(got, exact, rtol=64 * EPS, atol=4 * EPS)


def test_integral_coefficients_by_hand():
    expected = [
        [1, 0, 0, 0],
        [1 / 2, -1 / 2, 0, 0],
        [1 / 6, -1 / 4, 1 / 12, 0],
        [1 / 24, -3 / 40, 1 / 24, -1 / 120],
    ]
    assert np.allclose(lg.integral_coefficients(3), expected, rtol=0, atol=1e-15)


def _increment(h, moments, order):
    with jax.enable_x64(True):
        out = from_moments(jnp.asarray(h), jnp.asarray(moments), order)
        return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("order", [2, 4])
@hypothesis.given(start=st.floats(-2, 2), h=st.floats(0.1, 3))
def test_integrals_of_a_smooth_function(order, start, h):
    """All identities are linear, so they hold with `phi(r) dr` in place of `dW_r`."""
    x, w = _quadrature(60)
    r, end, middle = start + h * x, start + h, start + h / 2
    rate = np.cos(3 * r) + 3 * r**2
    integral = lambda r: np.sin(3 * r) / 3 + r**3
    n = np.arange(order + 1)
    moments = h * np.sum(w * rate * (_legendre(order, x) / np.sqrt(2 * n + 1)).T, -1)

    table = lg.integral_coefficients(order)
    for k in n:
        direct = h * np.sum(w * (end - r) ** k / math.factorial(k) * rate)
        assert abs(h**k * table[k] @ moments - direct) < 1e-12 * (1 + h) ** order * 30

    bridge = integral(r) - integral(start) - x * (integral(end) - integral(start))
    increment = _increment(h, moments, order)
    assert abs(increment.W - (integral(end) - integral(start))) < 1e-11
    assert abs(increment.H - np.sum(w * bridge)) < 1e-11
    assert abs(increment.K - np.sum(w * bridge * (middle - r)) / h) < 1e-11


@pytest.mark.parametrize("order", [0, 2, 5])
@hypothesis.given(theta=SPLITS)
def test_combination_of_a_smooth_function(order, theta):
    x, w = _quadrature(40)
    rate = lambda r: np.exp(r) - r

    def normalised(a, h):
        values = rate(a + h * x)
        return math.sqrt(h) * np.sum(w * values * _legendre(order, x).T, axis=1)

    left, right = lg.split_matrices(order, theta)
    joined = left @ normalised(0, theta) + right @ normalised(theta, 1 - theta)
    assert np.abs(joined - normalised(0, 1)).max() < 1e-13
