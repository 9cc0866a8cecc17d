"""Tables and a plot of the Cox-Ingersoll-Ross process."""

from pathlib import Path

from .._report import Results, new_plot, number, save_plot, table
from ._strong import PUBLISHED_COARSE


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    parts = [
        ("Order", _orders(results)),
        ("Error by steps", _plots(results, folder)),
        ("Beside the published points", _published(results)),
        ("Few adaptive steps", _coarse(results)),
        ("Bonds", _bonds(results)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def _strong(results: Results) -> dict[str, dict]:
    return {**results.family("medium"), **results.family("high")}


def _orders(results: Results) -> list[str]:
    rows = []
    for name, record in _strong(results).items():
        found = record["figures"]
        row = [name, str(found.get("paths", record["parameters"]["paths"]))]
        for kind in ("constant", "constant, at the end", "adaptive"):
            low, high = found[f"order {kind} interval"]
            row.append(f"{found[f'order {kind}']:.2f} ({low:.2f} to {high:.2f})")
        gains = [found.get("gain at 520"), found.get("gain at 520, both at the end")]
        rows.append([*row, *map(number, gains)])
    if not rows:
        return []
    head = ["", "paths", "constant", "constant, end", "adaptive, end"]
    head += ["gain at 520", "gain, both at the end"]
    note = (
        "Slope of the root-mean-square error over the mean number of accepted steps, "
        "with 95% intervals over paths. As published, constant steps are judged at the "
        "worst of several times, adaptive ones at the end, which flatters the latter; "
        "the columns *end* judge both alike. *Gain*: error of constant steps over that "
        "of adaptive ones, at 520 steps."
    )
    return [note, table(head, rows)]


def _published(results: Results) -> list[str]:
    rows = []
    for name, record in _strong(results).items():
        for kind, points in record["figures"]["beside published"].items():
            for steps, theirs, ours in points:
                ratio = f"{ours / theirs:.2f}"
                rows.append(
                    [name, kind, str(steps), number(theirs), number(ours), ratio]
                )
    if not rows:
        return []
    note = "Published errors are of 50,000 paths; ours are interpolated between steps."
    head = ["", "steps", "number", "published", "ours", "ours over published"]
    return [note, table(head, rows)]


def _coarse(results: Results) -> list[str]:
    record = results.cases.get("coarse/HOStS")
    if record is None or record["status"] != "ok":
        return []
    found = record["figures"]
    rows = []
    for (n, error), span, part in zip(
        found["adaptive"], found["intervals"], found["of the worst 1%"], strict=True
    ):
        steps, theirs = min(PUBLISHED_COARSE.items(), key=lambda x: abs(x[0] - n))
        low, high = map(number, span)
        row = [number(n), number(error), f"{low} to {high}", f"{part:.0%}"]
        rows.append([*row, str(steps), number(theirs), f"{error / theirs:.2f}"])
    note = (
        f"medium/HOStS on {record['parameters']['paths']} other paths, with 95% "
        "intervals over paths, and the part of the mean square that the worst "
        "hundredth of the paths has: with few steps an error is that of single paths, "
        "so that fifty thousand paths, too, leave some percent open."
    )
    head = ["steps", "error", "interval", "of the worst 1%"]
    head += ["published steps", "published error", "ours over published"]
    return [note, table(head, rows)]


def _plots(results: Results, folder: Path) -> list[str]:
    out = []
    for name, record in _strong(results).items():
        figure, axes = new_plot(5, 3.4)
        for kind, line in (
            ("constant", "o-"),
            ("constant, at the end", "o:"),
            ("adaptive", "s-"),
        ):
            points = zip(*record["figures"][kind], strict=True)
            axes.loglog(*points, line, label=kind)
        for kind, marker in (("constant", "kx"), ("adaptive", "k+")):
            points = record["figures"]["beside published"][kind]
            places = [n for n, _, _ in points], [theirs for _, theirs, _ in points]
            axes.loglog(*places, marker, label=f"{kind}, published")
        axes.set(title=name, xlabel="accepted steps", ylabel="error")
        axes.legend(fontsize=7)
        label = name.replace("/", "_").lower()
        file = save_plot(figure, folder, f"benchmarks_cir_{results.device}_{label}")
        out.append(f"![Error by steps, {name}](generated/{file})")
    return out


def _bonds(results: Results) -> list[str]:
    rows = [
        [
            name.split("/")[1],
            f"{record['figures']['price']:.5f}",
            f"{record['figures']['exact']:.5f}",
            f"{record['figures']['off']:.1f}",
        ]
        for name, record in results.family("bond").items()
    ]
    if not rows:
        return []
    note = "Price of one unit in five years, the rate at four percent now."
    return [note, table(["rate", "simulated", "exact", "standard errors off"], rows)]
