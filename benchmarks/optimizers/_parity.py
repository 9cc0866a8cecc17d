"""Twenty steps beside the authors' own code, where clones of it are at hand."""

import importlib
import os
import subprocess
from pathlib import Path
from typing import Any

from .._case import Case, Config, SkippedError
from ..optimizers_parity.__main__ import checks


FOLDER = "PATHAX_OFFICIAL"  # environment variable: where the clones are


def _revisions(official: Path) -> dict[str, str]:
    """Short hashes of all clones."""
    found = {}
    for clone in sorted(path.parent for path in official.glob("*/.git")):
        words = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
        run = subprocess.run(words, capture_output=True, text=True, check=True)
        found[clone.name] = run.stdout.strip()
    return found


def _measure(name: str, _: int) -> dict[str, Any]:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise SkippedError(f"needs {FOLDER}, a folder with clones of the authors' code")
    official = Path(folder)
    module = importlib.import_module(f"benchmarks.optimizers_parity._{name}")
    try:
        differences = module.check(official)
    except FileNotFoundError as error:
        raise SkippedError(str(error)) from error
    return {"differences": differences, "revisions": _revisions(official)}


def parity_cases(config: Config) -> list[Case]:
    """One case a module of `benchmarks.optimizers_parity`."""
    if config.fast:
        return []
    return [
        Case(
            name=f"parity/{name}",
            measure=lambda run, name=name: _measure(name, run),
            packages=("optax", "torch"),
        )
        for name in checks()
    ]
