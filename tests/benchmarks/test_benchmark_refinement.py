"""The subject of refinement: well formed, and its parts do what they say."""

from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import refinement
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.refinement import _flows, _network, _refine
from benchmarks.refinement._report import sections


KEYS = {
    "error_network_median",
    "error_refined_median",
    "seconds_per_iteration",
    "gain_vs_published_optimizer",
    "estimator_spearman",
}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Benchmarks run under JAX's own defaults."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in refinement.cases(config)]
        assert len(set(names)) == len(names)
    assert refinement.headline({}) == dict.fromkeys(KEYS)


def test_report():
    figures = {f"error {n}": 10.0**-n for n in range(4)}
    figures |= {f"error {n} range": [0.1, 1.0] for n in range(4)}
    figures |= {"error of no change": 0.1, "over Adam": 1e3}
    figures["over training longer"] = 1e6
    record = {"status": "ok", "figures": figures}
    data = {"cases": {"network/forced flow": record}}
    text = "\n".join(sections(Results("refinement", "cpu", data), Path()))
    assert "three steps" in text
    assert "A step takes" not in text  # times of a shared machine mean nothing
    assert sections(Results("refinement", "cpu", {"cases": {}}), Path()) == []


def test_report_of_fits_and_solvers(tmp_path):
    """Times are over those of `infer`; a way that found nothing has none."""
    waves = {"seconds infer": 2.0, "found infer": 4, "tried": 5, "seeds found": 36}
    waves |= {"seconds shooting": None, "found shooting": 0, "coverage start": 0.95}
    waves |= {"seconds growing": 8.0, "found growing": 1}
    flow = {"seconds infer": 1.0, "misfit infer": 1.02, "coverage forcing": 0.9}
    points = [[1.0, 1e-3], [2.0, 1e-6]]
    cases = {
        "inverse/waves": {"figures": waves, "parameters": {"seeds": 40}},
        "inverse/flow": {"figures": flow, "parameters": {"seeds": 40}},
        "solvers/batch 1": {"figures": {"etdrk4": points, "refined": points}},
    }
    data = {"cases": {k: {"status": "ok", **v} for k, v in cases.items()}}
    text = "\n".join(sections(Results("refinement", "cpu", data), tmp_path))
    assert "| waves | growing | 4.00 | 1 of 5 found |" in text
    assert "| waves | shooting | – | 0 of 5 found |" in text
    assert "| flow | infer | 1.00 | misfit 1.02 |" in text
    assert "95.0% start" in text
    assert (tmp_path / "benchmarks_refinement_cpu_solvers.svg").exists()


def test_flows_small():
    """On a tiny grid: frames follow one another, and refinement meets them."""
    flow = _flows.forced(2, 24, 1.0)
    assert flow.frames.shape == (2, 10, 24, 24)
    jump = np.abs(flow.after[:, 0] - flow.frames[:, -1]).max()
    assert jump < np.abs(flow.frames).max()
    with jax.enable_x64(True):
        here = _flows.problem(flow, 0, 8)
        found = _refine.ops.refine(here, max_steps=3)
        assert _flows.error(flow, 0, found.trajectory) < 1e-6


@pytest.mark.slow
def test_network_small():
    """Steps of training change it."""
    flow = _flows.forced(2, 24, 1.0)
    trainer = _network.Trainer(flow, 2, 4)
    before = _network.network_error(trainer.model, flow, 0)
    trainer.run(2)
    assert np.isfinite(before)
    assert np.isfinite(_network.network_error(trainer.model, flow, 0))
