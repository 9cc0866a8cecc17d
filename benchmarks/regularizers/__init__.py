"""Regularizers: evaluations saved at equal accuracy, and what they cost in training.

Families of cases:

- `overhead`: a solve and a step of training, with penalties and without;
- `train`: neural differential equations, ordinary, stochastic and controlled; paired
  seeds, each method beside none, its weight chosen on validation data; evaluated with
  another solver and with a tighter tolerance, too.
- `automatic`: whether a weight that sets itself reaches its target;
- `bias`: what a penalty does to the parameters of a physical system.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._automatic import automatic_cases
from ._bias import bias_cases
from ._cases import OURS, PUBLISHED, training_cases
from ._speed import speed_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    parts = (speed_cases, training_cases, automatic_cases, bias_cases)
    return [case for part in parts for case in part(config)]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `nfe_ratio_upper95_best`: upper 95% limit of the evaluations over those of the
      plain twin, of the method and task where it is smallest while accuracy falls by at
      most half a point;
    - `accuracy_change_pt`, `predict_time_ratio`: of that case;
    - `step_time_global`, `step_time_local`: time of a gradient over that without, of
      the slower of the error and the step cost, and of ours and the published biased;
    - `accumulation_overhead`: part by which a solve takes longer.
    """
    ours = {name.replace(",", "") for name in OURS + PUBLISHED}
    own = [
        record["figures"]
        for name, record in results.items()
        if name.startswith("train/") and name.split(",")[1] in ours
    ]
    good = [f for f in own if f["accuracy_change_pt"] >= -0.5]
    best = min(good, key=lambda f: f["nfe_ratio_upper95"], default={})

    def ratio(case: str, *names: str) -> float | None:
        found = results.get(case, {}).get("ratios", {})
        medians = [found[x]["median"] for x in names if x in found]
        return max(medians, default=None)

    solve = ratio("overhead/solve", "pathax over bare")
    training = "overhead/training"
    return {
        "nfe_ratio_upper95_best": best.get("nfe_ratio_upper95"),
        "accuracy_change_pt": best.get("accuracy_change_pt"),
        "predict_time_ratio": best.get("predict_time_ratio"),
        "step_time_global": ratio(training, "global over plain", "cost over plain"),
        "step_time_local": ratio(
            training, "local over plain", "published biased over plain"
        ),
        "accumulation_overhead": None if solve is None else solve - 1,
    }
