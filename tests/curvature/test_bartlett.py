"""The Gauss-Newton-Bartlett estimate has the Gauss-Newton diagonal as its mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pathax import curvature


NAMES = ("categorical", "bernoulli", "gaussian")
SAMPLES = 20_000


@pytest.fixture(scope="module")
def problem():
    """Outputs of shape `(2, 3, 4)`: batch, sequence, classes; and the parameters."""
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    return lambda w: jnp.tanh(x @ w), w


def _exact(predict, w, name, **keywords) -> np.ndarray:
    product = curvature.ggn_mvp(predict, w, name, **keywords)
    basis = jnp.eye(w.size).reshape(w.size, *w.shape)
    columns = jax.jit(jax.vmap(product))(basis)
    return np.diag(np.asarray(columns).reshape(w.size, w.size))


@pytest.fixture(scope="module")
def draw(problem):
    """Many independent estimates for a likelihood and options."""
    predict, w = problem

    def run(name: str, seed: int, **keywords) -> np.ndarray:
        one = lambda key: curvature.gauss_newton_bartlett_diagonal(
            predict, w, key, likelihood=name, **keywords
        )
        keys = jax.random.split(jax.random.key(seed), SAMPLES)
        return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64).reshape(SAMPLES, -1)

    return run


def _check_mean(sample, expected):
    error = sample.std(axis=0) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(axis=0) - expected) < 5 * error)


@pytest.mark.parametrize("name", NAMES)
def test_mean_is_the_gauss_newton_diagonal(name, problem, draw, seed):
    """And the squared gradient without the count is not."""
    sample, expected = draw(name, seed), _exact(*problem, name)
    assert np.all(sample >= 0)
    _check_mean(sample, expected)
    with pytest.raises(AssertionError):
        _check_mean(sample / 6, expected)


def test_clipped_gradients_fail_that_test(problem, draw, seed):
    """As in the authors' training code, where the norm is often above the limit."""
    sample = draw("categorical", seed, clip_norm=0.2)
    with pytest.raises(AssertionError):
        _check_mean(sample, _exact(*problem, "categorical"))


def test_masked_terms_do_not_count(problem, draw, seed):
    mask = jnp.asarray([[1, 1, 0], [1, 0, 0]])
    sample = draw("categorical", seed, mask=mask)
    _check_mean(sample, _exact(*problem, "categorical", mask=mask))


def test_samples_of_labels_are_averaged(precision, key):
    """And a likelihood that is written out gives the numbers of the named one."""
    x = jnp.asarray(np.linspace(-1, 1, 12).reshape(2, 3, 2), precision.dtype)
    w = jnp.asarray([[0.5, -1.0], [2.0, 0.0]], precision.dtype)
    written = curvature.Likelihood(
        sample=lambda key, f: f + jax.random.normal(key, f.shape, f.dtype),
        loss=lambda f, y: jnp.sum((f - y) ** 2, axis=-1) / 2,
    )

    def run(key):
        estimate = lambda key, likelihood="gaussian", num_samples=1: (
            curvature.gauss_newton_bartlett_diagonal(
                lambda w: x @ w, w, key, likelihood=likelihood, num_samples=num_samples
            )
        )
        apart = jax.vmap(estimate)(jax.random.split(key, 3))
        return apart, estimate(key, num_samples=3), estimate(key, written, 3)

    apart, together, custom = jax.jit(run)(key)
    assert together.dtype == precision.dtype
    limit = precision.tolerance(50)
    np.testing.assert_allclose(together, np.mean(apart, axis=0), rtol=limit)
    np.testing.assert_allclose(custom, together, rtol=limit)


def test_complex_leaves_hold_both_coordinates(seed):
    """`f = Re(a z)`: the Gauss-Newton diagonal is `|Re a|^2, |Im a|^2`."""
    a = jnp.asarray([[1.0 + 2j, 3.0 - 1j]], jnp.complex64)
    z = jnp.asarray([0.5 + 0.5j, -1.0 + 0j], jnp.complex64)
    diag = curvature.gauss_newton_bartlett_diagonal(
        lambda z: jnp.real(a @ z),
        z,
        jax.random.key(seed),
        likelihood="gaussian",
        num_samples=4000,
    )
    found = np.concatenate([diag.real, diag.imag])
    # A chi-square with one degree of freedom has the standard deviation sqrt(2).
    np.testing.assert_allclose(found, [1, 9, 4, 1], rtol=5 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("check_vma", [True, False])
def test_batch_over_devices(check_vma, devices, seed):
    """Gradients are averaged before they are squared, labels differ by shard."""
    x = jnp.asarray(np.linspace(0.5, 2.0, 8), jnp.float32)[:, None]
    w = jnp.asarray([0.3])

    def sharded(x, keys):
        one = lambda key: curvature.gauss_newton_bartlett_diagonal(
            lambda w: x @ w, w, key, likelihood="bernoulli", axis_name="devices"
        )
        return jax.lax.map(one, keys)

    mapped = jax.shard_map(
        sharded,
        mesh=devices,
        in_specs=(P("devices"), P()),
        out_specs=P(),
        check_vma=check_vma,
    )
    keys = jax.random.split(jax.random.key(seed), 3000)
    sample = np.asarray(jax.jit(mapped)(x, keys), np.float64)
    _check_mean(sample, _exact(lambda w: x @ w, w, "bernoulli"))


def test_wrong_choices_are_errors(key):
    estimate = lambda **kw: curvature.gauss_newton_bartlett_diagonal(
        lambda w: w, jnp.ones(2), key, **kw
    )
    with pytest.raises(ValueError, match="at least 1; got 0"):
        estimate(num_samples=0)
    with pytest.raises(ValueError, match="'categorical', 'bernoulli', 'gaussian'"):
        estimate(likelihood="softmax")
