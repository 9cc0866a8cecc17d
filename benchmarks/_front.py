"""The numbers on the front page, from stored results of the CPU.

`README.md` holds them between two marks, and `python -m benchmarks.report` writes them
anew, so that no number there was typed.
"""

import statistics
import string
from collections.abc import Mapping
from pathlib import Path

from ._report import Results, number


BEGIN = "<!-- numbers, by `python -m benchmarks.report` -->"
END = "<!-- end of numbers -->"

# Subject, what its figures are, and how they are put; names are those of headlines.
_OTHERS = (
    (
        "cir",
        "Cox–Ingersoll–Ross, volatility 1.5: order of adaptive steps; of constant ones",
        "{order_adaptive}; {order_constant}",
    ),
    (
        "cir",
        "... error of 520 constant steps over that of as many adaptive ones",
        "{error_gain_at_520}",
    ),
    (
        "ensemble",
        "multilevel Monte Carlo: exponent of the cost in the error (−2 in theory)",
        "{mlmc_slope}",
    ),
    (
        "langevin",
        (
            "Langevin samples of a posterior with known moments: largest error of a "
            "mean, in standard deviations"
        ),
        "{german_mean_error_sd}",
    ),
    (
        "langevin",
        (
            "... gradients for an effective sample, over those of NUTS: that "
            "posterior; a funnel"
        ),
        "{german_evals_vs_nuts}; {funnel_evals_vs_nuts}",
    ),
    (
        "langevin",
        (
            "... gradients until the law of chains from the prior is right: fewer than "
            "NUTS on so many of so many posteriors; median over those of NUTS"
        ),
        "{race_wins} of {race_sets}; {race_evals_vs_nuts}",
    ),
    (
        "sde",
        (
            "adaptive solve of an Itô equation, time over ours: Diffrax's solver and "
            "tree; torchsde"
        ),
        "{time_over_diffrax}; {time_over_torchsde}",
    ),
    (
        "regularizers",
        (
            "neural ODE, the task that a penalty helps most: evaluations over those "
            "without, upper 95% limit; accuracy in points; time of a prediction"
        ),
        "{nfe_ratio_upper95_best}; {accuracy_change_pt}; {predict_time_ratio}",
    ),
    (
        "refinement",
        (
            "a network's answer to a flow on 64 × 64 points: relative error; after "
            "three Gauss–Newton steps"
        ),
        "{error_network_median}; {error_refined_median}",
    ),
    (
        "refinement",
        "... rank correlation of the estimated residual and the error",
        "{estimator_spearman}",
    ),
    (
        "optimizers",
        (
            "time to a target over AdamW's, fastest second-order method: "
            "physics-informed network; logistic regression"
        ),
        "{pinn_time_vs_adamw}; {logistic_time_vs_adamw}",
    ),
    (
        "optimizers",
        "... a step of AdaHessian over one of SGD, 26k parameters",
        "{adahessian_vs_sgd_step}",
    ),
)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def _median(results: Results, name: str, ratio: str) -> float | None:
    record = results.cases.get(name, {})
    return record.get("ratios", {}).get(ratio, {}).get("median")


def _law(results: Results) -> str:
    def worst(tree: str) -> float | None:
        values = [r["figures"][f"worst {tree}"] for r in results.family("law").values()]
        return max(values, key=lambda v: max(v, 1 / max(v, 1e-9)), default=None)

    order = results.cases.get("quicksort/double-well", {}).get("figures", {})
    rows = [
        (
            (
                "worst variance ratio of W, H, K, steps 2⁻² to 2⁻²⁰ of the horizon (1 "
                "is right)"
            ),
            number(worst("pathax"), 4),
            number(worst("diffrax"), 4),
        ),
        (
            "observed strong order of QUICSORT (3 in theory)",
            number(order.get("order pathax")),
            number(order.get("order diffrax")),
        ),
    ]
    head = (
        "what, on two CPU cores, float32",
        "pathax",
        "`diffrax.VirtualBrownianTree`",
    )
    return _table(head, rows)


def _speed(results: Results) -> str:
    queries = {
        name: r["ratios"]["speedup"]["median"]
        for name, r in results.family("query").items()
    }
    single = [v for name, v in queries.items() if ",batch=1," in name]
    batch = [v for name, v in queries.items() if ",batch=1000," in name]
    floor = [
        r["ratios"]["over floor"]["median"] for r in results.family("floor").values()
    ]
    stored = "grid/stored,steps=constant,batch="
    two = lambda solve: "; ".join(
        number(_median(results, f"solve/{solve},batch={n}", "speedup"))
        for n in (1, 100)
    )
    rows = []
    if single and batch:
        every = [*single, *batch]
        median = number(statistics.median(every))
        rows += [
            (
                f"one increment, {len(every)} cases: median (least)",
                f"{median} ({number(min(every))}) × faster",
            ),
            (
                "... called one at a time; in batches of 1000",
                (
                    f"{number(statistics.median(single))}; "
                    f"{number(statistics.median(batch))} × faster"
                ),
            ),
        ]
    rows += [
        (
            "1000 Euler steps through `diffeqsolve`, one path; 100 paths",
            f"{two('euler')} × faster",
        ),
        ("adaptive SPaRK, one path; 100 paths", f"{two('spark')} × faster"),
    ]
    if floor:
        rows += [
            (
                "batch of queries over the bare drawing of its normals",
                f"{number(min(floor), 2)}–{number(max(floor), 2)} of the time",
            )
        ]
    unchecked = _median(results, stored + "1", "unchecked over scan")
    checked = [number(_median(results, stored + n, "over scan")) for n in ("1", "100")]
    rows += [
        (
            "1000 Euler steps on a stored grid over a hand-written scan, unchecked",
            f"{number(unchecked)} × the time of the scan",
        ),
        (
            "... with the check for times off the grid, one path; 100 paths",
            f"{'; '.join(checked)} × the time of the scan",
        ),
    ]
    return _table(("speed, ratios of interleaved medians", ""), rows)


def _others(found: Mapping[str, Results]) -> str:
    rows = []
    for subject, what, form in _OTHERS:
        headline = found[subject].data["headline"] if subject in found else {}
        names = [name for _, name, _, _ in string.Formatter().parse(form) if name]
        if all(headline.get(name) is not None for name in names):
            values = {n: headline[n] for n in names}
            shown = {
                n: str(v) if isinstance(v, int) else number(v)
                for n, v in values.items()
            }
            rows.append((what, form.format(**shown)))
    return _table(("others, from `python -m benchmarks <subject>`", ""), rows)


def numbers(found: Mapping[str, Results]) -> str:
    """Tables of the front page; figures that were not measured are left out."""
    brownian = found.get("brownian")
    parts = [] if brownian is None else [_law(brownian), _speed(brownian)]
    return "\n\n".join(part for part in [*parts, _others(found)] if part)


def write(file: Path, found: Mapping[str, Results]) -> None:
    """Put the tables between the marks of a page."""
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text(f"{before}{BEGIN}\n\n{numbers(found)}\n\n{END}{after}")
