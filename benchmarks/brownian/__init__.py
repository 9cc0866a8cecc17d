"""Brownian paths: law, speed and memory beside `diffrax.VirtualBrownianTree`.

Families of cases:

- `query`: one increment, over shapes, batches, classes of increments and tolerances;
- `solve`: fixed-step and adaptive solves that query the tree at every step;
- `grid`: a fixed-step solve on noise laid out once, beside a hand-written scan;
- `floor`: a query beside the bare drawing of the normals that it cannot do without;
- `law`: variances of normalised increments in float32, down to steps of 2^-20;
- `quicksort`: strong order of a third-order Langevin solver in float32.
"""

import statistics
from collections.abc import Mapping

from .._case import Case, Config
from ._law import farthest_from_one, law_cases
from ._order import order_cases
from ._speed import speed_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject; measurements of the law come first."""
    return law_cases(config) + order_cases(config) + speed_cases(config)


def _medians(results: Mapping[str, dict], prefix: str, ratio: str) -> list[float]:
    return [
        record["ratios"][ratio]["median"]
        for name, record in results.items()
        if name.startswith(prefix) and ratio in record.get("ratios", {})
    ]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `variance_ratio_worst`: of ours, the one farthest from 1;
    - `query_speedup_median`, `query_speedup_min`: over all query cases;
    - `euler_speedup`, `spark_speedup`: of one path through `diffeqsolve`;
    - `grid_vs_scan`: time over that of the scan, one path, noise stored, no branch to
      the host in the loop (`check=False`); `grid_vs_scan_checked`: with it;
    - `query_vs_rng_floor`: time over that of the bare normals, the worst case;
    - `quicksort_order`: observed strong order in float32 (3 in theory).
    """
    law = [
        record["figures"]["worst pathax"]
        for name, record in results.items()
        if name.startswith("law/")
    ]
    query = _medians(results, "query/", "speedup")
    floor = _medians(results, "floor/", "over floor")
    order = results.get("quicksort/double-well", {}).get("figures", {})

    stored = "grid/stored,steps=constant,batch=1"

    def single(name, ratio):
        return next(iter(_medians(results, name, ratio)), None)

    return {
        "variance_ratio_worst": farthest_from_one(law) if law else None,
        "query_speedup_median": statistics.median(query) if query else None,
        "query_speedup_min": min(query, default=None),
        "euler_speedup": single("solve/euler,batch=1", "speedup"),
        "spark_speedup": single("solve/spark,batch=1", "speedup"),
        "grid_vs_scan": single(stored, "unchecked over scan"),
        "grid_vs_scan_checked": single(stored, "over scan"),
        "query_vs_rng_floor": max(floor, default=None),
        "quicksort_order": order.get("order pathax"),
    }
