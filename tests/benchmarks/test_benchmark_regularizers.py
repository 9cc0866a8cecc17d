"""The regularizers' subject: its cases are well formed, and its arithmetic is right."""

import numpy as np

from benchmarks import regularizers
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.regularizers import _train
from benchmarks.regularizers._report import hypervolume, sections


def _figures(**figures) -> dict:
    keys = ("nfe_ratio", "nfe_ratio_lower95", "nfe_ratio_upper95", "nfe_ratio_tight")
    keys += ("nfe_ratio_other_solver", "predict_time_ratio", "loose_nfe_ratio")
    found = dict.fromkeys(keys, 0.5) | {
        "weight": 0.1,
        "weights": [0.1, 0.3],
        "nfe_plain": 100.0,
    }
    found |= {"accuracy_plain": 0.9, "accuracy_change_pt": -0.25}
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
    found["validation"][1] -= 0.1
    assert _train.choose(found, plain) == 0


def test_volume_under_a_front():
    assert hypervolume([100.0], [0.9], (100.0, 0.9)) == 0
    assert np.isclose(hypervolume([60.0], [0.9], (100.0, 0.9)), 0.4)
    both = hypervolume([60.0, 40.0], [0.9, 0.875], (100.0, 0.9))
    assert np.isclose(both, 0.4 * 0.5 + 0.6 * 0.5)
    assert hypervolume([10.0], [0.8], (100.0, 0.9)) == 0


def test_report(tmp_path):
    data = {
        "train/spirals,step cost": _figures(),
        "train/spirals,error": _figures(nfe_ratio_upper95=0.4, accuracy_change_pt=-3.0),
        "train/spirals,step cost,soap": _figures(nfe_ratio_upper95=0.7),
        "overhead/solve": {
            "status": "ok",
            "fast": False,
            "ratios": {"pathax over bare": {"median": 1.02}},
        },
    }
    results = Results("regularizers", "cpu", {"cases": data})
    page = "\n\n".join(sections(results, tmp_path))
    for text in ("0.500 (0.500 to 0.500)", "| -0.25 |", "undecided", "spirals, soap"):
        assert text in page, text
    assert (tmp_path / "benchmarks_regularizers_cpu_front.svg").exists()
    found = regularizers.headline(results.cases)
    assert found["nfe_ratio_upper95_best"] == 0.5
    assert np.isclose(found["accumulation_overhead"], 0.02)
