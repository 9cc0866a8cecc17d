"""The regularizers' subject: its cases are well formed, and its arithmetic is right."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import regularizers
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.regularizers import _train
from benchmarks.regularizers._front import hypervolume
from benchmarks.regularizers._methods import loss_of
from benchmarks.regularizers._report import sections
from benchmarks.regularizers._tasks import TASKS
from benchmarks.regularizers._tasks._task import explained


def _figures(**figures) -> dict:
    keys = ("nfe_ratio", "nfe_ratio_lower95", "nfe_ratio_upper95", "nfe_ratio_tight")
    keys += ("nfe_ratio_other_solver", "predict_time_ratio", "loose_nfe_ratio")
    found = dict.fromkeys(keys, 0.5) | {
        "weight": 0.1,
        "weights": [0.1, 0.3],
        "nfe_plain": 100.0,
    }
    found |= {"accuracy_plain": 0.9, "accuracy_change_pt": -0.25}
    found |= {"accuracy_change_lower95_pt": -0.4}
    found |= {"steps": [[0.0, 0.1, 0.3, 1.0], [0.0, 0.2, 1.0]]}
    found |= {"loose_accuracy_change_pt": 0.0, "plain": [[100.0] * 2, [0.9] * 2]}
    found |= {"test": [[[60.0, 30.0]] * 2, [[0.9, 0.89]] * 2], **figures}
    return {"status": "ok", "fast": False, "figures": found}


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in regularizers.cases(config)]
        assert len(set(names)) == len(names)
    assert set(regularizers.headline({})) == {
        "nfe_ratio_upper95_best",
        "accuracy_change_pt",
        "predict_time_ratio",
        "step_time_global",
        "step_time_local",
        "accumulation_overhead",
    }


def test_the_weight_is_chosen_among_the_accurate():
    plain = {"validation": [np.array([[100.0]]), np.array([[0.9]])]}
    evaluations, accuracy = [[80.0, 50.0, 20.0]], [[0.91, 0.896, 0.89]]
    found = {"validation": [np.array(evaluations), np.array(accuracy)]}
    assert _train.choose(found, plain) == 1
    assert _train.choose(found, plain, right=False) == 0  # the rest is 4% larger
    found["validation"][1] -= 0.1
    assert _train.choose(found, plain) == 0


def test_volume_under_a_front():
    assert hypervolume([100.0], [0.9], (100.0, 0.9)) == 0
    assert np.isclose(hypervolume([60.0], [0.9], (100.0, 0.9)), 0.4)
    both = hypervolume([60.0, 40.0], [0.9, 0.875], (100.0, 0.9))
    assert np.isclose(both, 0.4 * 0.5 + 0.6 * 0.5)
    assert hypervolume([10.0], [0.8], (100.0, 0.9)) == 0


def test_report(tmp_path):
    bias = {"weights": [0.0, 0.1], "evaluations": [200.0, 100.0], "error": [0.01, 0.1]}
    bias |= {f"damping_off_{x}": [0.1, -4.0] for x in ("percent", "lower95", "upper95")}
    targets = {"targets": [46.0], "evaluations": [44.0], "change_pt": [0.2]}
    targets |= {"low": [40.0], "high": [49.0], "plain": 92.0}
    ratios = {"median": 1.02, "q1": 1.01, "q3": 1.03}
    ok = {"status": "ok", "fast": False}
    data = {
        "train/mnist,step cost": _figures(),
        "train/mnist,error": _figures(nfe_ratio_upper95=0.4, accuracy_change_pt=-3.0),
        "train/mnist,step cost,soap": _figures(nfe_ratio_upper95=0.7),
        "bias/some": {**ok, "figures": bias},
        "automatic/digits": {**ok, "figures": targets},
        "overhead/solve": {**ok, "ratios": {"pathax over bare": ratios}},
        "overhead/training": {
            **ok,
            "ratios": {
                "local over plain": ratios | {"median": 1.1},
                "published biased over plain": ratios | {"median": 1.14},
            },
        },
    }
    results = Results("regularizers", "cpu", {"cases": data})
    page = "\n\n".join(sections(results, tmp_path))
    expected = ("0.500 (0.500 to 0.500)", "-0.25 (≥ -0.40)", "undecided", "| soap |")
    for text in (
        *expected,
        "on 1 of 1 tasks: mnist",
        "97.94 to 97.32 % right",
        "-4.00",
        "| 46.0 | 44.0 (40.0 to 49.0) | +0.20 |",
    ):
        assert text in page, text
    short = (tmp_path / "summary_regularizers_cpu.md").read_text()
    assert "| mnist | 100, 90.0% | 0.50 (≤ 0.50), -0.2 | – | 0.50 (≤ 0.40)" in short
    for what in ("front", "steps"):
        assert (tmp_path / f"benchmarks_regularizers_cpu_{what}.svg").exists()
    found = regularizers.headline(results.cases)
    assert found["nfe_ratio_upper95_best"] == 0.5
    assert found["step_time_local"] == 1.14  # the slower of the two
    overhead = found["accumulation_overhead"]
    assert overhead is not None
    assert np.isclose(overhead, 0.02)


def test_a_task_gives_a_loss():
    task = TASKS["spiral ODE"]._replace(batch=8)
    data = task.load(0)
    batch = _train._cast(tuple(x[:8] for x in data.train), task)
    with jax.enable_x64(task.double):
        loss = jax.jit(loss_of(task, "step cost"))
        weights = {"penalty": jnp.asarray(0.1)}
        key = jax.random.key(0)
        value, found = loss(task.model(key), batch, key, weights)
        assert value.dtype == task.dtype
        assert np.isfinite(value)
        assert found["evaluations"] > 6


def test_explained():
    target = jnp.array([1.0, 2.0, 3.0])
    assert explained(target, target) == 1
    assert explained(jnp.full(3, 2.0), target) == 0
    mask = jnp.array([1.0, 1.0, 0.0])
    assert explained(jnp.array([1.0, 2.0, 9.0]), target, mask) == 1
