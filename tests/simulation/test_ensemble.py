"""Statistics of an ensemble: exact, the same on all devices, safe from kills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.simulation._statistics import BINS, Totals


SIZES = {"chunk": 512, "parts": 8}
LEVELS = (0.05, 0.5, 0.99)
EDGES = (-1.0, 0.0, 0.5, 2.0)


def walk(key):
    """Two outputs that depend on each other, of different shapes."""
    x = jax.random.normal(key, (3,), jnp.result_type(float))
    return {"sum": jnp.sum(x), "powers": jnp.stack([x[0], x[0] ** 2 + 100])}


def every(key, n, solve=walk):
    """All paths at once, as an array, in the order of flattening."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
    found = jax.jit(jax.vmap(solve))(keys)
    columns = [np.asarray(x, np.float64).reshape(n, -1) for x in jax.tree.leaves(found)]
    return np.concatenate(columns, axis=1)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def same_bits(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def whole(key, n=1300, **options):
    return px.simulation.ensemble(
        walk,
        key,
        n,
        covariance=True,
        quantiles=LEVELS,
        histogram=EDGES,
        **{**SIZES, **options},
    )


def test_against_all_paths_at_once(precision, key):
    """The last chunk is part of one; the last part of it is part of one."""
    n = 1300
    found, x = whole(key, n), every(key, n)
    assert (found.paths, found.skipped, found.reason) == (n, 0, "n")
    near = lambda got, want, scale=1.0: np.testing.assert_allclose(
        got, want, rtol=precision.tolerance(64), atol=scale * precision.tolerance(64)
    )
    near(flat(found.mean), x.mean(0))
    near(flat(found.variance), x.var(0, ddof=1))
    near(flat(found.standard_error), x.std(0, ddof=1) / np.sqrt(n))
    near(found.covariance, np.cov(x.T))
    assert found.mean["powers"].shape == (2,)
    for got, want in ((found.low, x.min(0)), (found.high, x.max(0))):
        near(flat(got), want)
    cells = np.concatenate([x.reshape(-1, 5) for x in jax.tree.leaves(found.histogram)])
    edges = [-np.inf, *EDGES, np.inf]
    want = [np.histogram(column, edges)[0] for column in x.T]
    assert np.abs(cells - np.array(want)).sum() <= 2  # rounding at an edge
    assert (cells.sum(1) == n).all()


def test_quantiles(precision, key):
    """Within a bin of those of all paths, and errors as those of many samples."""
    n = 1300
    found, x = whole(key, n), every(key, n)
    spread = (np.quantile(x, 0.84, 0) - np.quantile(x, 0.16, 0)) / 2
    for got, level in zip(found.quantiles, LEVELS, strict=True):
        want = np.quantile(x, level, 0)
        bin_width = 0.01 * (np.abs(want - np.median(x, 0)) + 0.05 * spread)
        # Beside the width of a bin, the distance to the next of the sample.
        gap = np.abs(np.quantile(x, min(level + 0.005, 1), 0) - want) + bin_width
        assert (np.abs(flat(got) - want) < 2 * gap).all()
    error = flat(found.quantile_error[1])[1]  # of the median of a normal variable
    assert error == pytest.approx(np.sqrt(np.pi / 2 / n), rel=0.35)


def test_the_pilot_places_bins_not_results(key):
    """Far from where the first part was, there are bins as well."""
    drift = lambda key: jnp.where(
        jax.random.bits(key) > 0, 50 * jax.random.cauchy(key), 0.0
    )
    found = px.simulation.ensemble(drift, key, 4096, quantiles=(0.001, 0.999), **SIZES)
    x = every(key, 4096, drift)
    for got, level in zip(found.quantiles, (0.001, 0.999), strict=True):
        near = np.quantile(x, [max(level - 0.0008, 0), min(level + 0.0008, 1)])
        assert near[0] * 0.98 - 1 <= got <= near[1] * 1.02 + 1 or (
            near[0] * 1.02 - 1 <= got <= near[1] * 0.98 + 1
        )


@pytest.fixture(scope="module")
def reference():
    return whole(jax.random.key(7))


def test_devices_change_no_bit(reference, devices):
    two_axes = jax.sharding.Mesh(devices.devices[:4].reshape(2, 2), ("a", "b"))
    for mesh in (devices, two_axes):
        assert same_bits(reference, whole(jax.random.key(7), mesh=mesh))


def test_another_key_or_length_changes_bits(reference):
    assert not same_bits(reference, whole(jax.random.key(8)))
    assert not same_bits(reference, whole(jax.random.key(7), 1299))


def test_resume(reference, tmp_path):
    """Cut short after some chunks, then to the end: the same bits."""
    file, key = tmp_path / "run.npz", jax.random.key(7)
    whole(key, 1024, checkpoint=file)
    assert same_bits(reference, whole(key, 1300, checkpoint=file))
    again = whole(key, 1300, checkpoint=file)
    assert same_bits(reference, again)
    assert not list(tmp_path.glob("*.partial"))


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    file, key = tmp_path / "run.npz", jax.random.key(7)
    whole(key, 512, checkpoint=file)
    with pytest.raises(ValueError, match=r"another run: its key"):
        whole(jax.random.key(8), 512, checkpoint=file)
    with pytest.raises(ValueError, match=r"its chunk is 512 in 8 parts, this one's"):
        whole(key, 512, checkpoint=file, parts=4)
    with pytest.raises(ValueError, match="of 512 paths already"):
        whole(key, 100, checkpoint=file)


def test_relative_error_stops(key):
    solve = lambda key: 1 + jax.random.normal(key)
    found = px.simulation.ensemble(solve, key, 10**6, rtol=0.03, **SIZES)
    assert found.reason == "rtol"
    assert found.standard_error <= 0.03 * abs(found.mean)
    assert 512 < found.paths < 2500  # one chunk more or less than 1111 paths
    assert found.paths % 512 == 0


def test_not_finite(key):
    n = 600
    solve = lambda key: jnp.where(
        jax.random.uniform(key) < 0.01, jnp.inf, jax.random.normal(key)
    )
    x = every(key, n, solve)[:, 0]
    first = int(np.argmin(np.isfinite(x)))
    with pytest.raises(FloatingPointError, match=f"Path {first} isn't finite"):
        px.simulation.ensemble(solve, key, n, **SIZES)
    found = px.simulation.ensemble(solve, key, n, nan="skip", quantiles=(0.5,), **SIZES)
    good = x[np.isfinite(x)]
    assert (found.paths, found.skipped) == (len(good), n - len(good))
    np.testing.assert_allclose(found.mean, good.mean(), rtol=1e-4, atol=1e-6)
    assert abs(found.quantiles[0] - np.median(good)) < 0.02


def test_integers_and_constants(key):
    """A spread of zero has a quantile too."""
    solve = lambda key: (jnp.int32(3), jax.random.bernoulli(key))
    found = px.simulation.ensemble(solve, key, 512, quantiles=(0.3,), **SIZES)
    assert found.mean[0] == found.quantiles[0][0] == 3
    assert found.variance[0] == 0
    assert found.quantiles[0][1] == pytest.approx(0, abs=1e-2)


def test_merging_is_stable():
    """Far from zero, where sums of squares have no digits left."""
    totals, rng = Totals(1, False, 0, 0), np.random.default_rng(0)
    x = 1e8 + rng.normal(size=(50, 40))
    for part in x:
        m, one = part.mean(), np.ones(1)
        moments = ((part - m) ** 2).sum() * one
        totals._merge(40, m * one, moments, part.min() * one, part.max() * one, 0, 0)
    np.testing.assert_allclose(totals.variance, x.var(ddof=1), rtol=1e-8)
    naive = (x**2).mean() - x.mean() ** 2
    assert abs(naive - x.var()) > 0.1 * x.var()


def test_bars(capsys, key):
    px.simulation.ensemble(walk, key, 512, progress=True, **SIZES)
    shown = capsys.readouterr().err
    assert "512/512" in shown
    assert "relative error" in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 0}, "at least 1"),
        ({"quantiles": (1.5,)}, "between 0 and 1"),
        ({"nan": "ignore"}, '"raise" or "skip"'),
        ({"rtol": 0.0}, "positive"),
        ({"checkpoint_every": 0}, "at least 1"),
        ({"histogram": (1.0, 1.0)}, "increasing edges"),
        ({"chunk": 100}, "must split evenly"),
    ],
)
def test_misuse(options, says, key):
    n = options.pop("n", 10)
    with pytest.raises(ValueError, match=says):
        px.simulation.ensemble(walk, key, n, **{**SIZES, **options})


