"""Races to a target: each method tuned, then timed, on the same seeds.

The steps to the target are found first, with a look at the metric every few steps. Then
the same number of steps is timed without any looks, in one compiled loop. The unit of
time is a step of AdamW on the same task, timed just before and after.
"""

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config
from ._methods import METHODS, Method, first_state, training_step
from ._peers import PEERS
from ._search import Score, search
from ._tasks import TASKS, Task, build


@dataclass(frozen=True)
class Budget:
    """What a race may cost; the same for each method."""

    trials: int
    seeds: int
    seconds: float  # of one run, compilation apart


FULL = Budget(trials=12, seeds=5, seconds=8.0)
FAST = Budget(trials=6, seeds=3, seconds=4.0)

UNIT_SECONDS = 0.02  # that the unit is timed for, at least
LOOKS_AT_CLOCK = 40  # in a run as long as the limit
LONG = 4.0  # seconds after which a time is not taken again

FAST_RACES = {
    "logistic 1e-6": ("adamw", "lbfgs", "newton", "newton fixed"),
    "pinn 1e-5": ("adamw", "lbfgs", "newton", "newton fixed"),
}


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
        done, best, start = 0, float("inf"), time.perf_counter()
        while done < limit and time.perf_counter() - start < seconds:
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
def _unit(name: str) -> Unit:
    return Unit(build(name))


@dataclass
class Trial:
    """What one choice of parameters did: steps of each seed, `None` if it failed."""

    runner: Runner
    rate: float
    own: float
    steps: list[int | None]
    left: list[float]

    @property
    def score(self) -> Score:
        """Fewer failures first, then fewer steps for the slowest seed."""
        failed = sum(n is None for n in self.steps)
        found = [n for n in self.steps if n is not None]
        return failed, float(max(found)) if found and not failed else max(self.left)


def _tune(method: Method, task: Task, budget: Budget) -> tuple[Trial, int]:
    """The best trial, and how many there were.

    All seeds count, so that no luck is rewarded. A seed fails once it has taken more
    steps than the slowest of the best trial; a trial ends with two failures.
    """
    runners: dict[float, Runner] = {}
    trials: dict[tuple[float, float], Trial] = {}
    fewest = task.limit

    def score(rate: float, own: float) -> Score:
        nonlocal fewest
        key = own if method.static else method.values[0]
        if key not in runners:
            runners[key] = Runner(method, task, key)
        trial = trials[rate, own] = Trial(runners[key], rate, own, [], [])
        for seed in range(budget.seeds):
            if trial.steps.count(None) >= 2:
                trial.steps.append(None)  # not worth the time
                continue
            found = runners[key].find(seed, rate, own, fewest, budget.seconds)
            trial.steps.append(found[0])
            trial.left.append(found[1])
        if None not in trial.steps:
            fewest = int(trial.score[1])
        return trial.score

    found = search(score, method.rates, method.values, budget.trials)
    return trials[found.rate, found.own], found.trials


def _clock(trial: Trial, unit: Unit, seed: int, steps: int) -> tuple[float, float]:
    """Seconds of a run, net of a call that does nothing; the same in steps of AdamW."""
    clock = functools.partial(trial.runner.seconds, seed, trial.rate, trial.own)
    times: list[float] = []
    ratios: list[float] = []
    while len(times) < 3 or (len(times) < 15 and sum(times) < UNIT_SECONDS):
        before = unit()
        times.append(max(clock(steps) - clock(0), 0.0))
        ratios.append(2 * times[-1] / (before + unit()))
        if sum(times) > LONG:
            break
    return statistics.median(times), statistics.median(ratios)


def race(name: str, method: Method, budget: Budget) -> dict[str, Any]:
    """Figures of one method on one task."""
    task, unit = build(name), _unit(name)
    best, trials = _tune(method, task, budget)
    reached = [(seed, n) for seed, n in enumerate(best.steps) if n is not None]
    clocks = [_clock(best, unit, seed, n) for seed, n in reached]
    figures: dict[str, Any] = {
        "rate": best.rate if method.rates else None,
        "own": {method.own: best.own} if method.own else {},
        "trials": trials,
        "reached": len(reached),
        "seeds": budget.seeds,
        "best": max(best.left),
        "compile_s": best.runner.compile_seconds,
    }
    steps = [float(n) for _, n in reached]
    seconds, times = [c[0] for c in clocks], [c[1] for c in clocks]
    for key, found in {"steps": steps, "seconds": seconds, "time": times}.items():
        figures[key] = _middle(found, budget.seeds)
        figures[f"{key} range"] = [min(found), max(found)] if found else None
    return figures


def _middle(found: list[float], seeds: int) -> float | None:
    """The median over all seeds, if most of them got there."""
    late = seeds - len(found)
    if 2 * late >= seeds:
        return None
    values = sorted(found) + [float("inf")] * late
    middle = statistics.median_high(values)
    return middle if np.isfinite(middle) else None


def race_cases(config: Config) -> list[Case]:
    """One case a task and method."""
    budget = FAST if config.fast else FULL
    methods = {**METHODS, **PEERS}
    cases: list[Case] = []
    for name, (_, traits) in TASKS.items():
        fitting = [m for m in methods.values() if m.needs <= traits and m.races]
        if config.fast:
            fitting = [m for m in fitting if m.name in FAST_RACES.get(name, ())]
        cases += [_case(name, method, budget) for method in fitting]
    return cases


def _case(name: str, method: Method, budget: Budget) -> Case:
    def measure(_: int) -> dict[str, Any]:
        return race(name, method, budget)

    return Case(
        name=f"race/{name},{method.name}",
        parameters={
            "task": name,
            "method": method.name,
            "trials": budget.trials,
            "seeds": budget.seeds,
            "seconds": budget.seconds,
        },
        measure=measure,
        packages=("optax", "python-somax") if method.kind == "peer" else ("optax",),
    )
