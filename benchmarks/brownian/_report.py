"""The Brownian subject's tables and plots."""

from pathlib import Path

from .._report import (
    COLOURS,
    Results,
    new_plot,
    number,
    plot_name,
    plot_ratios,
    save_plot,
    table,
    timing_table,
)


TREES = ("pathax", "diffrax")


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    parts = [
        ("The law in float32", _law_text, _law_plot(results, folder)),
        ("Strong order in float32", _order_text, _order_plot(results, folder)),
        ("One increment", _query_text, _query_plot(results, folder)),
        ("Solves that query the tree", _solve_text, ""),
        ("Fixed grids", _grid_text, ""),
        ("The floor", _floor_text, ""),
    ]
    out = []
    for title, text, plot in parts:
        body = text(results)
        if body:
            out += [f"#### {title}", *body, plot]
    return [part for part in out if part]


def _law_text(results: Results) -> list[str]:
    cases = results.family("law")
    if not cases:
        return []
    rows = []
    for name, record in cases.items():
        for row in record["figures"]["rows"]:
            cells = [f"{name.split('/')[1]}, 2^-{row['exponent']}"]
            for tree in TREES:
                cells += [number(_plain(v), 4) for v in row["ratios"][tree]]
            rows.append(cells)
    samples = min(r["figures"]["samples"] for r in cases.values())
    head = ["step"] + [f"{tree} Z{n}" for tree in TREES for n in range(3)]
    note = (
        "Variance of the normalised increments `Z0` (from W), `Z1` (H) and `Z2` (K) "
        "over one step, a power of two of the horizon; 1 is right. "
        f"{samples} samples, so one standard deviation is "
        f"{number(100 * (2 / samples) ** 0.5, 2)}%."
    )
    return [note, table(head, rows)]


def _plain(value: float | str) -> float:
    """Numbers that are not finite are stored as text."""
    return float(value)


def _law_plot(results: Results, folder: Path) -> str:
    cases = results.family("law")
    if not cases:
        return ""
    name, record = next(iter(cases.items()))
    rows = record["figures"]["rows"]
    figure, axes = new_plot()
    steps = [2.0 ** -row["exponent"] for row in rows]
    for tree in reversed(TREES):  # ours on top
        for n, style in enumerate(("-", "--", ":")):
            values = [_plain(row["ratios"][tree][n]) for row in rows]
            shown = [max(v, 1e-4) for v in values]
            label = f"{tree} Z{n}"
            axes.plot(steps, shown, style, color=COLOURS[tree], marker=".", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="step / horizon",
        ylabel="variance ratio (below 1e-4 drawn there)",
        title=name.split("/")[1],
    )
    axes.legend(ncols=2)
    file = save_plot(figure, folder, plot_name(results, "law"))
    return f"![Variance ratios against the step](generated/{file})"


def _order_text(results: Results) -> list[str]:
    record = results.cases.get("quicksort/double-well")
    if record is None:
        return []
    figures = record["figures"]
    columns = {f"error {tree}": figures[f"errors {tree}"] for tree in TREES}
    for tree in TREES:
        if f"errors of noise {tree}" in figures:
            columns[f"noise of {tree} alone"] = figures[f"errors of noise {tree}"]
    columns["rounding"] = figures["floors"]
    rows = [
        [f"{step:g}", *map(number, row)]
        for step, *row in zip(figures["steps"], *columns.values(), strict=True)
    ]
    orders = " and ".join(
        f"{number(_plain(figures[f'order {tree}']))} with {tree}" for tree in TREES
    )
    note = (
        "Root-mean-square error of `diffrax.QUICSORT` on underdamped Langevin dynamics "
        f"in a double well, {figures['paths']} paths, against a float64 solve of the "
        f"same path with step {figures['reference step']:g}. Order, fitted where "
        f"third-order convergence would stay above rounding: {orders}; 3 in theory. "
        "*Noise alone* has float32 noise but float64 arithmetic; *rounding* is what "
        "adding up the steps in float32 costs."
    )
    return [note, table(["step", *columns], rows)]


