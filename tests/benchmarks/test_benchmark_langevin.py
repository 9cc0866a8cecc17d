"""The subject `langevin`: well formed, and its targets are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import langevin
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.langevin import _race, _reference, _samplers, _targets
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
    keys |= {"german_deviation_error", "german_evals_vs_nuts"}
    assert langevin.headline({}) == dict.fromkeys(keys)
    race = lambda ours, theirs: {"figures": {"pathax": ours, "NUTS": theirs}}
    pairs = [(2.0, 8.0), (3.0, None), (9.0, 3.0), (None, 1.0)]
    found = langevin.headline({f"race/{i}": race(*p) for i, p in enumerate(pairs)})
    assert (found["race_wins"], found["race_sets"]) == (2, 4)
    assert found["race_evals_vs_nuts"] == 0.25


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


def test_draws_of_the_schools_are_exact():
    """Stein's identities, along directions in which both sides have a variance."""
    target = _targets.schools()
    assert target.exact is not None
    g = np.asarray(jax.vmap(jax.grad(target.potential))(jnp.asarray(target.exact)))
    effects, mu, log_tau = np.split(target.exact.astype(float), [8, 9], axis=1)
    within = (effects - mu) * g[:, :8]
    along = mu[:, 0] * g[:, :9].sum(1)
    ruling = log_tau[:, 0] * g[:, 9]
    for values in (*within.T, along, ruling):
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - 1) < 6 * error < 0.5
    assert abs(g[:, 9].mean()) < 6 * g[:, 9].std() / np.sqrt(len(g))


def test_posteriors_have_their_gradient():
    target = _targets.twonorm()
    gradient = jax.grad(target.potential)(jnp.zeros(target.dimension))
    assert gradient.shape == (21,)
    assert jnp.all(jnp.isfinite(gradient))


def test_distances():
    """In units of the spread; both ways to compute them agree."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500, 2)) * [1.0, 1e4]
    meter = _race.Meter(y)
    for z in (x, 3 * x):
        np.testing.assert_allclose(meter(z), _samplers.distance(z, y), atol=1e-5)
    assert abs(meter(x)) < 0.02 < meter(3 * x)
    # That of as many exact draws, pairs of a point with itself left in.
    np.testing.assert_allclose(meter.spread, np.sqrt(np.pi), rtol=0.05)


def test_arrival_is_the_first_below():
    curve = [[1.0, 5.0], [2.0, 0.5], [3.0, 2.0]]
    assert _race._arrival(curve, 1.0) == 2.0
    assert _race._arrival(curve, 0.1) is None


def test_references_are_exact():
    """Importance sampling of a Gaussian posterior whose moments are known."""
    deviation = jnp.array([1.0, 0.1])
    potential = lambda w: 0.5 * jnp.sum(((w - 2.0) / deviation) ** 2)
    target = _targets.Target(potential, 2)
    mean, covariance = _reference._mode(target)
    np.testing.assert_allclose(mean, [2.0, 2.0], rtol=1e-4)
    rng = np.random.default_rng(0)
    x, weight = _reference._weighted(target, mean + 0.05, covariance, rng)
    np.testing.assert_allclose(weight @ x, mean, atol=5 * 1 / np.sqrt(len(x)))
    spread = np.sqrt(weight @ (x - mean) ** 2)
    np.testing.assert_allclose(spread, deviation, rtol=0.05)
    assert 1 / np.sum(weight**2) > len(x) / 2


def test_report(tmp_path):
    names = ("gradients", "warm-up", "ess", "evals an effective sample", "r_hat")
    figures = {f"{n} {s}": 1.5 for n in names for s in ("pathax", "NUTS")}
    figures |= {f"distance {s}": 0.01 for s in ("pathax", "NUTS")}
    figures["dimension"] = 10
    ok = lambda figures: {"status": "ok", "figures": figures}
    order = {"constant": [[64, 0.1], [128, 0.01]], "order": 3.0}
    curves = {f"curve {s}": [[1.0, 2.0], [2.0, -0.1]] for s in ("pathax", "NUTS")}
    race = {"dimension": 3, "level": 0.1, "start": 9.0, "pathax": 2.0, "NUTS": None}
    cases = {
        "mcmc/funnel": ok(figures),
        "order/float32": ok(order),
        "race/banana": ok({**race, **curves}),
    }
    text = "\n".join(sections(Results("langevin", "cpu", {"cases": cases}), tmp_path))
    assert "funnel" in text
    assert "NUTS on 1 of 1" in text
    assert len(list(tmp_path.glob("*.svg"))) == 2
    assert sections(Results("langevin", "cpu", {"cases": {}}), tmp_path) == []
