"""The optimizers' tables and plots."""

import functools
import math
from pathlib import Path
from typing import Any

from .._report import (
    COLOURS,
    OTHER_COLOUR,
    Results,
    new_plot,
    number,
    plot_name,
    save_plot,
    spread,
    table,
)
from . import headline, over_adamw
from ._methods import SECOND_ORDER


FASTEST = "benchmarks_optimizers_fastest.md"  # included by another page, too


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    parts = [
        ("What was aimed at", _aims(results)),
        ("Exactness in float32", _exactness(results)),
        ("Beside the authors' code", _parity(results)),
        ("Cost of a step", _steps(results)),
        ("What the cost depends on", _intervals(results)),
        ("Time to a target", _races(results, folder)),
        ("Directions", _directions(results, folder)),
        ("Pruning", _pruning(results)),
    ]
    out = []
    for title, body in parts:
        if body:
            out += [f"#### {title}", *body]
    return [part for part in out if part]


# Aims -------------------------------------------------------------------------------


def _ratio(results: Results, case: str, name: str) -> float | None:
    found = results.cases.get(case, {}).get("ratios", {}).get(name)
    return None if found is None else found["median"]


def aims(results: Results) -> list[tuple[str, float, float | None]]:
    """What is aimed at, the most it should be, and what was measured."""
    found = headline(results.cases)
    ratio = lambda case, name: _ratio(results, case, name)
    flat = ratio("interval/mkor", "mkor k=1 over mkor k=100")
    step = functools.partial(ratio, "step/26k")
    return [
        ("AdaHessian every step, over SGD", 2.2, found["adahessian_vs_sgd_step"]),
        (
            "the same by differences of gradients",
            2.2,
            step("adahessian forward k=1 over sgd"),
        ),
        (
            "AdaHessian every 5 steps, over SGD",
            1.3,
            step("adahessian k=5 over sgd"),
        ),
        (
            "the same by differences of gradients",
            1.3,
            step("adahessian forward k=5 over sgd"),
        ),
        (
            "Sophia-H every 10 steps, over AdamW",
            1.1,
            step("sophia_h k=10 over adamw"),
        ),
        (
            "the same by differences of gradients",
            1.1,
            step("sophia_h forward k=10 over adamw"),
        ),
        (
            "the same, of a 15th of the batch as in the paper",
            1.1,
            found["sophia_k10_vs_adamw_step"],
        ),
        (
            "Sophia-G every 10 steps, over AdamW",
            1.1,
            step("sophia_g k=10 over adamw"),
        ),
        ("MKOR refreshed every step, over every 100", 1.1, flat),
        ("M-FAC, time with twice the dimension", 2.2, found["mfac_scaling_2d"]),
        (
            "PINN, error 1e-5, best second-order method over AdamW",
            0.2,
            found["pinn_time_vs_adamw"],
        ),
        (
            "logistic, weight 1e-6, best second-order method over AdamW",
            0.2,
            found["logistic_time_vs_adamw"],
        ),
        ("worst relative error in float32", 1e-6, found["exactness_worst_float32"]),
    ]


def _aims(results: Results) -> list[str]:
    rows = [
        [what, f"at most {number(most, 2)}", number(value), _met(value, most)]
        for what, most, value in aims(results)
    ]
    note = (
        "Times of a step are for 26k parameters and batches of 128, compile time "
        "apart; other sizes are below. Through dense layers an exact Hessian product "
        "takes twice the arithmetic of a gradient."
    )
    floors = [
        f"{number(record['ratios']['floor']['median'])} at {name.split('/')[1]}"
        for name, record in results.family("step").items()
        if "floor" in record["ratios"]
    ]
    if floors:
        note += (
            " A gradient and an exact product, with no optimizer at all, take "
            f"{', '.join(floors)} times as long as the gradient alone: no exact method "
            "can cost less when it takes a product in every step."
        )
    return [note, table(["figure", "aim", "measured", "met"], rows)]


