"""Table and plots of adaptive solves."""

from pathlib import Path

from .._report import Results, new_plot, number, save_plot, table, timing_table


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    return [*_adaptive(results, folder), *_counting(results)]


def _counting(results: Results) -> list[str]:
    if not results.family("counting"):
        return []
    note = "The same adaptive solve with and without exact numbers of evaluations."
    text = timing_table(results, "counting", "counted over plain")
    return ["#### Counting evaluations", note, text]


def _adaptive(results: Results, folder: Path) -> list[str]:
    found = [r["figures"] for r in results.family("adaptive").values()]
    if not found:
        return []
    found.sort(key=lambda figures: -figures["tolerance"])
    rows = [
        [
            number(figures["tolerance"]),
            name,
            number(row["error"]),
            number(row["evaluations"]),
            f"{number(row['time'])} [{number(row['q1'])}, {number(row['q3'])}]",
        ]
        for figures in found
        for name, row in figures["rows"].items()
    ]
    note = (
        "Root-mean-square error at the end, evaluations of drift and diffusion a path, "
        "steps that are rejected and trials of half the length among them, and time "
        "over that of pathax, with quartiles over rounds. The same tolerance means the "
        "same bound on an estimate, not the same error: torchsde compares steps with "
        "two of half the length and takes the step of the worst path for all paths."
    )
    head = ["tolerance", "", "error", "evaluations", "time over pathax"]
    return [
        "#### Adaptive solves of one equation",
        note,
        table(head, rows),
        *_plots(results, found, folder),
    ]


def _plots(results: Results, found: list[dict], folder: Path) -> list[str]:
    """Error against evaluations, and against time."""
    out = []
    first = found[0]["seconds pathax"]
    labels = {
        "evaluations": "evaluations a path",
        "time": "time; that of pathax at the loosest tolerance is 1",
    }
    for what, label in labels.items():
        figure, axes = new_plot(5, 3.4)
        for name in found[0]["rows"]:
            rows = [f["rows"][name] for f in found]
            units = [f["seconds pathax"] / first for f in found]
            units = units if what == "time" else [1.0] * len(found)
            work = [u * row[what] for u, row in zip(units, rows, strict=True)]
            axes.loglog(work, [row["error"] for row in rows], "o-", label=name)
        axes.set(xlabel=label, ylabel="error")
        axes.legend(fontsize=7)
        file = save_plot(figure, folder, f"benchmarks_sde_{results.device}_{what}")
        out.append(f"![Error against {what}](generated/{file})")
    return out
