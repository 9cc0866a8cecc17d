"""Fronts of evaluations and accuracy over all weights: areas, and a figure."""

from pathlib import Path

import numpy as np

from .._report import COLOURS, OTHER_COLOUR, Results, number, table
from ._train import bootstrap


# Colours of the methods that are drawn; dotted where they are other authors'.
COLOUR = {
    "step cost": COLOURS["pathax"],
    "local": "#00897b",
    "local by steps": "#7cb342",
    "error": COLOURS["diffrax"],
    "stiffness": "#6a1b9a",
    "published unbiased": "#a1887f",
    "published biased": "#5d4037",
    "steer": "#c2185b",
    "taynode": "#fbc02d",
    "rnode": OTHER_COLOUR,
    "weight decay": "#bdbdbd",
}
OWN = ("step cost", "local", "local by steps")


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


def volumes(found: dict) -> np.ndarray:
    """One a seed."""
    plain = zip(*found["plain"], strict=True)
    lanes = zip(*found["test"], plain, strict=True)
    return np.array([hypervolume(*lane) for lane in lanes])


def _row(task: str, ours: dict, theirs: dict) -> list[str]:
    own, other = volumes(ours), volumes(theirs)
    low, high = bootstrap(own - other)
    verdict = "step cost" if low > 0 else "error" if high < 0 else "undecided"
    interval = f"{low:+.3f} to {high:+.3f}"
    return [task, number(own.mean()), number(other.mean()), interval, verdict]


def fronts(tasks: dict, results: Results, folder: Path) -> list[str]:
    """A table of areas, and the figure."""
    rows = [
        _row(task, methods["step cost"], methods["error"])
        for task, methods in tasks.items()
        if {"step cost", "error"} <= set(methods)
    ]
    if not rows:
        return []
    better = [row[-1] for row in rows]
    note = (
        "Over all weights: the area between a method's front (evaluations, accuracy) "
        "and the twin's evaluations at five points less accuracy; 1 is all of it. "
        "The interval is of the paired difference over seeds. It is above zero, in "
        f"favour of the step cost, on {better.count('step cost')} of {len(rows)} "
        f"tasks, below it on {better.count('error')}, and does not exclude zero on "
        f"{better.count('undecided')}."
    )
    head = ["", "step cost", "error", "difference, 95%", "better"]
    return [note, table(head, rows), *_figure(tasks, results, folder)]


def _panel(axis, task: str, methods: dict) -> None:
    for method, found in methods.items():
        evaluations, accuracy = (np.mean(x, 0) for x in found["test"])
        style = "o-" if method in OWN else "s:"
        colour = COLOUR[method]
        axis.plot(evaluations, accuracy, style, color=colour, label=method, ms=4)
    evaluations, accuracy = (np.mean(x) for x in next(iter(methods.values()))["plain"])
    axis.plot(evaluations, accuracy, "k*", ms=11, label="plain")
    axis.set(title=task, xlabel="evaluations")
    axis.set_ylim(bottom=max(accuracy - 0.1, axis.get_ylim()[0]))


def _steps_panel(axis, task: str, methods: dict) -> None:
    shown = {k: methods[k] for k in ("step cost", "error", "local") if k in methods}
    first = next(iter(shown.values()))["steps"][0]
    for name, times in [
        ("plain", first),
        *((k, f["steps"][1]) for k, f in shown.items()),
    ]:
        sizes = np.diff(times)
        colour = COLOUR.get(name, "k")
        axis.step(times, [*sizes, sizes[-1]], where="post", color=colour, label=name)
    axis.set(title=task, xlabel="t", yscale="log")


def _figure(tasks: dict, results: Results, folder: Path) -> list[str]:
    """Panels of fronts and panels of step sizes, one a task."""
    shown = {k: m for k, m in tasks.items() if len(m) > 1}
    traced = {
        k: m for k, m in tasks.items() if all("steps" in found for found in m.values())
    }
    save = lambda what, title, draw, tasks: _panels(
        what, title, draw, tasks, results.device, folder
    )
    out = [
        save("front", "Accuracy over evaluations, by method and weight", _panel, shown)
    ]
    if traced:
        out.append(save("steps", "Step sizes of predictions", _steps_panel, traced))
    return out


def _panels(what: str, title: str, draw, tasks: dict, device: str, folder: Path) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False
    )
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for axis, (task, methods) in zip(axes.flat, tasks.items(), strict=False):
        draw(axis, task, methods)
    most = max(range(len(tasks)), key=lambda i: len(list(tasks.values())[i]))
    axes.flat[most].legend(fontsize=6)
    label = "right, or explained" if what == "front" else "step size"
    for row in axes:
        row[0].set_ylabel(label)
    figure.tight_layout()
    name = f"benchmarks_regularizers_{device}_{what}.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    plt.close(figure)
    return f"![{title}](generated/{name})"
