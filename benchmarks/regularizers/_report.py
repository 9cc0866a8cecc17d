"""The regularizers' tables and fronts."""

from pathlib import Path

import numpy as np

from .._report import COLOURS, OTHER_COLOUR, Results, number, table
from ._train import bootstrap


OWN = ("step cost", "local", "error")
COLOUR = {
    "step cost": COLOURS["pathax"],
    "local": "#00897b",
    "error": COLOURS["diffrax"],
    "published local": "#8d6e63",
    "steer": "#c2185b",
    "taynode": "#fbc02d",
    "rnode": OTHER_COLOUR,
}


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run, and a figure."""
    parts = [
        ("Evaluations and accuracy", _training(results)),
        ("Fronts", _fronts(results, folder)),
        ("Overhead", _overhead(results)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def by_task(results: Results) -> dict[str, dict[str, dict]]:
    """Figures by task and method; another optimizer makes another task."""
    out: dict[str, dict[str, dict]] = {}
    for name, record in results.family("train").items():
        task, method, *optimizer = name.removeprefix("train/").split(",")
        task = f"{task}, {optimizer[0]}" if optimizer else task
        out.setdefault(task, {})[method] = record["figures"]
    return out


def _interval(found: dict) -> str:
    low, high = found["nfe_ratio_lower95"], found["nfe_ratio_upper95"]
    return f"{number(found['nfe_ratio'])} ({number(low)} to {number(high)})"


def _weight(found: dict) -> str:
    edge = " (largest tried)" if found["weight"] == max(found["weights"]) else ""
    return number(found["weight"]) + edge


def _training(results: Results) -> list[str]:
    out = []
    for task, methods in by_task(results).items():
        rows = [
            [
                method,
                _weight(found),
                _interval(found),
                f"{found['accuracy_change_pt']:+.2f}",
                number(found["nfe_ratio_tight"]),
                number(found["nfe_ratio_other_solver"]),
                number(found["predict_time_ratio"]),
            ]
            for method, found in methods.items()
        ]
        one = next(iter(methods.values()))
        loose = (
            f"{number(one['loose_nfe_ratio'])} of the evaluations at "
            f"{one['loose_accuracy_change_pt']:+.2f} points"
        )
        out.append(
            f"**{task}**: without a penalty {number(one['nfe_plain'])} evaluations and "
            f"{100 * one['accuracy_plain']:.1f}% right; the same networks at a ten "
            f"times looser tolerance take {loose}."
        )
        head = ["", "weight", "evaluations", "accuracy, points"]
        head += ["tolerance / 10", "another solver", "prediction time"]
        out.append(table(head, rows))
    if not out:
        return []
    note = (
        "Ratios and differences to the twin without a penalty, of the same start, "
        "batches and seed; means over seeds on test data, with a 95% interval. Each "
        "method has three weights, of which validation data choose the one with the "
        "fewest evaluations that costs at most half a point there, on average over "
        "seeds. *error* is the published penalty on the whole solve, *steer*, "
        "*taynode* (second derivatives) and *rnode* are those of other authors; "
        "*step cost* and *local* are ours."
    )
    return [note, *out]


def hypervolume(evaluations: list, accuracy: list, plain: tuple) -> float:
    """Area that a front dominates: of evaluations below the plain twin's, relative,
    times accuracy above five points less than its."""
    floor = plain[1] - 0.05
    points = [
        (1 - n / plain[0], (a - floor) / 0.05)
        for n, a in zip(evaluations, accuracy, strict=True)
        if n < plain[0] and a > floor
    ]
    area, best = 0.0, 0.0
    for gain, height in sorted([*points, (0.0, 1.0)], reverse=True):
        if height > best:
            area += gain * (height - best)
            best = height
    return area


def _volumes(found: dict) -> np.ndarray:
    plain = zip(*found["plain"], strict=True)
    lanes = zip(*found["test"], strict=True)
    return np.array([hypervolume(*x, p) for x, p in zip(lanes, plain, strict=True)])


def _fronts(results: Results, folder: Path) -> list[str]:
    tasks = by_task(results)
    rows = []
    for task, methods in tasks.items():
        if not {"step cost", "error"} <= set(methods):
            continue
        ours, theirs = _volumes(methods["step cost"]), _volumes(methods["error"])
        low, high = bootstrap(ours - theirs)
        verdict = "step cost" if low > 0 else "error" if high < 0 else "undecided"
        values = [number(ours.mean()), number(theirs.mean())]
        rows.append([task, *values, f"{low:+.3f} to {high:+.3f}", verdict])
    if not rows:
        return []
    note = (
        "Over all weights: the area between a method's front (evaluations, accuracy) "
        "and the twin's evaluations at five points less accuracy; 1 is all of it. "
        "The interval is of the paired difference over seeds."
    )
    head = ["", "step cost", "error", "difference, 95%", "better"]
    return [note, table(head, rows), *_figure(results, folder)]


def _figure(results: Results, folder: Path) -> list[str]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = {k: m for k, m in by_task(results).items() if len(m) > 1}
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 3.6), squeeze=False
    )
    for axis, (task, methods) in zip(axes[0], tasks.items(), strict=True):
        for method, found in methods.items():
            evaluations, accuracy = (np.mean(x, 0) for x in found["test"])
            style = "o-" if method in OWN else "s:"
            axis.plot(evaluations, accuracy, style, color=COLOUR[method], label=method)
        evaluations, accuracy = (
            np.mean(x) for x in next(iter(methods.values()))["plain"]
        )
        axis.plot(evaluations, accuracy, "k*", ms=11, label="plain")
        axis.set(title=task, xlabel="evaluations", ylabel="accuracy")
        axis.set_ylim(bottom=max(accuracy - 0.1, axis.get_ylim()[0]))
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    name = f"benchmarks_regularizers_{results.device}_front.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    plt.close(figure)
    return [f"![Accuracy over evaluations, by method and weight](generated/{name})"]


def _overhead(results: Results) -> list[str]:
    rows = [
        [name.removeprefix("overhead/"), pair, number(found["median"])]
        for name, record in results.family("overhead").items()
        for pair, found in record["ratios"].items()
    ]
    if not rows:
        return []
    note = (
        "Time of a whole solve (100 hidden units, batch 256), and of a gradient of the "
        "loss on digits, taken in turns. *Counting*: evaluations alone are counted."
    )
    return [note, table(["", "of", "time"], rows)]
