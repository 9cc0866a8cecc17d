"""The operators' tables."""

from pathlib import Path

from .._report import Results, number, table


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    del folder
    parts = [
        ("Fourier neural operator beside `neuraloperator`", _fno(results)),
        ("Heads of the spatiotemporal operator", _heads(results)),
        ("The published residual", _residual(results)),
        ("Training by other rules", _training(results)),
    ]
    out: list[str] = []
    for title, body in parts:
        if body:
            out += [f"#### {title}", *body]
    return out


def _fno(results: Results) -> list[str]:
    cases = {**results.family("fno"), **results.family("fno-step")}
    rows = []
    for name, record in cases.items():
        found = record["figures"]
        low, high = found["speedup quartiles"]
        errors = [found.get(f"error {side}") for side in ("pathax", "neuraloperator")]
        rows.append(
            [
                name,
                f"**{number(found['speedup'])}** ({number(low)} to {number(high)})",
                *map(number, errors),
            ]
        )
    if not rows:
        return []
    head = ["", "time of a step, theirs over ours", "error, ours", "error, theirs"]
    note = (
        "Both start from the same weights and take the same steps of Adam on the same "
        "batches, in one process, in turns; the model is the default one of "
        "`neuraloperator`. PyTorch has one thread or all, whichever is faster. "
        "Errors are relative, in the L2 norm, on fields not seen."
    )
    return [note, table(head, rows)]


def _heads(results: Results) -> list[str]:
    record = results.cases.get("head/forced flow")
    if record is None:
        return []
    found = record["figures"]
    asked = ["10 frames", "20 frames", "40 frames", "finer grid"]
    rows = [
        [side, *(number(found.get(f"error {side}, {what}")) for what in asked)]
        for side in ("pathax", "published")
    ]
    note = (
        "The same trunk, trained for the same steps on ten frames of forced flow, then "
        "asked for twice and four times as many within the same window, and on a grid "
        "twice as fine. Relative error in the L2 norm; that of no change at all is "
        f"{number(found['error of no change'])}."
    )
    return [note, table(["head", *asked], rows)]


def _residual(results: Results) -> list[str]:
    record = results.cases.get("residual/micro-step")
    if record is None:
        return []
    found = record["figures"]
    columns = ["static residual", *(f"micro-step {dt:g}" for dt in (1e-3, 1e-4, 1e-5))]
    rows = [
        [name, *(number(found[f"{name}, {what}"]) for what in columns)]
        for name in ("noise", "a flow")
    ]
    note = (
        "The published loss takes the time derivative from a small step of a solver "
        "for the same equation. It falls with the square of that step for any field, "
        "noise as well as a flow, so it can't tell one from the other."
    )
    return [note, table(["field", *columns], rows)]


def _training(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("train").items():
        found = record["figures"]
        methods = [key.removeprefix("error ") for key in found if key[:6] == "error "]
        for method in sorted(methods, key=lambda m: found[f"error {m}"]):
            rows.append(
                [
                    name.removeprefix("train/"),
                    method,
                    number(found[f"error {method}"]),
                    f"{found[f'rate {method}']:g}",
                    str(found[f"steps {method}"]),
                ]
            )
    if not rows:
        return []
    note = (
        "Relative error on examples not seen, after the same processor time, at the "
        "best of four rates, chosen on other examples; one seed."
    )
    return [note, table(["", "rule", "error", "rate", "steps"], rows)]
