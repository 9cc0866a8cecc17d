"""Runs a subject: every case in turn, results stored after each, failures kept."""

import fnmatch
import importlib
import json
import pkgutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ._case import Case, Config, SkippedError
from ._record import SCRATCH, Store, environment, versions, without_paths
from ._timing import time_case


NOT_SUBJECTS = {"report"}


def subjects() -> list[str]:
    """Names of all subjects: the public modules and packages beside this one.

    A package that is a command of its own is none.
    """
    folder = Path(__file__).parent
    names = (info.name for info in pkgutil.iter_modules([str(folder)]))
    commands = {path.parent.name for path in folder.glob("*/__main__.py")}
    no_subjects = NOT_SUBJECTS | commands
    return sorted(n for n in names if n[0] != "_" and n not in no_subjects)


def load(subject: str) -> ModuleType:
    """The module of a subject."""
    if subject not in subjects():
        known = ", ".join(subjects()) or "none"
        raise SystemExit(
            f"There is no subject {subject!r}; there are: {known}. Add it as "
            f"benchmarks/{subject}/, with `cases(config)` and `headline(results)`."
        )
    return importlib.import_module(f"benchmarks.{subject}")


@dataclass(frozen=True)
class Options:
    """How a run treats what is stored."""

    folder: Path | None = SCRATCH
    pattern: str = "*"
    resume: bool = False
    grow: bool = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _line(record: dict) -> str:
    """A few words on a result, for the progress line."""
    if record["status"] == "skipped":
        return f"skipped, {record['error']}"
    if record["status"] != "ok":
        return f"FAILED: {record['error']}"
    parts = [
        f"{name} {r['median']:.3g} [{r['q1']:.3g}, {r['q3']:.3g}]"
        for name, r in record.get("ratios", {}).items()
    ]
    figures = record.get("figures", {})
    plain = {k: v for k, v in figures.items() if isinstance(v, int | float)}
    parts += [f"{k} {v:.4g}" for k, v in plain.items()]
    return ", ".join(parts)


def run_case(case: Case, config: Config, earlier: dict | None = None) -> dict:
    """The record of one case; of a failure, or of none at all, if it raised."""
    start = time.perf_counter()
    try:
        if case.measure is None:
            record = time_case(case, config)
        else:
            record = _measure(case, earlier)
        record["status"] = "ok"
    except SkippedError as error:
        return {"status": "skipped", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = without_paths(str(error)).strip().split("\n")[0][:300]
        record = {"status": "failed", "error": f"{type(error).__name__}: {text}"}
    record["wall_s"] = time.perf_counter() - start
    peak = _peak_memory_mib()
    return record if peak is None else {**record, "process_peak_mib": peak}


def _measure(case: Case, earlier: dict | None) -> dict:
    index = 0 if earlier is None else earlier["runs"]
    figures = case.measure(index)
    if earlier is not None:
        figures = case.merge(earlier["figures"], figures)
    return {"kind": "measurement", "runs": index + 1, "figures": figures}


def _peak_memory_mib() -> float | None:
    """The most memory that this process ever held, this case or an earlier one."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def run_subject(
    name: str,
    module: Any,
    config: Config,
    device: str,
    options: Options,
    say: Callable[[str], None] = print,
) -> tuple[dict, int]:
    """Run all cases of a subject. Returns its headline and the number of failures."""
    store = Store(options.folder, device, name)
    wanted = [
        c for c in module.cases(config) if fnmatch.fnmatch(c.name, options.pattern)
    ]
    if not wanted:
        say(f"{name}: no case matches {options.pattern!r}")
        return {}, 1
    _check_names(wanted)
    env, start, failures, ran = environment(), time.perf_counter(), 0, 0
    current: dict[str, dict] = {}
    for i, case in enumerate(wanted, 1):
        found = store.find(case, fast=config.fast)
        growing = options.grow and case.merge is not None
        if found is not None and options.resume and not growing:
            say(f"[{i}/{len(wanted)}] {case.name}: kept, {_line(found)}")
            current[case.name] = found
            continue
        record = run_case(case, config, found if growing else None)
        if record["status"] == "skipped":
            say(f"[{i}/{len(wanted)}] {case.name}: {_line(record)}")
            continue
        failures += record["status"] != "ok"
        own = {**env, "versions": versions(case.packages)}
        store.put(case, record, own, fast=config.fast)
        current[case.name] = store.cases[case.name]
        ran += 1
        spent = time.perf_counter() - start
        left = spent / ran * (len(wanted) - i)
        clocks = f"elapsed {_clock(spent)}, left about {_clock(left)}"
        say(f"[{i}/{len(wanted)}] {case.name}: {_line(record)} ({clocks})")
    store.arrange(_all_names(module, config))
    store.data["headline"] = _headline(module, store.cases)
    store.write()
    headline = _headline(module, store.cases if options.resume else current)
    if config.fast:
        say(json.dumps(headline, sort_keys=True))
    return headline, failures


def _all_names(module: Any, config: Config) -> list[str]:
    """Names of all cases of full and fast runs."""
    full = module.cases(replace(config, fast=False))
    return list(dict.fromkeys(case.name for case in [*full, *module.cases(config)]))


def _headline(module: Any, cases: dict[str, dict]) -> dict:
    """Headline figures of the cases that succeeded."""
    good = {name: r for name, r in cases.items() if r["status"] == "ok"}
    figures = module.headline(good).items()
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures}


def _check_names(wanted: list[Case]) -> None:
    names = [case.name for case in wanted]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"Names of cases must differ; twice: {sorted(twice)}.")