def _met(value: float | None, most: float) -> str:
    return "–" if value is None else "yes" if value <= most else "**no**"


def _exactness(results: Results) -> list[str]:
    record = results.cases.get("exactness/float32")
    if record is None:
        return []
    rows = [[name, number(v, 2)] for name, v in record["figures"].items()]
    note = (
        "Largest difference from dense linear algebra in double precision, relative to "
        "the largest entry: a diagonal of six decades, steps of M-FAC with gradients "
        "10^3 above the root of the damping, natural gradients, Newton steps, MKOR's "
        "inverse after 40 updates, a KFAC step with exact damping."
    )
    return [note, table(["method", "error"], rows)]


def _parity(results: Results) -> list[str]:
    records = results.family("parity").values()
    if not records:
        return []
    differences = {
        k: v for r in records for k, v in r["figures"]["differences"].items()
    }
    revisions = {k: v for r in records for k, v in r["figures"]["revisions"].items()}
    clones = ", ".join(f"{name} at {commit}" for name, commit in revisions.items())
    note = (
        "Twenty steps with the same gradients, products and labels; the largest "
        f"difference of a step relative to its largest entry. {clones}. Some of that "
        "code works in single precision whatever it is given."
    )
    rows = [[what, number(value, 2)] for what, value in differences.items()]
    return [note, table(["what is compared", "difference"], rows)]


# Steps ------------------------------------------------------------------------------


def _steps(results: Results) -> list[str]:
    families = results.family("step")
    if not families:
        return []
    sizes = [name.split("/")[1] for name in families]
    names = dict.fromkeys(
        name for record in families.values() for name in record["contenders"]
    )
    memory = results.cases.get("memory/state", {}).get("figures", {})
    multiples = memory.get("multiples", {})
    size = "26k" if "26k" in sizes else sizes[0]
    head = ["method", *(f"over AdamW, {s}" for s in sizes), f"over SGD, {size}"]
    kept = list(next(iter(multiples.values()), {}))
    head += [f"compile, {size}", f"state, {' / '.join(kept) or size}"]
    rows = []
    for name in names:
        row = [name]
        row += [_cell(families[f"step/{s}"], f"{name} over adamw") for s in sizes]
        row.append(_cell(families[f"step/{size}"], f"{name} over sgd"))
        row.append(_compile(families[f"step/{size}"], name))
        states = multiples.get(name, {})
        row.append(" / ".join(number(states.get(s)) for s in kept) or "–")
        rows.append(row)
    note = (
        "Twenty training steps in one compiled loop, refreshes in their right number; "
        "median and quartiles of the ratios. Compile time is over AdamW's. State is in "
        "multiples of the parameters. L-BFGS and Newton take the batch for all data. "
        "`bare` rows have no optimizer: a gradient, and a gradient with an exact "
        "Hessian product. `forward` takes differences from the gradient at hand (for "
        "smooth losses: rectifiers make its estimates jump), `part` the Hessian of a "
        "15th of the batch."
    )
    return [note, table(head, rows)]


def _cell(record: dict[str, Any], ratio: str) -> str:
    found = record["ratios"].get(ratio)
    if found is None:
        name, _, base = ratio.partition(" over ")
        return "1" if name == base and name in record["contenders"] else "–"
    return spread(found)


def _compile(record: dict[str, Any], name: str) -> str:
    sides = [record["contenders"].get(n) for n in (name, "adamw")]
    if None in sides:
        return "–"
    top, bottom = (c["trace_s"] + c["compile_s"] for c in sides)
    return number(top / bottom)


def _intervals(results: Results) -> list[str]:
    rows = [
        [what.split("/")[0], key, spread(found)]
        for family in ("interval", "scaling", "peer")
        for what, record in results.family(family).items()
        for key, found in record.get("ratios", {}).items()
    ]
    note = (
        "MKOR and KFAC over their refresh intervals; MKOR-H before and after it has "
        "switched to its base rule; AdaHessian with the diagonal from the gradient's "
        "own pass, or apart from it; M-FAC's update alone; other libraries."
    )
    return [note, table(["", "ratio of times", "median (quartiles)"], rows)]