def _order_plot(results: Results, folder: Path) -> str:
    record = results.cases.get("quicksort/double-well")
    if record is None:
        return ""
    figures = record["figures"]
    steps = figures["steps"]
    figure, axes = new_plot()
    for tree in TREES:
        errors = figures[f"errors {tree}"]
        axes.plot(steps, errors, marker="o", color=COLOURS[tree], label=tree)
        alone = figures.get(f"errors of noise {tree}")
        if alone is not None:
            label = f"{tree}, noise alone"
            axes.plot(steps, alone, "--", marker=".", color=COLOURS[tree], label=label)
    anchor = figures["errors pathax"][0]
    third = [anchor * (h / steps[0]) ** 3 for h in steps]
    axes.plot(steps, third, color="black", lw=0.8, ls="--", label="order 3")
    axes.plot(steps, figures["floors"], color="black", lw=0.8, ls=":", label="rounding")
    shown = [v for k, values in figures.items() if k.startswith("err") for v in values]
    bottom = min([*shown, *figures["floors"]]) / 2
    axes.set(
        xscale="log", yscale="log", xlabel="step", ylabel="error", ylim=(bottom, None)
    )
    axes.legend()
    file = save_plot(figure, folder, plot_name(results, "order"))
    return f"![Error against the step](generated/{file})"


def _query_text(results: Results) -> list[str]:
    body = timing_table(results, "query", "speedup", "times faster than diffrax")
    if not body:
        return []
    note = (
        "The increment over one interval of about 2^-9 of the horizon, tree built from "
        "a traced key inside of the timed function; each element of a batch has its "
        "own key and interval. With batch 1 a good part of the time is that of calling "
        "a compiled function at all; *net of an empty call* takes it away from both."
    )
    return [note, body]


def _query_plot(results: Results, folder: Path) -> str:
    label = "times faster than diffrax, one increment"
    return plot_ratios(results, "query", "speedup", label, folder)


def _solve_text(results: Results) -> list[str]:
    body = timing_table(results, "solve", "speedup", "times faster than diffrax")
    if not body:
        return []
    steps = []
    for name, record in results.family("solve").items():
        work = {k: c.get("work") for k, c in record["contenders"].items()}
        if None not in work.values():
            counts = ", ".join(f"{int(v)} with {k}" for k, v in work.items())
            steps.append(f"`{name.split('/')[1]}` {counts}")
    note = (
        "`euler`: 1000 steps of `diffrax.Euler` on a scalar equation. `spark`: "
        "adaptive `diffrax.SPaRK` on two components with non-commuting noise. "
        "The two trees are different paths of the same law, so adaptive "
        "solves differ in their number of steps, and *per step* is the fair ratio."
    )
    if steps:
        note += f" Attempted steps of the longest path: {'; '.join(steps)}."
    return [note, body]


def _grid_text(results: Results) -> list[str]:
    ratios = {
        "over scan": "time over that of a scan written by hand",
        "over diffeqsolve": "time over that of `diffeqsolve` without noise",
        "speedup": "times faster than diffrax's tree",
    }
    tables = [
        timing_table(results, "grid", key, title) for key, title in ratios.items()
    ]
    if not any(tables):
        return []
    note = (
        "1000 Euler steps, scalar noise laid out on the grid of the steps: beforehand "
        "(`stored`), or within the timed function (`built`). The scan is five "
        "operations a step, fused; `diffeqsolve` without noise is what its stepping "
        "alone costs, with `ConstantStepSize` or `StepTo`."
    )
    return [note, *tables]


def _floor_text(results: Results) -> list[str]:
    body = timing_table(results, "floor", "over floor", "time over that of the normals")
    if not body:
        return []
    note = (
        "A batched query of 1000 components beside one call of `jax.random.normal` for "
        "the normals that it needs at least: the root's, and those of every node with "
        "an end of the interval in its interior."
    )
    return [note, body]
