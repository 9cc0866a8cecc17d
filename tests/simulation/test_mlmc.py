"""Multilevel Monte Carlo: the error that was asked for, at the cost of theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


DRIFT, NOISE = 0.05, 0.4


def tree(key):
    return px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-11, (), key)


def scheme(order):
    """Euler (1/2) or Milstein (1) for dX = DRIFT X dt + NOISE X dW."""

    def solve(path, level):
        n = 2**level
        ts = jnp.linspace(0.0, 1.0, n + 1)
        dw = jax.vmap(path.evaluate)(ts[:-1], ts[1:])
        extra = NOISE**2 / 2 * (dw**2 - 1 / n) if order == 1 else 0.0
        return jnp.prod(1 + DRIFT / n + NOISE * dw + extra)

    return solve


@pytest.fixture(scope="module")
def estimates():
    """Milstein's scheme at three tolerances."""
    return {
        rmse: px.simulation.mlmc(
            scheme(1), tree, jax.random.key(3), rmse=rmse, min_level=3, first=128
        )
        for rmse in (4e-3, 2e-3, 1e-3)
    }


def test_errors_are_kept(estimates):
    """Six times the error that is asked for is a false alarm in 1e9."""
    for rmse, found in estimates.items():
        assert found.converged
        assert found.standard_error <= rmse / np.sqrt(2) * 1.02
        assert found.bias <= rmse / np.sqrt(2)
        assert abs(found.mean - np.exp(DRIFT)) < 6 * rmse


def test_cost_is_of_order_two(estimates):
    """Cost times the square of the error stays; plain Monte Carlo's is larger."""
    scaled = [found.cost * rmse**2 for rmse, found in estimates.items()]
    slope = np.polyfit(np.log(list(estimates)), np.log(scaled), 1)[0]
    assert abs(slope) < 0.25
    assert estimates[1e-3].plain_cost > 2 * estimates[1e-3].cost


def test_table(estimates):
    found = estimates[1e-3]
    variances = [level.variance for level in found.levels]
    assert variances[0] > 50 * variances[-1]
    assert found.beta > 1.3  # Milstein: 2
    assert all(level.consistency < 1.2 for level in found.levels)
    assert [level.cost for level in found.levels] == [1, 2, 4, 8]
    assert found.cost == sum(level.cost * level.paths for level in found.levels)
    assert len(str(found).splitlines()) == 5


def test_one_path_couples_the_levels(estimates):
    """With paths of their own the correction's variance doesn't fall."""
    solve = scheme(1)

    def uncoupled(path, level):
        return solve(tree(jax.random.fold_in(path, level)), level)

    options = {"rmse": 0.05, "first": 256, "min_level": 3, "max_level": 3}
    found = px.simulation.mlmc(uncoupled, lambda key: key, jax.random.key(0), **options)
    assert found.levels[3].variance > 0.5 * found.levels[0].variance
    assert estimates[4e-3].levels[3].variance < 0.05 * found.levels[3].variance


def test_bias_adds_levels():
    """A functional with a bias that falls slowly needs levels that nobody named."""

    def halves(path, level):
        return jnp.stack([path.evaluate(0.0, 1.0), 2.0**-level + 0 * path.t0])

    found = px.simulation.mlmc(
        halves, tree, jax.random.key(0), rmse=0.02, first=64, chunk=256
    )
    assert found.converged
    assert len(found.levels) > 4
    assert found.alpha == pytest.approx(1, abs=0.01)
    assert found.mean[1] == pytest.approx(0, abs=0.02)
    assert found.mean.shape == (2,)
    short = px.simulation.mlmc(
        halves, tree, jax.random.key(0), rmse=0.02, first=64, chunk=256, max_level=3
    )
    assert not short.converged
    assert len(short.levels) == 4


def test_misuse(key):
    for options in ({"rmse": 0.0}, {"rmse": 0.1, "min_level": 5, "max_level": 4}):
        with pytest.raises(ValueError, match="must be positive"):
            px.simulation.mlmc(scheme(1), tree, key, **options)
    bad = lambda path, level: jnp.log(path.evaluate(0.0, 1.0))
    with pytest.raises(FloatingPointError, match="of level 0 isn't finite"):
        px.simulation.mlmc(bad, tree, key, rmse=0.1)
