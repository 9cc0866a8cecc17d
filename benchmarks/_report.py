"""Tables and plots from stored results: what every subject's report is made of.

On a CPU, whose speed changes with what else it does, tables quote ratios only; absolute
times appear where a GPU was measured.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


COLOURS = {"pathax": "#3f51b5", "diffrax": "#e65100"}
OTHER_COLOUR = "#546e7a"


@dataclass(frozen=True)
class Results:
    """The stored results of one subject on one device."""

    subject: str
    device: str
    data: dict[str, Any]

    @property
    def cases(self) -> dict[str, dict]:
        """Records of all cases that succeeded, by name."""
        records = self.data["cases"].items()
        return {name: r for name, r in records if r["status"] == "ok"}

    @property
    def failed(self) -> dict[str, dict]:
        """Records of all cases that raised, by name."""
        records = self.data["cases"].items()
        return {name: r for name, r in records if r["status"] != "ok"}

    @property
    def shows_times(self) -> bool:
        """Whether absolute times mean anything here."""
        return self.device != "cpu"

    def family(self, name: str) -> dict[str, dict]:
        """Cases whose name starts with `name/`."""
        return {k: r for k, r in self.cases.items() if k.startswith(f"{name}/")}


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without exponent where short."""
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:.{max(places, 0)}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return "–"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{number(seconds * factor)} {unit}"
    return f"{number(seconds * 1e9)} ns"


