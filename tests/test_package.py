"""The package as installed: version, typing marker, cost and cleanliness of import."""

import importlib.resources
import subprocess
import sys
import tomllib
from pathlib import Path

import pathax as px


ROOT = Path(__file__).resolve().parents[1]

# `import pathax` may take this much longer than `import diffrax`, in seconds.
IMPORT_BUDGET = 0.3


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_version_has_a_single_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert px.__version__ == project["version"]
    assert f"\nversion: {px.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_examples_have_what_they_need():
    """Parts of the package that ask for an extra, where an example uses them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = " ".join(project["optional-dependencies"]["examples"])
    needs = {"diagnose(": "pathax[samples]", "Checkpoints(": "pathax[train]"}
    used = {
        extra
        for file in (ROOT / "examples").glob("*.py")
        for part, extra in needs.items()
        if part in file.read_text()
    }
    assert used, "no example draws samples any more: drop this test"
    assert all(extra in given for extra in used), used


def test_ships_its_types():
    assert importlib.resources.files("pathax").joinpath("py.typed").is_file()


def test_import_is_cheap():
    """In processor time, the least of several: other tests run beside this one."""
    code = (
        "import time, diffrax; t = time.process_time(); import pathax; "
        "print(time.process_time() - t)"
    )
    seconds = [float(_python(code)) for _ in range(5)]
    assert min(seconds) <= IMPORT_BUDGET, seconds


def test_import_brings_no_extras():
    code = (
        "import sys, diffrax; before = set(sys.modules); import pathax; "
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    heavy = {"matplotlib", "orbax", "scipy", "torch", "tqdm", "beartype"}
    assert not heavy & set(_python(code).split())


def test_import_leaves_jax_alone():
    """No backend starts and no setting changes when the package is imported."""
    code = (
        "import jax, diffrax; "
        "before = dict(jax.config.values); import pathax; "
        "assert dict(jax.config.values) == before; "
        "jax.config.update('jax_num_cpu_devices', 2); "  # refused by a live backend
        "assert len(jax.devices('cpu')) == 2"
    )
    environment = "import os; os.environ.pop('XLA_FLAGS', None); "
    _python(environment + code)
