"""Conditioning, replay, and paths made of others."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.brownian import _legendre as lg


KNOTS = np.array([0.0, 0.3, 1.0, 1.25])
Tree = px.brownian.VirtualBrownianTree


def _values(key, dtype, shape=(2,)):
    return jax.random.normal(key, (KNOTS.size, *shape), dtype)


@pytest.mark.parametrize("order", [0, 2])
def test_bridge_goes_through_its_values(order, getkey, precision):
    ts = jnp.asarray(KNOTS, precision.dtype)
    values = _values(getkey(), precision.dtype)
    path = px.brownian.condition(ts, values, tol=2**-8, key=getkey(), order=order)
    evaluate = jax.jit(jax.vmap(path.evaluate))
    i, j = np.array([0, 1, 0, 1, 3, 2, 3]), np.array([1, 2, 3, 3, 3, 2, 0])
    got = evaluate(ts[i], ts[j])
    np.testing.assert_allclose(got, values[j] - values[i], atol=64 * precision.eps)


def test_law_between_knots(getkey):
    """Mean and covariance of all moments over an interval that spans knots."""
    order, (s, u) = 2, (0.1, 1.1)
    ts, values = jnp.asarray(KNOTS), _values(getkey(), jnp.float32, ())

    def sample(key):
        bridge = px.brownian.condition(ts, values, tol=2**-8, key=key, order=order)
        return bridge.moments(s, u)

    count = 40_000
    moments = jax.jit(jax.vmap(sample))(jax.random.split(getkey(), count))
    z = np.asarray(moments, np.float64) * np.sqrt(np.array([1, 3, 5]) / (u - s))
    # E[p_m on [s, u] times the first moment of a knot interval], by quadrature.
    x, w = lg.gauss(40)
    cross = np.zeros((order + 1, KNOTS.size - 1))
    for k, (a, b) in enumerate(itertools.pairwise(KNOTS)):
        low, high = max(a, s), min(b, u)
        r = (low + (high - low) * x - s) / (u - s)
        p = np.polynomial.legendre.legvander(2 * r - 1, order)
        p *= np.sqrt((2 * np.arange(order + 1) + 1) / (u - s))
        cross[:, k] = (high - low) * (w @ p) / np.sqrt(b - a)
    given = np.diff(np.asarray(values, np.float64)) / np.sqrt(np.diff(KNOTS))
    mean, covariance = cross @ given, np.eye(order + 1) - cross @ cross.T
    assert np.all(np.abs(z.mean(0) - mean) < 6 / np.sqrt(count))
    assert np.all(np.abs(np.cov(z.T) - covariance) < 6 * np.sqrt(2 / count))
    assert covariance[0, 0] < 0.9  # or the test would not see the conditioning


@pytest.mark.parametrize(
    "levy_area", [diffrax.BrownianIncrement, diffrax.SpaceTimeTimeLevyArea]
)
def test_replay_gives_back_the_record(levy_area, getkey, precision):
    tree = Tree(0.0, 1.0, 2**-10, (3,), getkey(), levy_area)
    grid = jnp.linspace(0, 1, 6)
    query = jax.jit(
        jax.vmap(lambda p, s, u: p.evaluate(s, u, use_levy=True), (None, 0, 0))
    )
    recorded = query(tree, grid[:-1], grid[1:])
    path = px.brownian.replay(
        grid, recorded, tol=2**-10, key=getkey(), levy_area=levy_area
    )
    again = query(path, grid[:-1], grid[1:])
    for x, y in zip(jax.tree.leaves(recorded), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(y, x, atol=32 * precision.eps)
    # Over several recorded intervals, all prescribed moments follow by Chen's relation.
    for x, y in zip(
        jax.tree.leaves(tree.evaluate(0.2, 0.8, use_levy=True)),
        jax.tree.leaves(path.evaluate(0.2, 0.8, use_levy=True)),
        strict=True,
    ):
        np.testing.assert_allclose(y, x, atol=64 * precision.eps)


def test_replay_takes_pytrees_and_complex_numbers(getkey):
    noise = {
        "a": jax.random.normal(getkey(), (4, 2)),
        "b": jax.random.normal(getkey(), (4,), jnp.complex64),
    }
    path = px.brownian.replay(
        jnp.linspace(0, 2, 5), noise, tol=2**-6, key=getkey(), order=1
    )
    got = path.evaluate(0.5, 1.5)
    np.testing.assert_allclose(got["a"], noise["a"][1] + noise["a"][2], atol=1e-5)
    np.testing.assert_allclose(got["b"], noise["b"][1] + noise["b"][2], atol=1e-5)


def test_gradient_with_respect_to_values(key):
    def end(values):
        path = px.brownian.condition(jnp.asarray(KNOTS), values, tol=2**-8, key=key)
        return path.evaluate(0.0, 0.5)

    gradient = jax.grad(end)(jnp.zeros(4))
    expected = np.array([-1, 1 - 0.2 / 0.7, 0.2 / 0.7, 0])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_bad_bridges(key):
    ts = jnp.asarray(KNOTS)
    with pytest.raises(ValueError, match="one entry for each time"):
        px.brownian.condition(ts, jnp.zeros(3), tol=0.1, key=key)
    with pytest.raises(ValueError, match="one entry for each interval"):
        px.brownian.replay(ts, jnp.zeros(4), tol=0.1, key=key)
    with pytest.raises(ValueError, match="increase"):
        px.brownian.condition(ts[::-1], jnp.zeros(4), tol=0.1, key=key)
    levy = diffrax.SpaceTimeTimeLevyArea(*4 * [jnp.zeros(3)])
    with pytest.raises(ValueError, match="order=2"):
        px.brownian.replay(ts, levy, tol=0.1, key=key)
    path = px.brownian.condition(ts, jnp.zeros(4), tol=0.1, key=key)
    with pytest.raises(Exception, match="outside of its knots"):
        path.evaluate(0.5, 2.0)


def test_linear_maps(getkey, precision):
    one, two = (Tree(0.0, 1.0, 2**-8, (2,), getkey(), order=1) for _ in range(2))
    a, b = one.moments(0.2, 0.7), two.moments(0.2, 0.7)
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=8 * precision.eps)
    close(px.brownian.antithetic(one).moments(0.2, 0.7), -a)
    close(px.brownian.mix(one, two, 0.6).moments(0.2, 0.7), 0.6 * a + 0.8 * b)
    factor = jnp.array([[1.0, 0.0], [0.6, 0.8], [2.0, -1.0]])
    correlated = px.brownian.correlate(one, factor)
    assert correlated.shape.shape == (3,)
    close(correlated.moments(0.2, 0.7), a @ factor.T)
    grid = jnp.linspace(0, 1, 9)
    on_grid = correlated.on_grid(grid)
    close(on_grid.evaluate(grid[2], grid[3]), correlated.evaluate(grid[2], grid[3]))


def test_bad_combinations(getkey):
    one, two = (Tree(0.0, 1.0, 0.1, (n,), getkey()) for n in (2, 3))
    with pytest.raises(ValueError, match="same shape and order"):
        px.brownian.mix(one, two, 0.5)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        px.brownian.mix(one, one, 1.5)
    with pytest.raises(ValueError, match="last axis"):
        px.brownian.correlate(one, jnp.eye(3))
    with pytest.raises(TypeError, match=r"pathax\.brownian"):
        px.brownian.antithetic(diffrax.UnsafeBrownianPath((), getkey()))


def test_antithetic_solve(key):
    """Odd functionals cancel exactly: a linear SDE with additive noise."""

    def solve(path):
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: -y),
            diffrax.ControlTerm(lambda t, y, args: jnp.ones(()), path),
        )
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0, 1, 0.1, jnp.zeros(())).ys

    path = Tree(0.0, 1.0, 2**-6, (), key)
    total = solve(path) + solve(px.brownian.antithetic(path))
    assert abs(float(total[0])) < 1e-6