def memory(count: float | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{number(count)} {unit}"
        count /= 1024
    return f"{number(count)} GiB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table: the first column left, the others right."""
    align = ["---"] + ["--:"] * (len(head) - 1)
    lines = [head, align, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(ratio: dict[str, float]) -> str:
    """Median, quartiles and range of a ratio in one cell."""
    middle = f"{number(ratio['q1'])} to {number(ratio['q3'])}"
    return f"**{number(ratio['median'])}** ({middle})"


def extent(ratio: dict[str, float]) -> str:
    """Smallest and largest value over all rounds."""
    return f"{number(ratio['min'])} to {number(ratio['max'])}"


def _peak(record: dict, name: str) -> float | None:
    contender = record["contenders"][name]
    parts = [contender.get("temp_bytes"), contender.get("output_bytes")]
    return None if None in parts else sum(parts)


def timing_table(
    results: Results, family: str, ratio: str, title: str | None = None
) -> str:
    """The rows of one family: a ratio with its spread, compile time, memory, times."""
    records = {
        name: record
        for name, record in results.family(family).items()
        if ratio in record.get("ratios", {})
    }
    if not records:
        return ""
    top, bottom = next(iter(records.values()))["ratios"][ratio]["of"]
    head = ["case", title or ratio, "min to max", "rounds"]
    extras = _extras(records, ratio)
    head += [label for label, _ in extras]
    head += [f"compile {top}/{bottom}", f"memory {bottom}", f"memory {top}"]
    if results.shows_times:
        head += [f"time {bottom}", f"time {top}"]
    rows = [
        _timing_row(results, name, record, ratio, extras)
        for name, record in records.items()
    ]
    return table(head, rows)


def _extras(records: dict[str, dict], ratio: str) -> list[tuple[str, Callable]]:
    """Columns that only some families have."""
    labels = {"per_work": "per step", "net": "net of an empty call"}
    present = {
        key: label
        for key, label in labels.items()
        if any(key in record["ratios"][ratio] for record in records.values())
    }
    return [
        (label, lambda record, key=key: number(record["ratios"][ratio].get(key)))
        for key, label in present.items()
    ]


def _timing_row(
    results: Results, name: str, record: dict, ratio: str, extras: list
) -> list[str]:
    values = record["ratios"][ratio]
    top, bottom = values["of"]
    row = [name.split("/", 1)[1], spread(values), extent(values), str(record["rounds"])]
    row += [cell(record) for _, cell in extras]
    row.append(number(values["compile"]))
    row += [memory(_peak(record, bottom)), memory(_peak(record, top))]
    if results.shows_times:
        times = (record["contenders"][n]["time_s"]["median"] for n in (bottom, top))
        row += [duration(t) for t in times]
    return row


def conditions(results: Results) -> str:
    """Device, versions, dates and how much was run: what every table rests on."""
    used = {r["environment"] for r in results.cases.values()}
    lines = []
    for label in sorted(used):
        env = results.data["environments"][label]
        records = [r for r in results.cases.values() if r["environment"] == label]
        lines.append(_environment_line(env, records))
    fast = sum(r["fast"] for r in results.cases.values())
    if fast:
        lines.append(f"{fast} of {len(results.cases)} cases come from a fast run.")
    return "\n".join(f"- {line}" for line in lines)


def _environment_line(env: dict, records: list[dict]) -> str:
    hardware, versions = env["hardware"], env["versions"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores"
    if hardware["memory_gib"]:
        machine += f", {number(hardware['memory_gib'])} GiB"
    if hardware["platform"] != "cpu":
        machine = f"{hardware['device']} ({machine})"
    packages = ", ".join(f"{k} {v}" for k, v in versions.items())
    dates = sorted({r["date"][:10] for r in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    settings = env["settings"]
    precision = "float64" if settings["x64"] else "float32"
    commit = f", commit {env['commit']}" if env["commit"] else ""
    return (
        f"{len(records)} cases on {machine}; {packages}{commit}; {precision} default "
        f"precision, matmul precision {settings['matmul_precision'] or 'default'}; "
        f"{when}."
    )


READING = (
    "Contenders run in turns in one process; a ratio is taken round by round. Given "
    "are its median, in brackets the quartiles, then the range over all rounds. "
    "Memory is what the compiled program allocates for temporaries and output. "
    "Compile time is apart from everything else."
)


def failures(results: Results) -> str:
    """The cases that raised, so that none vanishes unseen."""
    if not results.failed:
        return ""
    rows = [[name, record["error"]] for name, record in results.failed.items()]
    return table(["failed case", "error"], rows)


def new_plot(width: float = 7.0, height: float = 4.0):
    """A figure and its axes, in the plain style of all plots here."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same input gives the same bytes: no random ids, no date.
    plt.rcParams.update({"svg.hashsalt": "pathax", "font.size": 9})
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: Any, folder: Path, name: str) -> str:
    """Write an SVG; returns its file name."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return f"{name}.svg"


def plot_ratios(
    results: Results, family: str, ratio: str, label: str, folder: Path
) -> str:
    """Markdown of a plot of one ratio over all cases of a family: median, quartiles."""
    cases = results.family(family)
    records = {k: r["ratios"][ratio] for k, r in cases.items() if "ratios" in r}
    if not records:
        return ""
    figure, axes = new_plot(height=0.8 + 0.22 * len(records))
    names = [name.split("/", 1)[1] for name in records]
    for i, values in enumerate(records.values()):
        axes.plot([values["q1"], values["q3"]], [i, i], color=OTHER_COLOUR, lw=2)
        axes.plot(values["median"], i, "o", color=COLOURS["pathax"], ms=5)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    file = save_plot(figure, folder, plot_name(results, family))
    return f"![{label}, one line a case](generated/{file})"


def plot_name(results: Results, what: str) -> str:
    """File name of a plot, without its ending."""
    return f"benchmarks_{results.subject}_{results.device}_{what}"


def generic_sections(results: Results, folder: Path) -> list[str]:
    """Tables of all ratios and figures, for subjects without a report of their own."""
    del folder
    sections = []
    for family in dict.fromkeys(name.split("/")[0] for name in results.cases):
        records = results.family(family).values()
        ratios = dict.fromkeys(k for r in records for k in r.get("ratios", {}))
        tables = [timing_table(results, family, ratio) for ratio in ratios]
        sections += [f"#### {family}", *tables, _figures_table(results, family)]
    return sections


def _figures_table(results: Results, family: str) -> str:
    rows = [
        [name.split("/", 1)[-1], key, number(value)]
        for name, record in results.family(family).items()
        for key, value in record.get("figures", {}).items()
        if isinstance(value, int | float)
    ]
    return table(["case", "figure", "value"], rows) if rows else ""
