"""Results on disk: one JSON file a subject and device, rewritten after every case.

Nothing that names a machine, a user or a folder is stored.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from ._case import Case


SCHEMA = 1
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
SCRATCH = ROOT / "tmp"  # ignored by git

PACKAGES = ("jax", "jaxlib", "numpy", "diffrax", "equinox", "pathax")

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][\w.+-]+){2,}[\\/]?")


def without_paths(text: str) -> str:
    """The text with every absolute path replaced by `<path>`."""
    return _PATH.sub("<path>", text)


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def device_slug(device: Any = None) -> str:
    """The folder of a device's results: `cpu`, or e.g. `nvidia-h200`."""
    device = jax.devices()[0] if device is None else device
    return "cpu" if device.platform == "cpu" else slug(device.device_kind)


def versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python and of all packages that take part."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    )
    return run.stdout.strip()


def commit() -> str | None:
    """Short hash of the checked-out commit, `+` if sources differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "../src", "*.py")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / 2**30, 1)


def _cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count()


def environment() -> dict[str, Any]:
    """Versions, hardware and the settings of JAX that change numbers or speed."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": _cores(),
            "memory_gib": _memory_gib(),
            "platform": device.platform,
            "device": "CPU" if device.platform == "cpu" else device.device_kind,
            "devices": jax.device_count(),
        },
        "settings": {
            "x64": bool(jax.config.jax_enable_x64),
            "matmul_precision": jax.config.jax_default_matmul_precision,
            "prng": jax.config.jax_default_prng_impl,
            "xla_flags": without_paths(os.environ.get("XLA_FLAGS", "")),
            "lapack_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        },
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint(case: Case, *, fast: bool = False) -> str:
    """What must be unchanged for a stored result to stand for a new run."""
    compared = [[c.name for c in case.contenders], dict(case.ratios)]
    parts = [case.name, dict(case.parameters), compared, case.revision]
    return _digest([SCHEMA, *parts, versions(case.packages), fast])


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """The results of one subject on one device, in memory and on disk.

    With `folder=None` nothing is read or written.
    """

    def __init__(self, folder: Path | None, device: str, subject: str):
        self.path = None if folder is None else folder / device / f"{subject}.json"
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "subject": subject,
            "device": device,
            "environments": {},
            "cases": {},
            "headline": {},
        }
        if self.path is not None and self.path.exists():
            stored = json.loads(self.path.read_text())
            if stored.get("schema") == SCHEMA:
                self.data = stored

    @property
    def cases(self) -> dict[str, dict]:
        """Name -> record of every case that was run."""
        return self.data["cases"]

    def find(self, case: Case, *, fast: bool) -> dict | None:
        """The stored record of a case, if it succeeded and still stands."""
        record = self.cases.get(case.name)
        if record is None or record["status"] != "ok":
            return None
        return record if record["fingerprint"] == fingerprint(case, fast=fast) else None

    def put(self, case: Case, record: dict, env: dict, *, fast: bool) -> None:
        """Keep a record, and write the file."""
        label = _digest(env)
        self.data["environments"][label] = env
        self.cases[case.name] = {
            "fingerprint": fingerprint(case, fast=fast),
            "parameters": dict(case.parameters),
            "environment": label,
            "date": now(),
            "fast": fast,
            **record,
        }
        used = {r["environment"] for r in self.cases.values()}
        kept = {k: v for k, v in self.data["environments"].items() if k in used}
        self.data["environments"] = kept
        self.write()

    def arrange(self, names: list[str]) -> None:
        """Bring the records into this order; drop those of cases that are no more."""
        kept = {name: self.cases[name] for name in names if name in self.cases}
        self.data["cases"] = kept

    def write(self) -> None:
        """Write the file in one step: a reader finds the old or the new one, whole."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        text = json.dumps(_plain(self.data), indent=1, allow_nan=False)
        with open(temporary, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def _plain(value: Any) -> Any:
    """Plain JSON values; numbers to 6 digits, those that are not finite as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value)
    return float(f"{number:.6g}") if abs(number) < float("inf") else str(number)
