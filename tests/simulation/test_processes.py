"""Ensembles in processes of their own: killed at any moment, or working together."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest


RUN = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
import pathax as px

def solve(key):
    noise = jax.random.normal(key, (16,))
    step = lambda x, w: (x + 0.05 * jnp.sin(x) + 0.2 * x * w, None)
    return jax.lax.scan(step, jnp.float32(1), noise)[0]

def main(path, n=4000, **options):
    found = px.simulation.ensemble(
        solve, jax.random.key(0), n, chunk=512, parts=8, quantiles=(0.1, 0.9), **options
    )
    np.savez(path, *[np.asarray(x) for x in jax.tree.leaves(found[:-1])])
"""

KILLED = (
    RUN
    + """
import pathax.simulation._checkpoint as checkpoint, time

if sys.argv[3] == "slow":
    save = checkpoint.Checkpoint.save
    def slow(self, state):
        save(self, state)
        time.sleep(0.2)
    checkpoint.Checkpoint.save = slow
main(sys.argv[1], checkpoint=sys.argv[2])
"""
)

TOGETHER = (
    RUN
    + """
count, index = int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[4], count, index)
mesh = jax.make_mesh((2,), ("paths",)) if count > 1 else None
main(sys.argv[1] + str(index) + ".npz", mesh=mesh)
"""
)

MANY = (
    RUN
    + """
found = px.simulation.ensemble(
    solve, jax.random.key(0), 10**6, quantiles=(0.5,), chunk=65536
)
print(found.paths, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
)


def _start(script, *args):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(*processes):
    outputs = []
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        outputs.append(output)
    return outputs


def _arrays(path):
    with np.load(path) as found:
        return [found[name] for name in found.files]


def _same(one, two):
    pairs = list(zip(_arrays(one), _arrays(two), strict=True))
    return bool(pairs) and all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    _finish(_start(TOGETHER, folder / "run", 1, 0))
    return folder / "run0.npz"


def test_killed_and_resumed(tmp_path, alone):
    """Killed without warning in the middle of a run; the end has the same bits."""
    file = tmp_path / "state.npz"
    process = _start(KILLED, tmp_path / "none.npz", file, "slow")
    end = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "none.npz").exists()
    assert 0 < _start_of(file) < 4000
    _finish(_start(KILLED, tmp_path / "resumed.npz", file, "fast"))
    assert _same(tmp_path / "resumed.npz", alone)


def _start_of(file):
    with np.load(file) as found:
        return int(found["start"])


def test_two_processes_give_the_bits_of_one(tmp_path, alone):
    """Both get the result."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    run = [_start(TOGETHER, tmp_path / "run", 2, i, address) for i in range(2)]
    _finish(*run)
    for i in range(2):
        assert _same(tmp_path / f"run{i}.npz", alone)


@pytest.mark.slow
def test_a_million_paths_take_little_memory():
    (output,) = _finish(_start(MANY))
    paths, kibibytes = map(int, output.split()[-2:])
    assert paths == 10**6
    assert kibibytes < 2 * 2**20
