"""Optimizers: exactness, what a step costs, and races to a target.

Families of cases:

- `exactness`: float32 against dense algebra in double precision;
- `step`: a training step over one of AdamW and of SGD, at three sizes;
- `interval`, `scaling`: MKOR over its refresh interval, M-FAC over its dimension;
- `memory`: state over parameters;
- `race`: time and steps to a target, each method tuned on the same grid of rates;
- `pruning`: M-FAC's optimal brain surgeon beside removing the smallest weights.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._exactness import exactness_cases
from ._pruning import pruning_cases
from ._race import race_cases
from ._speed import speed_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [
        *exactness_cases(),
        *speed_cases(config),
        *race_cases(config),
        *pruning_cases(config),
    ]


SECOND_ORDER = (
    "newton",
    "adahessian",
    "adahessian k=5",
    "sophia-h",
    "mfac w=16",
    "mfac w=64",
    "kfac",
    "ekfac",
    "mkor",
    "lbfgs",
)


def _best(results: Mapping[str, dict], task: str) -> float | None:
    """Least time to target of a second-order method, over that of AdamW."""
    figures = results.get(f"race/{task}", {}).get("figures", {})
    found = [figures.get(f"{name} over adamw") for name in SECOND_ORDER]
    return min((x for x in found if x is not None), default=None)


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `adahessian_vs_sgd_step`: time of a step over that of SGD, 26k parameters;
    - `sophia_k10_vs_adamw_step`: that of Sophia-G over that of AdamW;
    - `mfac_scaling_2d`: time of M-FAC's update with twice the dimension over once;
    - `pinn_time_vs_adamw`, `logistic_time_vs_adamw`: wall time to target of the fastest
      second-order method over AdamW's;
    - `exactness_worst_float32`: largest relative error against dense algebra.
    """

    def ratio(case: str, name: str) -> float | None:
        found = results.get(case, {}).get("ratios", {}).get(name)
        return None if found is None else found["median"]

    exact = results.get("exactness/float32", {}).get("figures", {})
    return {
        "adahessian_vs_sgd_step": ratio("step/26k", "adahessian over sgd"),
        "sophia_k10_vs_adamw_step": ratio("step/26k", "sophia-g over adamw"),
        "mfac_scaling_2d": ratio("scaling/mfac", "2d over d"),
        "pinn_time_vs_adamw": _best(results, "pinn"),
        "logistic_time_vs_adamw": _best(results, "logistic"),
        "exactness_worst_float32": max(exact.values(), default=None),
    }
