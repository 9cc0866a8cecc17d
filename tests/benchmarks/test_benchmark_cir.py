"""The subject `cir`: well formed, and its sums are right."""

import jax
import numpy as np
import pytest

from benchmarks import cir
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.cir import _strong
from benchmarks.cir._report import sections


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Benchmarks run under JAX's own defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in cir.cases(config)]
        assert len(set(names)) == len(names)
        assert {"medium/HOStS", "medium/DIE", "bond/calm"} <= set(names)
    keys = {"order_constant", "order_adaptive", "error_gain_at_520"}
    assert cir.headline({}) == dict.fromkeys(keys)


def test_slopes_and_intervals():
    """Of errors that fall with a known power, each path with its own constant."""
    rng = np.random.default_rng(0)
    steps = [2.0**n for n in range(3, 9)]
    squares = np.stack([n**-1.5 * rng.exponential(size=2000) for n in steps])
    order, (low, high) = _strong._order(steps, squares)
    assert low < order < high
    assert abs(order - 0.75) < 0.03
    assert high - low < 0.1


def test_errors_between_points():
    """On a power law exactly, also where the first point took more steps."""
    points = [[30.0, 9.0], [10.0, 1.0], [20.0, 0.5], [40.0, 0.25]]
    assert abs(_strong._at(points, 16.0) - 10 / 16) < 1e-12


@pytest.fixture(scope="module")
def small():
    setting = _strong.Setting(1.5, (3, 5), (0, 2, 3), (7, 5), 16)
    return _strong._measure("medium/HOStS", setting, 16)


def test_runs_are_pooled():
    """Mean squares by paths; an interval is narrower the more there are."""
    points = lambda e: [[8.0, 4 * e], [64.0, 2 * e], [1024.0, e]]
    run = lambda e, paths: {
        "paths": paths,
        "tried over accepted": 1.5,
        **{kind: points(e) for kind in _strong.KINDS},
        **{f"order {kind}": 0.5 for kind in _strong.KINDS},
        **{f"order {kind} interval": [0.4, 0.6] for kind in _strong.KINDS},
    }
    old = {k: v for k, v in run(1.0, 100).items() if k != "paths"}
    found = _strong._pooled("medium/HOStS", _strong.MEDIUM, 100, old, run(3.0, 300))
    assert found["paths"] == 400
    np.testing.assert_allclose(found["constant"][2][1], np.sqrt((1 + 3 * 9) / 4))
    low, high = found["order constant interval"]
    assert abs(high - low - 0.2 * np.hypot(1, 3) / 4) < 1e-12
    assert found["gain at 520"] == 1.0


@pytest.mark.slow
def test_a_small_run(small, tmp_path):
    """Shorter steps are better, and the tables hold what was measured."""
    for kind in ("constant", "constant, at the end", "adaptive"):
        steps, errors = np.transpose(small[kind])
        assert steps[-1] > steps[0]
        assert errors[-1] < errors[0]
    setting = _strong.Setting(1.5, (), (0, 2), (0, 5), 16)
    few = _strong._coarse(setting, 16)
    assert few["intervals"][1][0] < few["adaptive"][1][1] < few["intervals"][1][1]
    case = lambda figures: {
        "status": "ok",
        "parameters": {"paths": 16},
        "figures": figures,
    }
    data = {"cases": {"medium/HOStS": case(small), "coarse/HOStS": case(few)}}
    text = "\n".join(sections(Results("cir", "cpu", data), tmp_path))
    assert "medium/HOStS" in text
    assert "flatters" in text
    assert "of the worst 1%" in text
    assert list(tmp_path.glob("*.svg"))
    assert sections(Results("cir", "cpu", {"cases": {}}), tmp_path) == []
