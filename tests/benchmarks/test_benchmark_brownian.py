"""The Brownian subject: its cases are well formed, and its own arithmetic is right."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import brownian
from benchmarks._case import Config
from benchmarks.brownian._law import farthest_from_one, merge
from benchmarks.brownian._order import _float32_normals, _path, slope
from benchmarks.brownian._paths import AREAS, normalised
from benchmarks.brownian._speed import GRID, STEPS, minimal_normals


FULL = Config()
FAST = Config(fast=True)


def test_names_are_unique_and_fast_cases_are_among_the_full():
    full = [case.name for case in brownian.cases(FULL)]
    fast = [case.name for case in brownian.cases(FAST)]
    assert len(set(full)) == len(full)
    assert set(fast) <= set(full)
    assert sum(name.startswith("query/") for name in full) == 36


def test_fast_queries_have_every_shape_and_area():
    queries = [c.parameters for c in brownian.cases(FAST) if c.family == "query"]
    pairs = {(p["area"], tuple(p["shape"])) for p in queries}
    assert pairs == {(a, s) for a in AREAS for s in [(), (10,), (1000,)]}
    assert {p["batch"] for p in queries} == {1, 1000}
    assert {p["tol"] for p in queries} == {2.0**-12, 2.0**-20}


def test_headline_has_stable_keys_and_no_figure_without_a_case():
    headline = brownian.headline({})
    assert set(headline) == {
        "variance_ratio_worst",
        "query_speedup_median",
        "query_speedup_min",
        "euler_speedup",
        "spark_speedup",
        "grid_vs_scan",
        "grid_vs_scan_checked",
        "query_vs_rng_floor",
        "quicksort_order",
    }
    assert set(headline.values()) == {None}


def test_headline_reads_the_cases_that_exist():
    def ratios(name, value):
        return {"ratios": {name: {"median": value}}}

    results = {
        "query/a": ratios("speedup", 2.0),
        "query/b": ratios("speedup", 6.0),
        "solve/euler,batch=1": ratios("speedup", 10.0),
        "solve/euler,batch=100": ratios("speedup", 99.0),
        "solve/spark,batch=1": ratios("speedup", 7.0),
        "grid/stored,steps=constant,batch=1": {
            "ratios": {
                "over scan": {"median": 30.0},
                "unchecked over scan": {"median": 1.5},
            }
        },
        "floor/a": ratios("over floor", 3.0),
        "law/a": {"figures": {"worst pathax": 1.01}},
        "law/b": {"figures": {"worst pathax": 0.98}},
        "quicksort/double-well": {"figures": {"order pathax": 3.0}},
    }
    names = {case.name for case in brownian.cases(FULL)}
    assert {n for n in results if n[-2:] not in ("/a", "/b")} <= names
    assert brownian.headline(results) == {
        "variance_ratio_worst": 0.98,
        "query_speedup_median": 4.0,
        "query_speedup_min": 2.0,
        "euler_speedup": 10.0,
        "spark_speedup": 7.0,
        "grid_vs_scan": 1.5,
        "grid_vs_scan_checked": 30.0,
        "query_vs_rng_floor": 3.0,
        "quicksort_order": 3.0,
    }


def test_farthest_from_one():
    assert farthest_from_one([0.99, 1.02, 1.0]) == 1.02
    assert farthest_from_one([0.0, 1.5]) == 0.0
    assert farthest_from_one([1.0, float("nan")]) == float("inf")


def test_merging_pools_samples():
    def figures(samples, value):
        row = {"exponent": 2, "ratios": {"pathax": [value], "diffrax": [1.0]}}
        return {"samples": samples, "rows": [row]}

    pooled = merge(figures(100, 1.0), figures(300, 2.0))
    assert pooled["samples"] == 400
    assert pooled["worst pathax"] == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("depth", "s", "u", "nodes"),
    [
        (0, 0.0, 1.0, 1),  # the root alone
        (3, 0.0, 0.5, 2),  # and the split of the whole interval
        (3, 0.25, 0.5, 3),
        (3, 0.0, 0.3, 1 + 4),  # one path down, its leaf included
        (3, 0.3, 0.31, 1 + 3 + 2),  # both in one leaf, which is split twice
        (3, 0.3, 0.8, 1 + 1 + 2 * 3),  # two paths, apart from the top on
    ],
)
def test_minimal_normals(depth, s, u, nodes):
    assert minimal_normals(depth, 0, s, u) == nodes
    assert minimal_normals(depth, 2, s, u) == 3 * nodes


def test_normalisation(key):
    length = 0.25
    increment = diffrax.SpaceTimeTimeLevyArea(
        dt=jnp.asarray(length),
        W=jnp.sqrt(length),
        H=-jnp.sqrt(length / 12),
        K=jnp.sqrt(length / 720),
    )
    assert np.allclose(normalised(increment, length), 1)


def test_slope():
    steps = [2.0**-n for n in range(5)]
    assert slope(steps, [7 * h**3 for h in steps]) == pytest.approx(3)
    assert np.isnan(slope(steps[:1], [1.0]))


def test_grid_has_the_steps_it_says():
    assert GRID.shape == (STEPS + 1,)
    assert GRID.dtype == np.float32


@pytest.mark.parametrize("tree", ["pathax", "diffrax"])
def test_float64_references_are_of_the_same_path(tree):
    """They agree to float32 rounding; normals of another stream would not agree."""
    key = jax.random.key(5)
    with jax.enable_x64(True), _float32_normals():
        ends = np.float32(1.0), np.float32(9.0)
        single, double = (
            _path(tree, key, np.dtype(d), exact=e).evaluate(*ends, use_levy=True)
            for d, e in ((np.float32, False), (np.float64, True))
        )
        assert double.W.dtype == np.float64
        for name in ("W", "H", "K"):
            a, b = getattr(single, name), getattr(double, name)
            assert np.allclose(a.astype(b.dtype), b, atol=1e-4), name
    assert jax.random.normal(key).dtype == np.float32
