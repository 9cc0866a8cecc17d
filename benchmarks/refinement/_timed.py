"""Seconds of a call, without those of compilation."""

import statistics
import time
from typing import Any

import jax


def timed(call, *args, rounds: int = 3) -> tuple[Any, float]:
    """A result, and the median of so many rounds after a first."""
    found = jax.block_until_ready(call(*args))
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(call(*args))
        seconds.append(time.perf_counter() - begin)
    return found, statistics.median(seconds)
