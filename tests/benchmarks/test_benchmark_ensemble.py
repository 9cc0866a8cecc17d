"""The ensembles' subject: its cases are well formed, and its arithmetic is right."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ensemble
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.ensemble._report import sections
from benchmarks.ensemble._speed import by_scan, on_tree


def _ok(**figures) -> dict:
    return {"status": "ok", "fast": False, "figures": figures}


def test_names_and_keys():
    full = [case.name for case in ensemble.cases(Config())]
    assert len(set(full)) == len(full)
    assert full == [case.name for case in ensemble.cases(Config(fast=True))]
    assert set(ensemble.headline({})) == {
        "paths_per_second",
        "over_plain",
        "identical_on_devices",
        "gib_of_a_million",
        "mlmc_slope",
    }


def test_paths_have_the_law_they_should():
    """Mean 0.366 and variance 0.108 at time one, up to the step size."""
    with jax.numpy_dtype_promotion("standard"):
        keys = jax.random.split(jax.random.key(0), 4000)
        for solve in (on_tree, by_scan):
            x = np.asarray(jax.jit(jax.vmap(solve))(keys))
            assert abs(x.mean() - (1 - 1 / 64) ** 64) < 0.03
            assert abs(x.var() - 0.109) < 0.02
    assert jnp.isfinite(x).all()


def test_report(tmp_path):
    row = {"asked": 0.1, "error": 0.05, "cost": 1.0, "plain cost": 2.0}
    row |= {"levels": 3, "beta": 1.0}
    figures = {"paths per second": 1e5, "over plain": 1.25}
    data = {
        "cases": {
            "speed/tree": {"status": "ok", "fast": False, "figures": figures},
            "memory/million": _ok(GiB=0.5),
            "devices/bits": _ok(identical=True, bits={"1 x 1": "abc"}),
            "mlmc/milstein": _ok(slope=-2.01, rows=[row]),
        }
    }
    results = Results("ensemble", "cpu", data)
    page = "\n\n".join(sections(results, tmp_path))
    for text in ("| tree | 1.25 |", "0.500 GiB", "the same on all", "power -2.01"):
        assert text in page, text
    found = ensemble.headline(results.cases)
    assert found["identical_on_devices"] is True
    assert found["mlmc_slope"] == -2.01
