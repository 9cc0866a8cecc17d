"""Compiled loops: a method on a task, to find the target or to be timed."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._methods import METHODS, Method, first_state, training_step
from ._tasks import Task, build


UNIT_SECONDS = 0.02  # that the unit is timed for, at least
LOOKS_AT_CLOCK = 40  # in a run as long as the limit


class Runner:
    """One method on one task: a compiled loop over its steps."""

    def __init__(self, method: Method, task: Task, own: float):
        self.method, self.task, self.own = method, task, own
        step = training_step(method, task)
        value = own if method.static else None

        def advance(params, state, key, rate, own, start, stop, look):
            """Steps `start` to `stop`, fewer if a look finds the target reached."""
            own = own if value is None else value

            def unfinished(carry):
                i, *_, metric, _ = carry
                return (i < stop) & (metric > task.target)  # a NaN ends it

            def body(carry):
                i, params, state, _, best = carry
                keys = jax.random.split(jax.random.fold_in(key, i))
                batch = task.sample(keys[0])
                params, state = step(params, state, batch, keys[1], rate, own)
                see = look & ((i + 1) % task.every == 0)
                blind = lambda params: jnp.float32(jnp.inf)
                metric = jax.lax.cond(see, task.metric, blind, params)
                return i + 1, params, state, metric, jnp.fmin(best, metric)

            none = jnp.float32(jnp.inf)
            carry = start, params, state, none, none
            return jax.lax.while_loop(unfinished, body, carry)

        def begin(key, rate, own):
            own = own if value is None else value
            params = task.init(key)
            return params, first_state(method, task, params, rate, own)

        self._advance, self._begin = jax.jit(advance), jax.jit(begin)
        before = time.perf_counter()
        self._run(self._start(0, 1e-3, own), 0, 0, look=False)
        self.compile_seconds = time.perf_counter() - before

    def _start(self, seed: int, rate: float, own: float) -> dict[str, Any]:
        key = jax.random.key(seed)
        rate_, own_ = jnp.float32(rate), jnp.float32(own)
        params, state = jax.block_until_ready(self._begin(key, rate_, own_))
        key = jax.random.fold_in(key, 1)
        numbers = {"key": key, "rate": rate_, "own": own_}
        return {"params": params, "state": state, **numbers}

    def _run(self, begun: dict[str, Any], first: int, last: int, *, look: bool):
        ends = {"start": jnp.int32(first), "stop": jnp.int32(last)}
        return jax.block_until_ready(
            self._advance(**begun, **ends, look=jnp.bool_(look))
        )

    def find(self, seed: int, rate: float, own: float, limit: int, seconds: float):
        """Steps to the target, `None` if it is not reached; the best metric seen."""
        begun = self._start(seed, rate, own)
        stride = -(-self.task.limit // LOOKS_AT_CLOCK)
        stride = -(-stride // self.task.every) * self.task.every
        # Of the processor: what else the machine does is no reason to give up.
        done, best, start = 0, float("inf"), time.process_time()
        while done < limit and time.process_time() - start < seconds:
            last = min(done + stride, limit)
            out = self._run(begun, done, last, look=True)
            steps, begun["params"], begun["state"], metric, seen = out
            done, best = int(steps), float(np.fmin(best, float(seen)))
            if float(metric) <= self.task.target:
                return done, best
            if not np.isfinite(float(metric)) and done % self.task.every == 0:
                break
        return None, best

    def seconds(self, seed: int, rate: float, own: float, steps: int) -> float:
        """Seconds that so many steps take, without looking."""
        begun = self._start(seed, rate, own)
        start = time.perf_counter()
        self._run(begun, 0, steps, look=False)
        return time.perf_counter() - start


class Unit:
    """Seconds of a step of AdamW, measured when asked for."""

    def __init__(self, task: Task):
        method = METHODS["adamw"]
        self.runner = Runner(method, task, method.values[0])
        self.steps = 1
        # The quickest of three: a machine that stalls must not end this early.
        while min(self._seconds() for _ in range(3)) < UNIT_SECONDS:
            self.steps *= 2

    def _seconds(self) -> float:
        return self.runner.seconds(0, 0.0, self.runner.own, self.steps)

    def __call__(self) -> float:
        """Seconds a step, now."""
        return self._seconds() / self.steps


@functools.cache
def unit_of(name: str) -> Unit:
    """That of a task; it is compiled once."""
    return Unit(build(name))
