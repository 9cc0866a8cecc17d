"""The example on digits runs from one command and draws its figure."""

import pathlib
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, "examples/mnist_node.py", "--fast", "--out", tmp_path]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "evaluations, regularized over plain" in out.stdout
    assert "step/s" in out.stderr
    assert (tmp_path / "mnist_node.svg").exists()
