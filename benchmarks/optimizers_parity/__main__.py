"""Command line: `python -m benchmarks.optimizers_parity --official DIR [name ...]`."""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path


LIMIT = 1e-5  # of a relative difference


def checks() -> list[str]:
    """Names of the modules beside this one that hold a check."""
    names = (info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(n[1:] for n in names if n.startswith("_") and n[1] != "_")


def main(argv: list[str] | None = None) -> int:
    """Print the table; the exit code is 0 if something ran and all of it agrees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True, metavar="DIR")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(checks())}")
    args = parser.parse_args(argv)
    failures, compared = 0, 0
    for name in args.names or checks():
        module = importlib.import_module(f"{__package__}._{name}")
        try:
            worst = module.check(args.official)
        except FileNotFoundError as error:
            print(f"{'skip':<5}{name}: {error}")
            continue
        for what, value in worst.items():
            agrees = value <= LIMIT  # a NaN does not
            failures, compared = failures + (not agrees), compared + 1
            print(f"{'ok' if agrees else 'FAIL':<5}{what:<60}{value:9.1e}", flush=True)
    return 0 if compared and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
