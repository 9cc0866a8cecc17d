"""Runs in processes of their own: killed at any moment, or working together."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np


RUN = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import pathax as px

def main(path, steps, mesh=None, checkpoints=None, log=()):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)

    def loss(w, batch, key):
        noise = 0.1 * jax.random.normal(key, batch.shape)
        return jnp.mean((jnp.tanh((batch + noise) @ w) - batch[:, 0]) ** 2)

    result = px.training.fit(
        jnp.zeros(3),
        loss,
        px.training.Batches(x, 16),
        optax.adam(1e-2),
        steps=steps,
        key=jax.random.key(0),
        mesh=mesh,
        checkpoints=checkpoints,
        log=log,
        log_every=1,
    )
    if jax.process_index() == 0:
        arrays = [result.state.params, *jax.tree.leaves(result.state.opt_state)]
        np.savez(path, *[np.asarray(x) for x in arrays])
"""

KILLED = (
    RUN
    + """
import time

folder = px.training.Checkpoints(sys.argv[2], every=2)
slow = (lambda step, metrics: time.sleep(0.05),) if sys.argv[4] == "slow" else ()
main(sys.argv[1], int(sys.argv[3]), checkpoints=folder, log=slow)
"""
)

TOGETHER = (
    RUN
    + """
count, index = int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[4], count, index)
main(sys.argv[1], 6, mesh=jax.make_mesh((2,), ("data",)))
"""
)


def _start(script, *args, devices=1):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output


def _arrays(path):
    with np.load(path) as found:
        return [found[name] for name in found.files]


def _wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_killed_and_resumed(tmp_path):
    """Killed without warning in the middle of a run; the end has the same bits."""
    folder, steps = tmp_path / "run", 40
    process = _start(KILLED, tmp_path / "none.npz", folder, steps, "slow")
    saved = lambda: folder.exists() and any(x.name.isdigit() for x in folder.iterdir())
    _wait_for(saved)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "none.npz").exists()
    resumed = _start(KILLED, tmp_path / "resumed.npz", folder, steps, "fast")
    _finish(resumed)
    _finish(_start(KILLED, tmp_path / "whole.npz", tmp_path / "other", steps, "fast"))
    pairs = zip(
        _arrays(tmp_path / "resumed.npz"), _arrays(tmp_path / "whole.npz"), strict=True
    )
    assert all(np.array_equal(x, y) for x, y in pairs)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    """Two devices of one process, or one device of each of two."""
    address = f"127.0.0.1:{_free_port()}"
    both = [_start(TOGETHER, tmp_path / "two.npz", 2, i, address) for i in range(2)]
    _finish(*both)
    _finish(_start(TOGETHER, tmp_path / "one.npz", 1, 0, address, devices=2))
    pairs = zip(
        _arrays(tmp_path / "two.npz"), _arrays(tmp_path / "one.npz"), strict=True
    )
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)
