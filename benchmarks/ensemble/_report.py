"""The ensembles' tables."""

from pathlib import Path

from .._report import Results, number, table


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    del folder
    parts = [
        ("Pace and memory", _pace(results)),
        ("The same bits", _bits(results)),
        ("Multilevel Monte Carlo", _levels(results)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def _pace(results: Results) -> list[str]:
    rows = [
        [name.split("/")[1], number(record["figures"]["over plain"])]
        for name, record in results.family("speed").items()
    ]
    if not rows:
        return []
    note = (
        "Time of a path in an ensemble over that in one compiled call that keeps all "
        "paths at once; compile time apart. *Tree*: Euler steps of Diffrax on a tree; "
        "*scan*: a loop over plain normals, so cheap that the statistics show."
    )
    memory = results.cases.get("memory/million")
    text = [note, table(["path", "time over plain"], rows)]
    if memory is not None:
        held = number(memory["figures"]["GiB"])
        text.append(f"A million paths, with a quantile: {held} GiB held at most.")
    return text


def _bits(results: Results) -> list[str]:
    record = results.cases.get("devices/bits")
    if record is None:
        return []
    rows = [[name, f"`{bits}`"] for name, bits in record["figures"]["bits"].items()]
    verdict = "the same" if record["figures"]["identical"] else "**not the same**"
    note = f"A digest of mean, covariance, extremes and quantiles: {verdict} on all."
    return [note, table(["processes x devices", "digest"], rows)]


def _levels(results: Results) -> list[str]:
    parts = []
    for name, record in results.family("mlmc").items():
        found = record["figures"]
        keys = ("asked", "error", "levels", "beta", "cost", "plain cost")
        rows = [[number(row[key]) for key in keys] for row in found["rows"]]
        parts.append(
            f"{name.split('/')[1].title()}: the cost goes with the power "
            f"{number(found['slope'])} of the error that is asked for."
        )
        parts.append(table([*keys[:-1], "cost of one level"], rows))
    return parts
