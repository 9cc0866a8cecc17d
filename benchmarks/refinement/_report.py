"""The tables of refinement."""

from pathlib import Path

from .._report import Results, new_plot, number, save_plot, table


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    parts = [
        ("A network, refined", _network(results)),
        ("Residual and error", _estimator(results, folder)),
        ("Decaying turbulence", _turbulence(results)),
        ("Beside solvers", _solvers(results, folder)),
        ("Parameters from noisy frames", _inverse(results)),
    ]
    out: list[str] = []
    for title, body in parts:
        if body:
            out += [f"#### {title}", *body]
    return out


def _figures(results: Results, name: str) -> dict:
    return results.cases.get(name, {}).get("figures", {})


def _network(results: Results) -> list[str]:
    found = _figures(results, "network/forced flow")
    if not found:
        return []
    names = ["network", "one step", "two steps", "three steps"]
    rows = []
    for n, name in enumerate(names):
        low, high = found[f"error {n} range"]
        rows.append(
            [name, number(found[f"error {n}"]), f"{number(low)} to {number(high)}"]
        )
    note = (
        "Relative L2 error over ten frames of forced flow on 64 x 64 points, median "
        f"and range over eight flows; that of no change is "
        f"{number(found['error of no change'])}. Adam, at the best of four rates and "
        f"with as many transforms, leaves {number(found['over Adam'])} times the error "
        "of three steps; the network, trained for the whole time instead, "
        f"{number(found['over training longer'])} times that."
    )
    if results.shows_times:
        note += f" A step takes {number(found['seconds_per_iteration'])} s."
    return [note, table(["", "error", "range"], rows)]


def _estimator(results: Results, folder: Path) -> list[str]:
    found = _figures(results, "estimator/forced flow")
    if not found:
        return []
    note = (
        f"Over {found['pairs']} pairs of flows, Gauss-Newton steps and bands of noise "
        "the rank correlation of the estimated residual and the true error is "
        f"**{number(found['spearman'])}**. Residual over error, which a constant could "
        f"make one, differs by a factor of {number(_spread(found))} over all of them."
    )
    figure, axes = new_plot(4.5, 3.4)
    axes.loglog(found["errors"], found["etas"], ".")
    axes.set(xlabel="relative error", ylabel="residual, the estimate")
    file = save_plot(figure, folder, f"benchmarks_refinement_{results.device}_estimate")
    return [note, f"![Residual and error](generated/{file})"]


def _spread(found: dict) -> float:
    """Largest over least of residual over error."""
    ratios = [a / b for a, b in zip(found["etas"], found["errors"], strict=True)]
    return max(ratios) / min(ratios)


def _turbulence(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("turbulence").items():
        found = record["figures"]
        for way in ("whole", "slabs", "slabs, three steps"):
            spent = found[f"seconds {way}"] / found["seconds whole"]
            rows.append([name, way, number(found[f"error {way}"]), number(spent)])
    if not rows:
        return []
    note = (
        "Four Gauss-Newton steps for the whole window, by polynomials of degree 12; "
        "two or three in five slabs, of degree 10 on 128 x 128 points, 12 on 256 x 256."
    )
    return [note, table(["case", "window", "error", "time over whole"], rows)]


def _solvers(results: Results, folder: Path) -> list[str]:
    out: list[str] = []
    curves: dict[str, dict[str, list]] = {}
    for name, record in results.family("solvers").items():
        found = record["figures"]
        unit = found["etdrk4"][0][0]
        curves[name] = {
            way: [(seconds / unit, error) for seconds, error in points]
            for way, points in found.items()
        }
        rows = [
            [way, ", ".join(f"{number(s)}: {number(e)}" for s, e in points)]
            for way, points in curves[name].items()
        ]
        out += [name, table(["method", "time: error"], rows)]
    if not out:
        return []
    note = (
        "Time (in that of ten steps of `etdrk4`) and relative error at the end of one "
        "window of flow under the Kolmogorov force, for 10 to 320 steps of solvers (at "
        "most 80 for 64 flows) and one to four of refinement. `exponax` keeps other "
        "modes near the end of the band, hence its floor. For the plain forward "
        "problem solvers win."
    )
    return [note, _front(curves, results, folder), *out]


def _front(curves: dict[str, dict[str, list]], results: Results, folder: Path) -> str:
    """Error against time, a panel for each batch."""
    figure, _ = new_plot(3.4 * len(curves), 3.4)
    figure.clear()
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (name, ways) in zip(panels, curves.items(), strict=True):
        for way, points in ways.items():
            style = "s--" if way.startswith("refined") else "."
            axes.loglog(*zip(*points, strict=True), style + "-"[: len(style) == 1])
        axes.set(title=name.split("/")[1], xlabel="time")
    panels[0].set(ylabel="relative error")
    panels[-1].legend(next(iter(curves.values())), fontsize=7)
    file = save_plot(figure, folder, f"benchmarks_refinement_{results.device}_solvers")
    return f"![Error against time](generated/{file})"


def _inverse(results: Results) -> list[str]:
    rows, covers = [], []
    for name, record in results.family("inverse").items():
        found, case = record["figures"], name.removeprefix("inverse/")
        ways = [n.removeprefix("seconds ") for n in found if n.startswith("seconds ")]
        for way in ways:
            misfit = found.get(f"misfit {way}")
            shown = f"misfit {number(misfit)}"
            if misfit is None:
                shown = f"{found[f'found {way}']} of {found['tried']} found"
            spent = found[f"seconds {way}"]
            if spent is not None:
                spent /= found["seconds infer"]
            rows.append([case, way, number(spent), shown])
        seeds = record["parameters"]["seeds"]
        parts = [n.removeprefix("coverage ") for n in found if "coverage" in n]
        covers.append(
            [
                case,
                f"{found.get('seeds found', seeds)} of {seeds}",
                ", ".join(f"{found[f'coverage {n}']:.1%} {n}" for n in parts),
            ]
        )
    if not rows:
        return []
    note = (
        "Frames with noise, at every fourth point, fitted by `infer` and through a "
        "solver, with the same prior and the same first guess. Misfits are over the "
        "noise: about one where the flow was found, and a fit that left more than 1.15 "
        "counts as not found. The first two are a window of 32 x 32 flow, in which "
        "errors hardly grow; the others are chaotic waves in one dimension, over "
        "windows in which errors grow by a factor of about ten each 20. Growing "
        "windows are fits of the first frames, then of more and more, each from the "
        "last. Times are over that of `infer`; of waves, all seeds' time over the "
        "number of seeds found."
    )
    return [
        note,
        table(["case", "way", "time", "outcome"], rows),
        "How often intervals of 95% from `infer` held the truth, of the seeds found.",
        table(["case", "seeds found", "held"], covers),
    ]
