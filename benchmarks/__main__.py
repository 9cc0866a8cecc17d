"""Command line: `python -m benchmarks [subject] [--fast] [--device] ...`."""

import argparse
import os
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subject", nargs="?", help="without one, list the subjects")
    parser.add_argument(
        "--device",
        action="store_true",
        help="run on the accelerator; without a subject, run every subject there",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="at most ten minutes; ends with one line of JSON, the headline figures",
    )
    parser.add_argument("--case", default="*", help="only cases matching this pattern")
    parser.add_argument("--list", action="store_true", help="name the cases, run none")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep results that still stand (default, except with --fast)",
    )
    parser.add_argument(
        "--fresh", dest="resume", action="store_false", help="measure everything again"
    )
    parser.add_argument(
        "--grow", action="store_true", help="add samples to studies that can grow"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results (default: benchmarks/results, or benchmarks/tmp "
        "with --fast)",
    )
    return parser


def _choose_platform(device: bool) -> None:
    """Without `--device` the CPU is measured, whatever else the machine has.

    LAPACK gets one thread, unless told otherwise: those of OpenBLAS wait for each other
    by spinning, beside XLA's own, and where another process runs a factorization of a
    small matrix takes thirty times as long as with one.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not device:
        os.environ["JAX_PLATFORMS"] = "cpu"


def _folder(args: argparse.Namespace, platform: str) -> Path | None:
    from ._record import RESULTS, SCRATCH

    if args.out is not None:
        return args.out
    if args.device and platform == "cpu":
        print(
            "note: no accelerator is visible, so the device entry runs on the CPU; "
            "nothing is stored (give --out to store it under cpu)"
        )
        return None
    return SCRATCH if args.fast else RESULTS


def _run(args: argparse.Namespace) -> int:
    import jax

    from ._case import Config
    from ._harness import Options, load, run_subject, subjects
    from ._record import device_slug

    platform = jax.devices()[0].platform
    config = Config.make(fast=args.fast, device=args.device, platform=platform)
    names = [args.subject] if args.subject else subjects()
    modules = {name: load(name) for name in names}
    if args.list:
        for module in modules.values():
            print("\n".join(case.name for case in module.cases(config)))
        return 0
    resume = not args.fast if args.resume is None else args.resume
    options = Options(
        folder=_folder(args, platform),
        pattern=args.case,
        resume=resume or args.grow,
        grow=args.grow,
    )
    failures = 0
    for name, module in modules.items():
        print(f"{name} on {jax.devices()[0].device_kind}", flush=True)
        _, failed = run_subject(name, module, config, device_slug(), options, _say)
        failures += failed
    return 1 if failures else 0


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    _choose_platform(args.device)
    if args.subject is None and not args.device:
        from ._harness import subjects

        print("Subjects (python -m benchmarks <subject>):")
        print("\n".join(f"  {name}" for name in subjects()))
        return 0
    return _run(args)


if __name__ == "__main__":
    sys.exit(main())
