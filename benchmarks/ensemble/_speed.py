"""Paths a second, beside one call that keeps all paths."""

import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config


STEPS = 64


def on_tree(key: jax.Array) -> jax.Array:
    """Ornstein-Uhlenbeck by Euler's method in Diffrax, noise from a tree."""
    noise = px.brownian.VirtualBrownianTree(0.0, 1.0, 1 / (2 * STEPS), (), key)
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y),
        diffrax.ControlTerm(lambda t, y, args: 0.5, noise),
    )
    out = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 1 / STEPS, 1.0)
    assert out.ys is not None
    return out.ys[0]


def by_scan(key: jax.Array) -> jax.Array:
    """The same law by a loop over plain normals, the least a path can cost."""
    noise = jax.random.normal(key, (STEPS,)) * (0.5 / STEPS**0.5)
    step = lambda y, w: (y - y / STEPS + w, None)
    return jax.lax.scan(step, jnp.float32(1), noise)[0]


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _measure(solve: Any, n: int, rounds: int, _: int) -> dict[str, Any]:
    key = jax.random.key(0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
    plain = jax.jit(jax.vmap(solve)).lower(keys).compile()
    sizes = {"chunk": 8192, "parts": 8}

    def ensemble(count):
        return px.simulation.ensemble(solve, key, count, **sizes)

    ours, theirs = [], []
    for _ in range(rounds):
        # Two lengths: the difference is free of tracing and compilation.
        short, whole = (_seconds(lambda m=m: ensemble(m)) for m in (8192, n + 8192))
        ours.append(max(whole - short, 1e-9))
        theirs.append(_seconds(lambda: plain(keys).block_until_ready()))
    pace = float(np.median(ours))
    return {
        "paths per second": n / pace,
        "over plain": pace / float(np.median(theirs)),
    }


def speed_cases(config: Config) -> list[Case]:
    """A solve that queries a tree, and the cheapest path there is."""
    rounds = 3 if config.fast else 9
    sizes = {"tree": (on_tree, 2**16), "scan": (by_scan, 2**19)}
    return [
        Case(
            name=f"speed/{name}",
            parameters={"steps": STEPS, "paths": n},
            measure=lambda index, s=solve, n=n: _measure(s, n, rounds, index),
        )
        for name, (solve, n) in sizes.items()
    ]
