"""Examples of simulation run from one command and draw their figures."""

import os
import pathlib
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parents[2]


def _run(name, out):
    command = [sys.executable, f"examples/{name}.py", "--fast", "--out", out]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (out / f"{name}.png").exists()
    return found.stdout


def test_langevin(tmp_path):
    pytest.importorskip("sklearn")
    out = _run("langevin", tmp_path)
    cost = float(out.split(" for an effective sample")[0].split()[-1])
    assert cost < 15
    right = float(out.split("right on ")[1].split("%")[0])
    assert right > 90


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "cir", "tour"])
def test_others(name, tmp_path):
    _run(name, tmp_path)