# Races ------------------------------------------------------------------------------


def _tasks(results: Results) -> list[str]:
    names = (name.split("/", 1)[1] for name in results.family("race"))
    return list(dict.fromkeys(name.rsplit(",", 1)[0] for name in names))


def _races(results: Results, folder: Path) -> list[str]:
    tasks = _tasks(results)
    if not tasks:
        return []
    note = (
        "Every method gets the same number of trials over its rate and one parameter "
        "of its own (12; 8 where steps take long: `pinn`, `spiral`, `characters`, "
        "`fourier`), by the same rule, and is tuned for the fewest steps of its "
        "slowest seed; then those steps are timed in one compiled loop, without looks "
        "at the metric. Times, and those of one *step*, are in steps of AdamW on the "
        "same task, which are timed just before and after; given are the median over "
        "seeds and the range. *Reached* counts seeds. `newton` searches for a trust "
        "radius in every step, `newton fixed` keeps it. Both, and L-BFGS, need a loss "
        "that stays the same; `lbfgs whole` takes all data in every step. L-BFGS has "
        "but its memory to tune, peers but their rate."
    )
    fastest = _fastest_table(results)
    if results.device == "cpu":
        (folder / FASTEST).write_text(fastest + "\n")
    order = (
        "Times over AdamW's, the fastest first; a method reached it with most seeds."
    )
    parts = [note, _race_plot(results, tasks, folder), order, fastest]
    for task in tasks:
        parts += [f"**{task}**", _race_table(results, task)]
    return parts


def _fastest_table(results: Results) -> str:
    """Who came first, by task; the page on choosing an optimizer quotes it."""
    rows = []
    for task in _tasks(results):
        ratios = over_adamw(results.cases, task)
        order = sorted(ratios, key=ratios.__getitem__)
        cell = lambda name, r=ratios: f"{name} {number(r[name], 2)}"
        first = [cell(name) for name in order[:3]]
        best = next((cell(name) for name in order if name in SECOND_ORDER), "–")
        raced = sum(name.startswith(f"race/{task},") for name in results.cases)
        reached = f"{len(ratios)} of {raced}"
        rows.append([task, *first, *["–"] * (3 - len(first)), best, reached])
    head = ["task", "first", "second", "third", "first of second order", "reached it"]
    return table(head, rows)


def _race_table(results: Results, task: str) -> str:
    prefix = f"race/{task},"
    ratios = over_adamw(results.cases, task)
    rows = []
    for name, record in results.cases.items():
        if not name.startswith(prefix):
            continue
        method, found = name.removeprefix(prefix), record["figures"]
        # What is no number is stored as text.
        order = (found["time"] is None, float(found["time"] or found["best"]))
        rows.append((order, _race_row(method, found, ratios.get(method))))
    head = ["method", "time over AdamW", "time", "steps", "reached", "step", "chosen"]
    return table(head, [row for _, row in sorted(rows, key=lambda r: r[0])])


def _race_row(method: str, found: dict[str, Any], ratio: float | None) -> list[str]:
    chosen = {"rate": found["rate"], **found["own"]}
    text = ", ".join(f"{k} {number(v, 2)}" for k, v in chosen.items() if v is not None)
    reached = f"{found['reached']} of {found['seeds']}"
    if found["time"] is None:
        left = "no number left"
        if math.isfinite(float(found["best"])):
            left = f"best {number(found['best'], 2)}"
        return [method, "–", "–", "–", f"{reached}, {left}", "–", text]
    low, high = found["time range"]
    return [
        method,
        f"**{number(ratio)}**" if ratio is not None else "–",
        f"{number(found['time'])} ({number(low)} to {number(high)})",
        number(found["steps"]),
        reached,
        number(found["time"] / found["steps"]),
        text,
    ]


