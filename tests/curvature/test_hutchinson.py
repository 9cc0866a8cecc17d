"""Hutchinson's estimate: its law, its options, and the fused form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pathax import curvature


SIZE = 5


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    """A symmetric matrix with a diagonal of either sign."""
    a = np.random.default_rng(3).normal(size=(SIZE, SIZE))
    return a + a.T


@pytest.fixture(scope="module")
def estimates(matrix):
    """`estimates(distribution, seed, n)`: that many independent estimates."""

    def sample(distribution, keys):
        h = jnp.asarray(matrix, jnp.float32)
        loss = lambda p: p @ h @ p / 2
        one = lambda key: curvature.hutchinson_diagonal(
            loss, jnp.ones(SIZE), key, distribution=distribution
        )
        return jax.vmap(one)(keys)

    compiled = jax.jit(sample, static_argnums=0)

    def draw(distribution: str, seed: int, n: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), n)
        return np.asarray(compiled(distribution, keys), np.float64)

    return draw


def _variance(matrix: np.ndarray, distribution: str) -> np.ndarray:
    own = np.diag(matrix) ** 2
    others = np.sum(matrix**2, axis=1) - own
    return others if distribution == "rademacher" else others + 2 * own


def _check_law(sample, matrix, distribution):
    n, variance = len(sample), _variance(matrix, distribution)
    deviation = np.abs(sample.mean(axis=0) - np.diag(matrix))
    assert np.all(deviation < 5 * np.sqrt(variance / n))
    centered = (sample - np.diag(matrix)) ** 2
    spread = 5 * centered.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(centered.mean(axis=0) - variance) < spread)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_mean_and_variance(distribution, estimates, matrix, seed):
    _check_law(estimates(distribution, seed, 20_000), matrix, distribution)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_mean_and_variance_of_many(distribution, estimates, matrix, seed):
    _check_law(estimates(distribution, seed, 400_000), matrix, distribution)


def test_the_law_has_power(estimates, matrix, seed):
    """Normal vectors fail the test for signs, in their variance."""
    sample = estimates("normal", seed, 20_000)
    with pytest.raises(AssertionError):
        _check_law(sample, matrix, "rademacher")


def test_one_sample_is_exact_for_a_diagonal_hessian(precision, key):
    scale = jnp.asarray([1.0, -3.0, 0.5], precision.dtype)
    loss = lambda p: jnp.sum(scale * p["a"] ** 2) + p["b"] ** 3
    b = jnp.asarray(2.0, precision.dtype)
    params = {"a": jnp.ones(3, precision.dtype), "b": b, "absent": None}
    diag = jax.jit(lambda key: curvature.hutchinson_diagonal(loss, params, key))(key)
    np.testing.assert_array_equal(diag["a"], 2 * scale)
    np.testing.assert_array_equal(diag["b"], 12)
    assert diag["a"].dtype == precision.dtype
    assert diag["absent"] is None


def _quartic(dtype):
    """A loss whose Hessian is dense, at a point."""
    w = jnp.asarray([[1.0, 0.5, -1.0], [0.3, 2.0, 0.7]], dtype)
    return lambda p: jnp.sum((w @ p) ** 4), jnp.asarray([0.4, -0.2, 1.1], dtype)


def test_modes_and_samples_agree(precision, key):
    loss, x = _quartic(precision.dtype)
    diag = lambda key, **kw: curvature.hutchinson_diagonal(loss, x, key, **kw)

    def all_modes(key):
        each = jax.vmap(diag)(jax.random.split(key, 3))
        return (
            jnp.mean(each, axis=0),
            jnp.mean(jnp.abs(each), axis=0),
            diag(key, num_samples=3),
            diag(key, num_samples=3, hvp_mode="rev_over_rev"),
            diag(key, num_samples=3, hvp_mode="finite_diff"),
            diag(key, num_samples=3, hvp_mode="forward_diff"),
            diag(key, num_samples=3, absolute=True),
        )

    mean, moduli, *modes, absolute = map(np.asarray, jax.jit(all_modes)(key))
    scale = np.max(moduli)
    coarse = 1e-5 if precision.eps < 1e-10 else 1e-2
    exact = precision.tolerance(100)
    limits = exact, exact, coarse, 10 * precision.eps**0.5
    for found, limit in zip(modes, limits, strict=True):
        assert np.max(np.abs(found - mean)) <= limit * scale
    assert np.max(np.abs(absolute - moduli)) <= precision.tolerance(100) * scale


def test_differences_from_a_known_gradient(key):
    """As without it, and with one gradient instead of two; complex leaves too."""
    loss, x = _quartic(np.float32)
    params = {"x": x, "z": jax.lax.complex(x, -2 * x), "absent": None}
    calls = []

    def whole(p):
        calls.append(0)
        return loss(p["x"]) + jnp.sum(jnp.abs(p["z"]) ** 4 * p["x"])

    diag = partial(
        curvature.hutchinson_diagonal, whole, params, key, hvp_mode="forward_diff"
    )
    alone = jax.jit(diag)()
    before = len(calls)
    grads = jax.jit(jax.grad(whole))(params)
    found = jax.jit(lambda grads: diag(grads=grads))(grads)
    assert (before, len(calls)) == (2, 4)
    assert found["absent"] is None
    for name in ("x", "z"):
        pair = np.asarray(found[name]), np.asarray(alone[name])
        np.testing.assert_allclose(*pair, atol=1e-3 * np.abs(pair[1]).max(), rtol=0)
    with pytest.raises(ValueError, match="must be a tree like the parameters"):
        diag(grads=x)
    with pytest.raises(ValueError, match="which does not use them"):
        curvature.hutchinson_diagonal(whole, params, key, grads=grads)


@pytest.mark.parametrize("mode", ["fwd_over_rev", "finite_diff", "forward_diff"])
def test_value_gradient_and_diagonal(mode, precision, key):
    """Each as by itself; complex gradients as `jax.grad` returns them."""
    loss, x = _quartic(precision.dtype)
    z = jax.lax.complex(x, -2 * x)
    params = {"x": x, "z": z}
    whole = lambda p: loss(p["x"]) + jnp.sum(jnp.abs(p["z"]) ** 4 * p["x"])

    def both(key):
        fused = curvature.value_grad_and_hutchinson(
            lambda p: (whole(p), p["x"]), params, key, hvp_mode=mode, has_aux=True
        )
        apart = jax.value_and_grad(whole)(params)
        diag = curvature.hutchinson_diagonal(whole, params, key, hvp_mode=mode)
        return fused, apart, diag

    fused, (value, grads), diag = jax.jit(both)(key)
    (fused_value, aux), fused_grads, fused_diag = fused
    np.testing.assert_array_equal(aux, x)
    limit = precision.tolerance(100)
    np.testing.assert_allclose(fused_value, value, rtol=limit)
    pairs = [(fused_grads, grads), (fused_diag, diag)]
    for found, expected in pairs:
        for name in params:
            scale = np.max(np.abs(expected[name]))
            gap = np.max(np.abs(found[name] - expected[name]))
            # Differences of gradients round differently in another program.
            loose = mode == "finite_diff" and expected is diag
            assert gap <= (limit / precision.eps ** (1 / 3) if loose else limit) * scale


def test_complex_leaves_hold_both_coordinates(key):
    """`Re(z)^2 + 3 Im(z)^2` has the diagonal `2, 6`."""
    loss = lambda z: jnp.sum(jnp.real(z) ** 2 + 3 * jnp.imag(z) ** 2)
    z = jnp.asarray([1.0 + 2j, -1.0 + 0j], jnp.complex64)
    diag = curvature.hutchinson_diagonal(loss, z, key)
    np.testing.assert_array_equal(diag, [2 + 6j, 2 + 6j])


def test_half_precision_adds_up_in_single(key):
    x = jnp.ones(2, jnp.bfloat16)
    diag = curvature.hutchinson_diagonal(lambda p: jnp.sum(p**2), x, key)
    assert diag.dtype == jnp.float32


@pytest.mark.parametrize("check_vma", [True, False])
def test_mean_over_devices(check_vma, devices, key, rng):
    """Local losses give the diagonal of the global one, before a modulus is taken."""
    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    w = jnp.asarray([0.3, -0.5, 1.0])
    loss = lambda w, x: jnp.mean(jnp.sin(x @ w))

    def sharded(w, x):
        return curvature.value_grad_and_hutchinson(
            lambda w: loss(w, x), w, key, absolute=True, axis_name="devices"
        )

    mapped = jax.shard_map(
        sharded,
        mesh=devices,
        in_specs=(P(), P("devices")),
        out_specs=P(),
        check_vma=check_vma,
    )
    found = jax.jit(mapped)(w, x)
    expected = curvature.value_grad_and_hutchinson(
        lambda w: loss(w, x), w, key, absolute=True
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_wrong_choices_are_errors(key):
    estimate = lambda **kw: curvature.hutchinson_diagonal(
        jnp.sum, jnp.ones(2), key, **kw
    )
    with pytest.raises(ValueError, match="no distribution 'uniform'"):
        estimate(distribution="uniform")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        estimate(num_samples=0)
    with pytest.raises(ValueError, match="no mode 'exact'"):
        estimate(hvp_mode="exact")


def test_new_keys_and_points_do_not_retrace(no_retrace, key, getkey):
    estimate = lambda p, key: curvature.hutchinson_diagonal(
        lambda p: jnp.sum(p**4), p, key, num_samples=2
    )
    no_retrace(estimate, (jnp.ones(2), key), (jnp.zeros(2), getkey()))
