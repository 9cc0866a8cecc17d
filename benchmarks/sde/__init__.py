"""Whole solves of an SDE with adaptive steps: error against work and time.

Families of cases:

- `adaptive`, a case a tolerance, see below;
- `counting`: the same solve with and without exact numbers of evaluations.

In `adaptive` all solve the same Itô equation with a known solution, as many paths at
once, with the same absolute tolerance and shortest step:

- `pathax`: `pathax.solvers.SRIW1` on pathax's tree;
- `pathax, SPaRK`: `diffrax.SPaRK` on the same, of the Stratonovich form;
- `diffrax`: `diffrax.SPaRK` on Diffrax's tree, what Diffrax itself offers;
- `diffrax, SRIW1`: our solver on Diffrax's tree;
- `torchsde`: its adaptive `srk` on its `BrownianInterval`.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._adaptive import adaptive_cases
from ._counting import counting_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [*adaptive_cases(config), *counting_cases(config)]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """At the tightest tolerance that was run; `None` where nothing was.

    - `time_over_diffrax`, `time_over_torchsde`: theirs over ours;
    - `evals_over_torchsde`: evaluations of torchsde over ours;
    - `error_over_torchsde`: ours over that of torchsde, at the same tolerance;
    - `counting`: time of the SDE solve that counts over that of one that doesn't.
    """
    found = [r["figures"] for n, r in results.items() if n.startswith("adaptive/")]
    tight = min(found, key=lambda figures: figures["tolerance"], default={})
    rows = tight.get("rows", {})

    def over(what: str, top: str, bottom: str) -> float | None:
        if top not in rows or bottom not in rows:
            return None
        return rows[top][what] / rows[bottom][what]

    counting = results.get("counting/sde", {}).get("ratios", {})
    return {
        "time_over_diffrax": over("time", "diffrax", "pathax"),
        "time_over_torchsde": over("time", "torchsde", "pathax"),
        "evals_over_torchsde": over("evaluations", "torchsde", "pathax"),
        "error_over_torchsde": over("error", "pathax", "torchsde"),
        "counting": counting.get("counted over plain", {}).get("median"),
    }
