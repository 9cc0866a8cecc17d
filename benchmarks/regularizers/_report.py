"""The regularizers' tables and fronts."""

from pathlib import Path

from .._report import Results, number, table
from ._front import OWN, fronts
from ._published import PUBLISHED
from ._tasks import TASKS
from ._train import ALLOWED, ALLOWED_REST


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run, and a figure."""
    tasks = by_task(results)
    first = {k: m for k, m in tasks.items() if "(" not in k}
    snippets = {"summary": summary(first)} if first else {}
    snippets |= {"bias": _bias(results)[-1]} if results.family("bias") else {}
    for name, text in snippets.items():
        (folder / f"{name}_regularizers_{results.device}.md").write_text(text + "\n")
    parts = [
        ("Evaluations and accuracy", _training(first)),
        ("Beside the published tables", _published(first)),
        ("Second-order methods", _second_order(tasks)),
        ("Fronts", fronts(first, results, folder)),
        ("A weight that sets itself", _automatic(results)),
        ("Parameters of a physical system", _bias(results)),
        ("Overhead", _overhead(results)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def by_task(results: Results) -> dict[str, dict[str, dict]]:
    """Figures by task and method; another optimizer, in brackets, makes another."""
    out: dict[str, dict[str, dict]] = {}
    for name, record in results.family("train").items():
        task, method, *optimizer = name.removeprefix("train/").split(",")
        task = f"{task} ({optimizer[0]})" if optimizer else task
        out.setdefault(task, {})[method] = record["figures"]
    return out


def _interval(found: dict) -> str:
    low, high = found["nfe_ratio_lower95"], found["nfe_ratio_upper95"]
    return f"{number(found['nfe_ratio'])} ({number(low)} to {number(high)})"


def _change(found: dict) -> str:
    low = found["accuracy_change_lower95_pt"]
    return f"{found['accuracy_change_pt']:+.2f} (≥ {low:+.2f})"


def _weight(found: dict) -> str:
    edge = " (largest)" if found["weight"] == max(found["weights"]) else ""
    edge = " (smallest)" if found["weight"] == min(found["weights"]) else edge
    return number(found["weight"]) + edge


def accurate(task: str, found: dict) -> bool:
    """As accurate as the twin, by the same rule as on validation data."""
    if TASKS[task].right:
        return found["accuracy_change_pt"] >= -100 * ALLOWED
    return found["error_ratio"] <= ALLOWED_REST


def meets(task: str, found: dict) -> bool:
    """At most 0.6 of the evaluations, surely, and as accurate."""
    return accurate(task, found) and found["nfe_ratio_upper95"] <= 0.6


def _training(tasks: dict) -> list[str]:
    out = []
    for task, methods in tasks.items():
        right = TASKS[task].right
        rows = [
            [
                f"**{method}**" if method in OWN else method,
                _weight(found),
                _interval(found),
                _change(found) + ("" if right else f", {found['error_ratio']:.3f}"),
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
        what = "right" if right else "of the variance explained"
        out.append(
            f"**{task}**, {len(one['plain'][0])} seeds: without a penalty "
            f"{number(one['nfe_plain'])} evaluations and "
            f"{100 * one['accuracy_plain']:.1f}% {what}; the same networks at a ten "
            f"times looser tolerance take {loose}."
        )
        points = "points (95% limit)" + ("" if right else ", rest")
        head = ["", "weight", "evaluations", points]
        head += ["tolerance / 10", "another solver", "prediction time"]
        out.append(table(head, rows))
    if not out:
        return []
    good = [t for t, m in tasks.items() if any(meets(t, f) for f in m.values())]
    note = (
        "Ratios and differences to the twin without a penalty, of the same start, "
        "batches and seed; means over seeds on test data, with a 95% interval. Each "
        "method has three or five weights, of which validation data choose the one "
        "with the fewest evaluations that costs at most half a point there, on average "
        "over seeds (where variance is explained: that leaves at most 2% more of it). "
        "In bold are our methods; *error*, *stiffness* and both *published* ones are "
        "those of the papers, *steer*, *taynode* (second derivatives) and *rnode* of "
        "other authors, and *weight decay* asks whether smaller parameters are all "
        "there is to it. Tolerances of ordinary equations are the published ones. At "
        "most 0.6 of the evaluations, by the upper limit, with an accuracy that the "
        f"same rule allows came out on {len(good)} of {len(tasks)} tasks: "
        f"{', '.join(good) or 'none'}."
    )
    return [note, *out]


def summary(tasks: dict) -> str:
    """One line a task: evaluations and accuracy of the methods most used."""
    shown = ("step cost", "local", "error", "published biased")
    rows = []
    for task, methods in tasks.items():
        one = next(iter(methods.values()))
        cells = [
            f"{number(f['nfe_ratio'], 2)} (≤ {number(f['nfe_ratio_upper95'], 2)}), "
            f"{f['accuracy_change_pt']:+.1f}"
            if (f := methods.get(name))
            else "–"
            for name in shown
        ]
        before = f"{number(one['nfe_plain'])}, {100 * one['accuracy_plain']:.1f}%"
        rows.append([task, before, *cells])
    return table(["", "plain", *shown], rows)


# The tasks run here that are nearest to the published ones.
NEAREST = {
    "MNIST, 28 x 28": "mnist",
    "PhysioNet 2012, latent ODE": "clinical",
    "spiral, stochastic": "spiral SDE",
    "MNIST, stochastic": "digits SDE",
}


def _published(tasks: dict) -> list[str]:
    rows = []
    for row in PUBLISHED:
        nearest = NEAREST[row.task]
        found = tasks.get(nearest, {}).get(row.method)
        if found is not None:
            before, after = row.fit
            fit = f"{number(before, 4)} to {number(after, 4)} {row.unit}"
            here = [nearest, number(found["nfe_ratio"]), _change(found)]
            rows.append([row.task, row.method, number(row.ratio), fit, *here])
    if not rows:
        return []
    note = (
        "The papers' figures, for larger tasks and longer training on other machines, "
        "beside the same method on the nearest task here: compare what is gained, not "
        "the numbers themselves."
    )
    head = ["published", "method", "evaluations", "fit", "here", "evaluations"]
    return [note, table([*head, "points (95% limit)"], rows)]


def _second_order(tasks: dict) -> list[str]:
    rows = []
    for task, methods in tasks.items():
        name, bracket, optimizer = task.rstrip(")").partition(" (")
        found = methods.get("step cost")
        both = [t for t in tasks if t.startswith(f"{name} (")]
        if found is None or not (bracket or both):
            continue
        rows.append(
            [
                name,
                optimizer or "adamw",
                number(found["nfe_plain"]),
                f"{100 * found['accuracy_plain']:.1f}",
                _interval(found),
                _change(found),
            ]
        )
    if not rows:
        return []
    note = (
        "The step cost under SOAP and Shampoo, second-order methods of this library, "
        "beside AdamW; all with the learning rate of the task. For these two the "
        "weight is not chosen: it is that in the middle of the others."
    )
    head = ["", "optimizer", "plain evaluations", "plain, %", "evaluations"]
    return [note, table([*head, "points (95% limit)"], sorted(rows))]


def _automatic(results: Results) -> list[str]:
    out = []
    for name, record in results.family("automatic").items():
        found = record["figures"]
        keys = ("targets", "evaluations", "low", "high", "change_pt")
        rows = [
            [
                number(target),
                f"{number(mean)} ({number(low)} to {number(high)})",
                f"{change:+.2f}",
            ]
            for target, mean, low, high, change in zip(
                *(found[key] for key in keys), strict=True
            )
        ]
        out.append(
            f"The step cost on {name.removeprefix('automatic/')} with its weight by "
            "dual ascent, the same start and rate for all targets; "
            f"{number(found['plain'])} evaluations without."
        )
        head = ["target", "evaluations, test data (95%)", "accuracy, points"]
        out.append(table(head, rows))
    return out


def _bias(results: Results) -> list[str]:
    out = []
    for name, record in results.family("bias").items():
        found = record["figures"]
        rows = [
            [
                number(weight),
                f"{off:+.2f} ({low:+.2f} to {high:+.2f})",
                *map(number, rest),
            ]
            for weight, off, low, high, *rest in zip(
                found["weights"],
                found["damping_off_percent"],
                found["damping_off_lower95"],
                found["damping_off_upper95"],
                found["evaluations"],
                found["error"],
                strict=True,
            )
        ]
        title = name.removeprefix("bias/")
        out.append(
            f"Two parameters of the {title} oscillator, found from noisy positions "
            "with a step cost in the loss: the penalty moves the damping away from the "
            "truth, towards an equation that is easier to solve. Error is that of the "
            "path, by root mean square."
        )
        head = ["weight", "damping off, %", "evaluations", "error"]
        out.append(table(head, rows))
    return out


def _overhead(results: Results) -> list[str]:
    rows = [
        [
            name.removeprefix("overhead/"),
            pair,
            number(found["median"]),
            f"{number(found['q1'])} to {number(found['q3'])}",
        ]
        for name, record in results.family("overhead").items()
        for pair, found in record["ratios"].items()
    ]
    if not rows:
        return []
    note = (
        "Time of a whole solve (100 hidden units, batch 256), and of a gradient of the "
        "loss on digits (as large, tolerance 1.4e-8, penalties of equal weight), taken "
        "in turns. *Counting*: evaluations alone are counted."
    )
    return [note, table(["", "of", "time", "quartiles"], rows)]
