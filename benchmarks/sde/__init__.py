"""Whole solves of an SDE with adaptive steps: error against work and time.

Family `adaptive`, a case a tolerance: the same Itô equation with a known solution, the
same paths at once, the same absolute tolerance and shortest step, by

- `pathax`: `pathax.solvers.SRIW1` on pathax's tree;
- `pathax, SPaRK`: `diffrax.SPaRK` on the same, of the Stratonovich form;
- `diffrax`: `diffrax.SPaRK` on Diffrax's tree, what Diffrax itself offers;
- `diffrax, SRIW1`: our solver on Diffrax's tree;
- `torchsde`: its adaptive `srk` on its `BrownianInterval`.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._adaptive import adaptive_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return adaptive_cases(config)


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """At the tightest tolerance that was run; `None` where nothing was.

    - `time_over_diffrax`, `time_over_torchsde`: theirs over ours;
    - `evals_over_torchsde`: evaluations of torchsde over ours;
    - `error_over_torchsde`: ours over that of torchsde, at the same tolerance.
    """
    keys = ("time_over_diffrax", "time_over_torchsde")
    keys += ("evals_over_torchsde", "error_over_torchsde")
    found = [r["figures"] for n, r in results.items() if n.startswith("adaptive/")]
    if not found:
        return dict.fromkeys(keys)
    rows = min(found, key=lambda figures: figures["tolerance"])["rows"]
    over = lambda what, name: rows.get(name, {}).get(what)
    ratio = lambda what, name: (
        None if over(what, name) is None else over(what, name) / rows["pathax"][what]
    )
    error = ratio("error", "torchsde")
    values = (ratio("time", "diffrax"), ratio("time", "torchsde"))
    values += (ratio("evaluations", "torchsde"), None if error is None else 1 / error)
    return dict(zip(keys, values, strict=True))
