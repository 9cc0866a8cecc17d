"""Tables of Langevin dynamics."""

from pathlib import Path

from .._report import Results, number, table


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    del folder
    parts = [
        ("Strong order on a funnel", _orders(results)),
        ("Samples, beside NUTS", _samples(results)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def _orders(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("order").items():
        found = record["figures"]
        for way, points in found.items():
            if isinstance(points, list):
                text = ", ".join(f"{number(n)}: {number(e)}" for n, e in points)
                order = number(found["order"]) if way == "constant" else "–"
                rows.append([name.split("/")[1], way, text, order])
    if not rows:
        return []
    note = (
        "Gradients and root-mean-square error at time 32: `diffrax.QUICSORT` with "
        "constant steps; with steps that adapt by a step in two halves; and solvers of "
        "pathax by their own estimates."
    )
    return [note, table(["dtype", "steps", "gradients: error", "order"], rows)]


def _samples(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("mcmc").items():
        found = record["figures"]
        for side in ("pathax", "NUTS"):
            keys = ("gradients", "warm-up", "ess", "evals an effective sample")
            rows.append(
                [
                    name.split("/")[1],
                    side,
                    *(number(found[f"{key} {side}"]) for key in keys),
                    f"{found[f'r_hat {side}']:.3f}",
                    number(found[f"distance {side}"]),
                    *(
                        number(found.get(f"{what} error {side}"))
                        for what in ("mean", "deviation")
                    ),
                ]
            )
    if not rows:
        return []
    head = ["", "", "gradients", "of the warm-up", "effective samples"]
    head += ["gradients for one", "R-hat", "energy distance", "mean off", "sd off"]
    note = (
        "All gradients count, of the warm-up and of rejected steps too; those for one "
        "effective sample are without the warm-up. Effective samples are those of the "
        "worst coordinate. *Mean off* is the largest error of a mean in standard "
        "deviations, *sd off* that of a standard deviation, relative, where the "
        "posterior is known."
    )
    return [note, table(head, rows)]
