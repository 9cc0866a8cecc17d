"""Timing: compile apart, then interleaved samples in random order.

A noisy machine changes speed from one second to the next. Contenders therefore take
turns, in a random order within each round, and are compared round by round; the spread
of these ratios is what the noise of the machine left.
"""

import random
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ._case import Case, Config, Contender


@dataclass(frozen=True)
class Compiled:
    """A contender that is ready to run, and what it took to get there."""

    call: Callable[[], Any]
    trace_seconds: float
    compile_seconds: float
    temp_bytes: int | None
    output_bytes: int | None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and range of some numbers."""
    low, q1, median, q3, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"median": median, "q1": q1, "q3": q3, "min": low, "max": high}


def compile_contender(contender: Contender) -> Compiled:
    """Trace and compile from cold caches, each on its own clock.

    What is timed later is the jitted function, which compiles once more at its first
    call: calling the object that `lower().compile()` returns takes JAX tens of
    microseconds longer, more than some of the work measured here.
    """
    function, args = contender.make()
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    args = jax.block_until_ready(args)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jitted.lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    return Compiled(
        call=lambda: jitted(*args),
        trace_seconds=traced - start,
        compile_seconds=done - traced,
        temp_bytes=getattr(memory, "temp_size_in_bytes", None),
        output_bytes=getattr(memory, "output_size_in_bytes", None),
    )


def sample(call: Callable[[], Any], repeats: int, *, in_order: bool) -> float:
    """Seconds a call, averaged over `repeats` calls.

    `in_order` says that the device itself runs one call after the other, as a GPU's
    stream does; elsewhere each call is awaited, so that no two overlap.
    """
    start = time.perf_counter()
    if in_order:
        for _ in range(repeats - 1):
            call()
        jax.block_until_ready(call())
    else:
        for _ in range(repeats):
            jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def calibrate(call: Callable[[], Any], seconds: float, *, in_order: bool) -> int:
    """How many calls make a sample last at least `seconds`."""
    repeats = 1
    while True:
        elapsed = repeats * sample(call, repeats, in_order=in_order)
        if elapsed >= seconds:
            return repeats
        growth = 1.2 * seconds / max(elapsed, 1e-9)
        repeats = max(repeats + 1, int(repeats * min(growth, 10.0)))


def _interleave(
    calls: dict[str, Compiled], repeats: dict[str, int], case: Case, config: Config
) -> dict[str, list[float]]:
    """Samples of each contender; sample `i` of all of them are of one round."""
    order = random.Random(zlib.crc32(case.name.encode()))
    in_order = config.platform != "cpu"
    rounds = case.rounds or config.rounds
    at_least = min(rounds, config.min_rounds)
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= at_least and time.perf_counter() - start > config.budget:
            break
        names = list(calls)
        order.shuffle(names)
        for name in names:
            once = sample(calls[name].call, repeats[name], in_order=in_order)
            times[name].append(once)
    return times


def _contender_record(
    compiled: Compiled, times: list[float], repeats: int, work: float | None
) -> dict:
    record = {
        "trace_s": compiled.trace_seconds,
        "compile_s": compiled.compile_seconds,
        "temp_bytes": compiled.temp_bytes,
        "output_bytes": compiled.output_bytes,
        "repeats": repeats,
        "times_s": times,
        "time_s": summary(times),
    }
    return record if work is None else {**record, "work": work}


def _ratio_record(case: Case, contenders: dict[str, dict]) -> dict[str, dict]:
    out = {}
    for name, (top, bottom) in case.ratios.items():
        above, below = contenders[top], contenders[bottom]
        pairs = zip(above["times_s"], below["times_s"], strict=True)
        record = {"of": [top, bottom], **summary([a / b for a, b in pairs])}
        if "work" in above and "work" in below:
            record["per_work"] = record["median"] * below["work"] / above["work"]
        if case.overhead is not None:
            empty = contenders[case.overhead]["time_s"]["median"]
            net = [side["time_s"]["median"] - empty for side in (above, below)]
            record["net"] = net[0] / net[1] if min(net) > 0 else None
        record["compile"] = (above["trace_s"] + above["compile_s"]) / (
            below["trace_s"] + below["compile_s"]
        )
        out[name] = record
    return out


def time_case(case: Case, config: Config) -> dict:
    """Compile all contenders, check that they run, and time them in turns."""
    in_order = config.platform != "cpu"
    calls, work, repeats = {}, {}, {}
    for contender in case.contenders:
        compiled = compile_contender(contender)
        output = jax.block_until_ready(compiled.call())  # the first run warms up
        calls[contender.name] = compiled
        work[contender.name] = contender.work and float(contender.work(output))
        del output
    for compiled in calls.values():  # what cleared caches made JAX compile again
        jax.block_until_ready(compiled.call())
    for name, compiled in calls.items():
        seconds = config.sample_seconds
        repeats[name] = calibrate(compiled.call, seconds, in_order=in_order)
    times = _interleave(calls, repeats, case, config)
    contenders = {
        name: _contender_record(calls[name], times[name], repeats[name], work[name])
        for name in calls
    }
    return {
        "kind": "timing",
        "rounds": len(next(iter(times.values()))),
        "contenders": contenders,
        "ratios": _ratio_record(case, contenders),
    }