def _race_plot(results: Results, tasks: list[str], folder: Path) -> str:
    figure, axes = new_plot(height=1.2 + 0.38 * len(tasks))
    shown = set()
    for i, task in enumerate(tasks):
        for method, ratio in over_adamw(results.cases, task).items():
            kind = _kind(method)
            colour, marker = _STYLES[kind]
            label = None if kind in shown else kind
            shown.add(kind)
            axes.plot(ratio, i, marker, color=colour, ms=6, alpha=0.7, label=label)
    axes.axvline(1, color="black", lw=0.8)
    label = "time to the target over AdamW's"
    axes.set(xscale="log", xlabel=label, ylim=(len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), tasks)
    figure.legend(loc="outside upper center", ncols=len(shown))
    file = save_plot(figure, folder, plot_name(results, "races"))
    return f"![Time to the target over AdamW's, one line a task](generated/{file})"


_STYLES = {
    "second order": (COLOURS["pathax"], "o"),
    "SOAP, Shampoo": ("#00897b", "s"),
    "first order": (OTHER_COLOUR, "d"),
    "L-BFGS": ("black", "x"),
    "peer": (COLOURS["diffrax"], "^"),
}


def _kind(method: str) -> str:
    if method in SECOND_ORDER:
        return "second order"
    if method.startswith("lbfgs"):
        return "L-BFGS"
    if method.startswith("somax"):
        return "peer"
    return "SOAP, Shampoo" if method in ("soap", "shampoo") else "first order"


# Directions and pruning ---------------------------------------------------------------


def _directions(results: Results, folder: Path) -> list[str]:
    cases = results.family("direction")
    if not cases:
        return []
    note = (
        "The sine of the angle between an optimizer's update and `(C + damping)^-1 g`, "
        "with a dense Gauss-Newton matrix in double precision: the relative error "
        "after the best rescaling, 0 for Newton's direction, 1 at right angles to it. "
        "All see one trajectory of Adam on batches. Momentum is off."
    )
    parts = [note]
    for name, record in cases.items():
        figures, what = record["figures"], name.split("/")[1]
        head = [what, *(f"step {n}" for n in figures["steps"])]
        errors = figures["errors"]
        rows = [[k, *(number(v) for v in errors[k])] for k in errors]
        parts += [_direction_plot(results, what, figures, folder), table(head, rows)]
    return parts


# Twelve that can be told apart, in shades of six hues.
_LINES = (
    *("#9e9e9e", "#424242", "#ffb300", "#e65100", "#8d6e63", "#d81b60"),
    *("#81c784", "#00897b", "#004d40", "#7e57c2", "#4fc3f7", "#1a237e"),
)


def _direction_plot(
    results: Results, what: str, figures: dict[str, Any], folder: Path
) -> str:
    figure, axes = new_plot(height=4.2)
    steps = [n + 1 for n in figures["steps"]]
    for i, (method, errors) in enumerate(figures["errors"].items()):
        colour, mark = _LINES[i % len(_LINES)], "os^vDX"[i % 6]
        axes.plot(steps, errors, mark + "-", color=colour, ms=4, lw=1.2, label=method)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="step, from 1",
        ylabel="error of the direction",
        title=what,
    )
    figure.legend(loc="outside right upper", fontsize=8)
    file = save_plot(figure, folder, plot_name(results, f"direction_{what}"))
    return f"![Error of each preconditioner over training, {what}](generated/{file})"


def _pruning(results: Results) -> list[str]:
    record = results.cases.get("pruning/digits")
    if record is None:
        return []
    means = record["figures"]["means"]
    sparsities = list(next(iter(means.values())))
    head = ["accuracy", *(f"{100 * float(s):.0f}% removed" for s in sparsities)]
    rows = [[kind, *(number(v[s]) for s in sparsities)] for kind, v in means.items()]
    note = (
        "A classifier of digits, weights removed without any training afterwards; mean "
        "accuracy over seeds. `surgeon` is M-FAC's optimal brain surgeon, in four "
        "rounds with the gradients of 64 examples."
    )
    return [note, table(head, rows)]
