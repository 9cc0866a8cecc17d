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
        f"**{number(found['spearman'])}**."
    )
    figure, axes = new_plot(4.5, 3.4)
    axes.loglog(found["errors"], found["etas"], ".")
    axes.set(xlabel="relative error", ylabel="residual, the estimate")
    file = save_plot(figure, folder, f"benchmarks_refinement_{results.device}_estimate")
    return [note, f"![Residual and error](generated/{file})"]


def _turbulence(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("turbulence").items():
        found = record["figures"]
        for way in ("whole", "slabs", "slabs, three steps"):
            spent = found[f"seconds {way}"] / found["seconds whole"]
            rows.append([name, way, number(found[f"error {way}"]), number(spent)])
    if not rows:
        return []
    note = "Four Gauss-Newton steps for the whole window, two or three in five slabs."
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
    record = results.cases.get("inverse/viscosity and forcing", {})
    found = record.get("figures", {})
    if not found:
        return []
    ways = [name.removeprefix("seconds ") for name in found if "seconds" in name]
    names = [name.removeprefix("coverage ") for name in found if "coverage" in name]
    rows = [
        [
            way,
            number(found[f"seconds {way}"] / found["seconds refinement"]),
            *(f"{found[f'parameters {way}'][name]:.6f}" for name in names),
        ]
        for way in ways
    ]
    covered = ", ".join(f"{found[f'coverage {n}']:.0%} for the {n}" for n in names)
    note = (
        "Frames with noise, at every fourth point; one fit by each way. Intervals of "
        f"95% from `infer` covered in {record['parameters']['seeds']} seeds: {covered}."
    )
    return [note, table(["way", "time", *names], rows)]