def test_complex_outputs_are_refused(key):
    with pytest.raises(TypeError, match="real and imaginary parts"):
        px.simulation.ensemble(lambda key: jnp.complex64(1j), key, 8, **SIZES)


def test_more_devices_than_parts(devices, key):
    with pytest.raises(ValueError, match=r"those over the devices \(8\)"):
        px.simulation.ensemble(walk, key, 8, chunk=4, parts=4, mesh=devices)


def test_bins_are_many_and_even():
    assert BINS % 2 == 0


def test_antithetic_pairs(key):
    """The mean stays, the variance of what is nearly odd nearly goes."""
    path = lambda key: px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-4, (), key)
    solve = lambda path: jnp.exp(0.2 * path.evaluate(0.0, 1.0))
    pairs = px.simulation.antithetic_pairs(solve, path)
    paired = px.simulation.ensemble(pairs, key, 2048, **SIZES)
    plain = px.simulation.ensemble(lambda key: solve(path(key)), key, 2048, **SIZES)
    exact = np.exp(0.02)
    for found in (paired, plain):
        assert abs(found.mean - exact) < 5.5 * found.standard_error
    # Var (f(B) + f(-B)) / 2 = (e^s - e^-s - 2 (e^s... of a lognormal, s = 0.04.
    s = 0.04
    want = np.exp(s) * (np.exp(s) - 1) / 2 + np.exp(s) * (np.exp(-s) - 1) / 2
    assert paired.variance == pytest.approx(want, rel=0.3)
    assert paired.variance < 0.05 * plain.variance
