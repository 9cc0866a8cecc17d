"""Optimizers: exactness, what a step costs, and races to a target.

Families of cases:

- `exactness`: float32 against dense algebra in double precision;
- `parity`: twenty steps beside the authors' own code, where clones of it are at hand;
- `step`: a training step over one of AdamW and of SGD, at three sizes;
- `interval`, `scaling`: MKOR and KFAC over their refresh intervals, M-FAC over its
  dimension;
- `peer`: the same methods from other libraries;
- `memory`: state over parameters;
- `race`: time and steps to a target, all methods tuned with the same number of trials;
- `direction`: preconditioned gradients against dense inverses, over training;
- `pruning`: M-FAC's optimal brain surgeon beside removing the smallest weights.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._direction import direction_cases
from ._exactness import exactness_cases
from ._methods import SECOND_ORDER
from ._parity import parity_cases
from ._pruning import pruning_cases
from ._race import race_cases
from ._speed import speed_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject; those that time steps before long ones."""
    return [
        *exactness_cases(),
        *parity_cases(config),
        *speed_cases(config),
        *race_cases(config),
        *direction_cases(config),
        *pruning_cases(config),
    ]


def over_adamw(results: Mapping[str, dict], task: str) -> dict[str, float]:
    """Time to target over that of AdamW, of methods that reached it."""
    prefix = f"race/{task},"
    times = {
        name.removeprefix(prefix): record["figures"].get("time")
        for name, record in results.items()
        if name.startswith(prefix)
    }
    base = times.get("adamw")
    if base is None:
        return {}
    return {name: t / base for name, t in times.items() if t is not None}


def _fastest(results: Mapping[str, dict], task: str) -> float | None:
    """The least of these, over the library's second-order methods."""
    ratios = over_adamw(results, task)
    return min((r for name, r in ratios.items() if name in SECOND_ORDER), default=None)


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `adahessian_vs_sgd_step`: time of a step with a fresh diagonal each time, by an
      exact product, over SGD's; 26k parameters, batches of 128;
    - `sophia_k10_vs_adamw_step`: of Sophia-H over AdamW's, the Hessian being that of a
      15th of the batch as in its paper;
    - `mfac_scaling_2d`: time of M-FAC's update with twice the dimension over once;
    - `pinn_time_vs_adamw`: time to a relative error of 1e-5 of the fastest second-order
      method of the library, over AdamW's;
    - `logistic_time_vs_adamw`: likewise, to 1e-6 above the least value, weight 1e-6;
    - `exactness_worst_float32`: largest relative error against dense algebra.
    """

    def ratio(case: str, name: str) -> float | None:
        found = results.get(case, {}).get("ratios", {}).get(name)
        return None if found is None else found["median"]

    exact = results.get("exactness/float32", {}).get("figures", {})
    return {
        "adahessian_vs_sgd_step": ratio("step/26k", "adahessian k=1 over sgd"),
        "sophia_k10_vs_adamw_step": ratio("step/26k", "sophia_h part k=10 over adamw"),
        "mfac_scaling_2d": ratio("scaling/mfac", "2d over d"),
        "pinn_time_vs_adamw": _fastest(results, "pinn 1e-5"),
        "logistic_time_vs_adamw": _fastest(results, "logistic 1e-6"),
        "exactness_worst_float32": max(exact.values(), default=None),
    }
