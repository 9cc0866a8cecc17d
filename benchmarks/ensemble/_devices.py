"""Runs in processes of their own: bits on devices, and memory."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

from .._case import Case, Config


_SETUP = """
import hashlib, json, resource, sys
import jax, numpy as np
processes, index, devices, address, n = json.loads(sys.argv[1])
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, index)
import pathax as px
from benchmarks.ensemble._speed import by_scan, on_tree
count = processes * devices
mesh = jax.make_mesh((count,), ("paths",)) if count > 1 else None
"""

_BITS = (
    _SETUP
    + """
found = px.simulation.ensemble(
    on_tree, jax.random.key(0), n, chunk=4096, parts=8, mesh=mesh,
    covariance=True, quantiles=(0.05, 0.5, 0.95),
)
text = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(found[:-1]))
print("RESULT", hashlib.sha256(text).hexdigest())
"""
)

_MEMORY = (
    _SETUP
    + """
found = px.simulation.ensemble(by_scan, jax.random.key(0), n, quantiles=(0.5,))
print("RESULT", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
)


def _start(script: str, *arguments: Any) -> subprocess.Popen:
    devices = arguments[2]
    flag = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def _result(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(errors[-500:])
    return output.rsplit("RESULT ", 1)[1].strip()


def _address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def _bits(n: int, _: int) -> dict[str, Any]:
    found = {}
    for processes, devices in ((1, 1), (1, 8), (2, 1), (2, 4)):
        address = _address()
        run = [
            _start(_BITS, processes, i, devices, address, n) for i in range(processes)
        ]
        results = [_result(process) for process in run]
        name = f"{processes} x {devices}"
        found[name] = results[0][:16]
        assert len(set(results)) == 1, "processes disagree"
    return {"identical": len(set(found.values())) == 1, "bits": found}


def _memory(n: int, _: int) -> dict[str, Any]:
    return {"GiB": float(_result(_start(_MEMORY, 1, 0, 1, "", n)))}


def device_cases(config: Config) -> list[Case]:
    """Bits on the processor, and the memory of a million paths."""
    n = 10_000 if config.fast else 100_000
    return [
        Case("devices/bits", {"paths": n}, measure=lambda index: _bits(n, index)),
        Case(
            "memory/million",
            {"paths": 10**6},
            measure=lambda index: _memory(10**6, index),
        ),
    ]
