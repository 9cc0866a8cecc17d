"""The Lévy area between components: law, additivity, and what it buys a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


Tree = px.brownian.VirtualBrownianTree


def _areas(key, paths, order, pieces, **kwargs):
    """Areas and increments over `[0.2, 0.7]` with `pieces`, and with many."""

    def one(key):
        tree = Tree(0.0, 1.0, 2**-12, (2,), key, order=order)
        fine = tree.space_space_area(0.2, 0.7, pieces=64)
        if kwargs:
            kwargs["key"] = jax.random.fold_in(key, 7)
        rough = tree.space_space_area(0.2, 0.7, pieces=pieces, **kwargs)
        return rough[0, 1], fine[0, 1], tree.evaluate(0.2, 0.7)

    out = jax.jit(jax.vmap(one))(jax.random.split(key, paths))
    return [np.asarray(x, np.float64) for x in out]


@pytest.mark.parametrize(("order", "pieces"), [(0, 1), (1, 1), (3, 1), (1, 4)])
def test_residual_variance(order, pieces, key):
    """Var(A - A_N) = h^2 / (4 (2N + 1)), on each of the pieces."""
    paths, h = 4000, 0.5
    rough, fine, w = _areas(key, paths, order, pieces)
    left_out = lambda m: h**2 / (4 * m * (2 * order + 1))
    expected = left_out(pieces) - left_out(64)
    residual = fine - rough
    # The residual has fatter tails than a normal variable: kurtosis up to 6 at N = 0.
    spread = 5 * np.sqrt(6 / paths)
    assert abs(residual.var() / expected - 1) < 6 * spread / 5
    assert abs(np.var(fine) / (h**2 / 4 - left_out(64)) - 1) < 6 * spread / 5
    for other in (*w.T, rough):
        bound = 6 * np.sqrt(expected * np.var(other) / paths)
        assert abs(np.mean(residual * other)) <= 2 * bound


def test_tail_restores_the_variance(key):
    rough, _, w = _areas(key, 8000, 1, 1, tail="moment")
    h = 0.5
    assert abs(rough.var() / (h**2 / 4) - 1) < 6 * np.sqrt(5 / 8000)
    assert np.all(np.abs(rough @ w / 8000) < 6 * np.sqrt(h**3 / 4 / 8000) * 1.5)


def test_tail_in_half_precision(key):
    shape = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    tree = Tree(0.0, 1.0, 2**-8, shape, key, order=1)
    area = tree.space_space_area(0.1, 0.6, tail="moment", key=key)
    assert area.dtype == jnp.bfloat16
    assert bool(jnp.all(area == -area.T))


def test_chen_defect_is_what_the_residuals_predict(key):
    """`A[s,u] - (A[s,r] + A[r,u] + W ^ W / 2)` has the variance of the truncations."""
    order, paths, (s, r, u) = 1, 8000, (0.1, 0.35, 0.8)

    def defect(key):
        tree = Tree(0.0, 1.0, 2**-12, (2,), key, order=order)
        area = lambda a, b: tree.space_space_area(a, b)[0, 1]
        x, y = tree.evaluate(s, r), tree.evaluate(r, u)
        joined = area(s, r) + area(r, u) + (x[0] * y[1] - x[1] * y[0]) / 2
        return area(s, u) - joined

    out = np.asarray(jax.jit(jax.vmap(defect))(jax.random.split(key, paths)))
    left_out = lambda h: h**2 / (4 * (2 * order + 1))
    expected = left_out(u - s) - left_out(r - s) - left_out(u - r)
    assert abs(np.var(out) / expected - 1) < 6 * np.sqrt(6 / paths)


def test_antisymmetric_and_oriented(key, precision):
    shape = {
        "x": jax.ShapeDtypeStruct((3,), precision.dtype),
        "y": jax.ShapeDtypeStruct((2, 2), precision.dtype),
    }
    tree = Tree(0.0, 1.0, 2**-8, shape, key, order=2)
    area = tree.space_space_area(0.1, 0.6, pieces=2)
    assert area["x"].shape == (3, 3)
    assert area["y"].shape == (2, 2, 2)
    back = tree.space_space_area(0.6, 0.1, pieces=2)
    for x, y in zip(jax.tree.leaves(area), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(x, -jnp.swapaxes(x, -1, -2))
        np.testing.assert_allclose(y, -x, atol=32 * precision.eps)


def test_bad_areas(key):
    tree = Tree(0.0, 1.0, 2**-8, (2,), key, order=1)
    with pytest.raises(ValueError, match="order=5"):
        tree.space_space_area(0.0, 1.0, 5)
    with pytest.raises(ValueError, match="pieces"):
        tree.space_space_area(0.0, 1.0, pieces=0)
    with pytest.raises(ValueError, match="go together"):
        tree.space_space_area(0.0, 1.0, tail="moment")
    shape = jax.ShapeDtypeStruct((2,), jnp.complex64)
    with pytest.raises(ValueError, match="real components"):
        Tree(0.0, 1.0, 2**-8, shape, key).space_space_area(0.0, 1.0)
    with pytest.raises(ValueError, match=r"shape=\(d,\)"):
        Tree(0.0, 1.0, 2**-8, (), key).space_space_area(0.0, 1.0)


A = 1.2 * np.array([[0.0, 1.0], [-1.0, 0.0]], np.float32)
B = 0.8 * np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)


def _log_ode(tree, steps, pieces, terms):
    """`dX = A X o dW_1 + B X o dW_2` on `[0, 1]` by the log-ODE method, `steps` steps.

    `X' = exp(W_1 A + W_2 B + A_12 (B A - A B)) X`; the matrices don't commute.
    """
    ts = jnp.arange(steps + 1, dtype=jnp.float32) / steps

    def step(x, interval):
        s, u = interval
        w = tree.evaluate(s, u)
        area = tree.space_space_area(s, u, terms, pieces=pieces)[0, 1]
        generator = w[0] * A + w[1] * B + area * (B @ A - A @ B)
        return jax.scipy.linalg.expm(generator, max_squarings=4) @ x, None

    return jax.lax.scan(step, jnp.array([1.0, 0.5]), (ts[:-1], ts[1:]))[0]


def strong_errors(key, paths, counts, area: bool):
    """RMS errors at time 1 against a much finer solution on the same paths."""

    def one(key):
        tree = Tree(0.0, 1.0, 2**-16, (2,), key, order=1)
        exact = _log_ode(tree, 4 * counts[-1], 2 * counts[-1], 1)
        errors = [
            jnp.sum((_log_ode(tree, n, n if area else 1, int(area)) - exact) ** 2)
            for n in counts
        ]
        return jnp.stack(errors)

    squares = jax.jit(jax.vmap(one))(jax.random.split(key, paths))
    return np.sqrt(np.asarray(squares, np.float64).mean(0))


@pytest.mark.slow
def test_log_ode_reaches_strong_order_one(key):
    counts = (4, 8, 16, 32)
    slope = lambda e: -np.polyfit(np.log2(counts), np.log2(e), 1)[0]
    with_area = strong_errors(key, 600, counts, True)
    without = strong_errors(key, 600, counts, False)
    assert abs(slope(with_area) - 1) < 0.15, with_area
    assert abs(slope(without) - 0.5) < 0.15, without
