"""The operators' subject: well formed, and what it compares with is as published."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import operators
from benchmarks._case import Config, SkippedError
from benchmarks._report import Results
from benchmarks.operators import _neuraloperator, _problems
from benchmarks.operators._fno import relative
from benchmarks.operators._published import (
    PublishedSTFNO,
    dual_norm,
    micro_step_residual,
    right_hand_side,
)
from benchmarks.operators._report import sections


KEYS = {
    "fno_error",
    "neuraloperator_error",
    "fno_speedup_1d",
    "fno_speedup_2d",
    "fno_speedup_3d",
    "frames_drift",
    "frames_drift_published",
    "micro_step_over_static",
}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Benchmarks run under JAX's own defaults."""
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):
        yield


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in operators.cases(config)]
        assert len(set(names)) == len(names)
        families = {name.split("/")[0] for name in names}
        assert families == {"fno", "fno-step", "head", "residual", "train"}
    assert operators.headline({}) == dict.fromkeys(KEYS)


@pytest.mark.parametrize(
    ("modes", "width", "published"),
    [((12, 12, 5), 20, 9_242_461), ((32, 32, 5), 10, 16_469_791)],
)
def test_published_sizes(modes, width, published):
    make = lambda key: eqx.filter(
        PublishedSTFNO.make(modes, width=width, key=key), eqx.is_array
    )
    model = eqx.filter_eval_shape(make, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(model)) == published


def test_the_published_head_depends_on_frames():
    """Common times have other values, by the ratio of the lengths and worse."""
    key = jax.random.key(0)
    model = PublishedSTFNO.make((3, 2), width=6, depth=1, frames=4, key=key)
    x = np.arange(8) / 8
    wave = np.sin(2 * np.pi * (x - 0.1 * np.arange(4)[:, None]))
    frames = jnp.asarray(wave, jnp.float32)
    run = eqx.filter_jit(lambda count: model(frames, count) - frames[-1:])
    few, many = run(4), run(8)
    assert jnp.abs(many[1::2] - few).max() > 0.1 * jnp.abs(few).max()


def test_micro_steps_say_nothing():
    """The published residual of noise falls with the square of its step."""
    with jax.enable_x64(True):
        noise = np.fft.rfft2(np.random.default_rng(0).normal(size=(16, 16)))
        noise[0, 0] = 0
        w = jnp.asarray(noise * 0.1)
        values = [float(micro_step_residual(w, dt)) for dt in (1e-3, 1e-4)]
        static = float(dual_norm(right_hand_side(w)))
    assert values[0] / values[1] == pytest.approx(100, rel=0.05)
    assert values[1] < 1e-3 * static


def test_data_solve_their_equations():
    """Small amplitudes only decay; the forced mean stays zero."""
    with jax.enable_x64(True):
        start, end = _problems.burgers(2, 32)
        assert start.shape == end.shape == (2, 32)
        np.testing.assert_allclose(start.mean(1), end.mean(1), atol=1e-6)
        assert (np.abs(end).max(1) <= np.abs(start).max(1)).all()
        flow = _problems.forced_flow(1, 16, 2)
        assert flow.shape == (1, 2, 16, 16)
        assert np.isfinite(flow).all()
        assert abs(flow.mean()) < 1e-6


def test_relative_error():
    y = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert relative(y * np.array([[1.1], [1.3]]), y) == pytest.approx(0.2)


def test_without_the_library_it_is_skipped(monkeypatch):
    monkeypatch.setattr(_neuraloperator, "find_spec", lambda name: None)
    with pytest.raises(SkippedError, match="neuraloperator"):
        _neuraloperator.require()


def test_report(tmp_path):
    ok = lambda **figures: {"status": "ok", "fast": False, "figures": figures}
    errors = {
        f"error {side}, {what}": 0.1
        for side in ("pathax", "published")
        for what in ("10 frames", "20 frames", "40 frames", "finer grid")
    }
    residuals = {
        f"{name}, {what}": 0.5
        for name in ("noise", "a flow")
        for what in (
            "static residual",
            "micro-step 0.001",
            "micro-step 0.0001",
            "micro-step 1e-05",
        )
    }
    speed = {"speedup": 2.5, "speedup quartiles": [2.0, 3.0]}
    data = {
        "cases": {
            "fno/burgers": ok(**speed, **{"error pathax": 0.01}),
            "fno-step/2d": ok(**speed),
            "head/forced flow": ok(**errors, **{"error of no change": 1.0}),
            "residual/micro-step": ok(**residuals),
        }
    }
    results = Results("operators", "cpu", data)
    page = "\n\n".join(sections(results, tmp_path))
    for text in ("**2.50** (2.00 to 3.00)", "| published |", "| a flow |"):
        assert text in page, text
    found = operators.headline(results.cases)
    assert found["fno_speedup_2d"] == 2.5
    assert found["frames_drift"] == 1
