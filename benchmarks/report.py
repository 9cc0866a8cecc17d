"""Draw tables and plots from stored results: `python -m benchmarks.report`.

Reads `benchmarks/results/<device>/<subject>.json` and nothing else; writes
`docs/generated/benchmarks_<subject>.md` and its plots, and the numbers of `README.md`.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from . import _front
from ._harness import subjects
from ._report import READING, Results, conditions, failures, generic_sections


FOLDER = Path(__file__).resolve().parent
DOCS = FOLDER.parent / "docs" / "generated"
README = FOLDER.parent / "README.md"


def collect(folder: Path, subject: str) -> list[Results]:
    """The results of a subject, CPU first."""
    files = folder.glob(f"*/{subject}.json")
    found = [Results(subject, f.parent.name, json.loads(f.read_text())) for f in files]
    return sorted(found, key=lambda r: (r.device != "cpu", r.device))


def _writer(subject: str) -> Callable[[Results, Path], list[str]]:
    if not (FOLDER / subject / "_report.py").exists():
        return generic_sections
    return importlib.import_module(f"benchmarks.{subject}._report").sections


def render(subject: str, found: list[Results], out: Path) -> str:
    """The markdown page of a subject; plots are written beside it."""
    if not any(results.cases or results.failed for results in found):
        return (
            f"There are no stored results of `{subject}` yet; "
            f"`python -m benchmarks {subject}` measures them, and "
            "`python -m benchmarks.report` puts them here.\n"
        )
    parts = [READING]
    for results in found:
        heading = "On a CPU" if results.device == "cpu" else f"On {results.device}"
        parts += [f"### {heading}", conditions(results)]
        parts += _writer(subject)(results, out)
        parts.append(failures(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__
    )
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for subject in subjects():
        page = render(subject, collect(args.results, subject), args.out)
        file = args.out / f"benchmarks_{subject}.md"
        file.write_text(page)
        print(f"{subject}: {file.name}")
    if args.out == DOCS:
        found = {s: r[0] for s in subjects() if (r := collect(args.results, s))}
        _front.write(README, {s: r for s, r in found.items() if r.device == "cpu"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
