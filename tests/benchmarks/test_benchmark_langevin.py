"""The subject `langevin`: well formed, and its targets are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import langevin
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.langevin import _mcmc, _targets
from benchmarks.langevin._report import sections


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Benchmarks run under JAX's own defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in langevin.cases(config)]
        assert len(set(names)) == len(names)
        assert {"order/float32", "mcmc/funnel", "mcmc/german"} <= set(names)
    keys = {"funnel_order_float32", "funnel_evals_vs_nuts", "german_mean_error_sd"}
    assert langevin.headline({}) == dict.fromkeys(keys)


def test_the_funnel_is_normalized():
    """Its potential is minus the log density of the samples that come with it."""
    target = _targets.funnel()
    assert target.exact is not None
    z, y = target.exact[:64, :1].astype(float), target.exact[:64, 1:].astype(float)
    log = -(z[:, 0] ** 2) / 18 - (y**2 / np.exp(z) + z).sum(1) / 2
    found = jax.vmap(target.potential)(jnp.asarray(target.exact[:64]))
    off = np.asarray(found) + log
    assert np.ptp(off) < 1e-3 * np.abs(log).max()
    assert abs(target.exact[:, 0].std() / 3 - 1) < 0.05


def test_posteriors_have_their_gradient():
    target = _targets.twonorm()
    gradient = jax.grad(target.potential)(jnp.zeros(target.dimension))
    assert gradient.shape == (21,)
    assert jnp.all(jnp.isfinite(gradient))


def test_distance_is_in_units_of_the_spread():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 500, 2)) * [1.0, 1e4]
    same = _mcmc._distance(x, y.reshape(-1, 2))
    wide = _mcmc._distance(3 * x, y.reshape(-1, 2))
    assert abs(same) < 0.02 < wide


def test_report(tmp_path):
    names = ("gradients", "warm-up", "ess", "evals an effective sample", "r_hat")
    figures = {f"{n} {s}": 1.5 for n in names for s in ("pathax", "NUTS")}
    figures |= {f"distance {s}": 0.01 for s in ("pathax", "NUTS")}
    ok = lambda figures: {"status": "ok", "figures": figures}
    order = {"constant": [[64, 0.1], [128, 0.01]], "order": 3.0}
    data = {"cases": {"mcmc/funnel": ok(figures), "order/float32": ok(order)}}
    text = "\n".join(sections(Results("langevin", "cpu", data), tmp_path))
    assert "funnel" in text
    assert "NUTS" in text
    assert sections(Results("langevin", "cpu", {"cases": {}}), tmp_path) == []
