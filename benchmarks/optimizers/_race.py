"""Races to a target: each optimizer tuned on one seed, then run on fresh ones."""

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config
from ._methods import METHODS, Method, init_state, training_step
from ._tasks import TASKS, Task


@dataclass(frozen=True)
class Budget:
    """How much a race may cost; the same for each method."""

    rates: int  # of the grid of ten
    seeds: int
    seconds: float  # of one run, compilation apart
    tuning_seconds: float  # of one run of the grid


FULL = Budget(rates=10, seeds=5, seconds=30.0, tuning_seconds=8.0)
FAST = Budget(rates=3, seeds=2, seconds=8.0, tuning_seconds=3.0)

FAST_TASKS = ("logistic", "pinn")
FAST_METHODS = ("adamw", "lbfgs", "newton")


class Runner:
    """One method on one task: a compiled chunk of steps, and a look at the metric."""

    def __init__(self, method: Method, task: Task):
        self.method, self.task = method, task
        step = training_step(method, task)

        def chunk(params, state, key, rate):
            def body(carry, key):
                params, state = carry
                params, state, value = step(params, state, key, rate)
                return (params, state), value

            keys = jax.random.split(key, task.chunk)
            (params, state), _ = jax.lax.scan(body, (params, state), keys)
            return params, state, task.metric(params)

        self.chunk = jax.jit(chunk)
        start = time.perf_counter()
        self._first(jax.random.key(0))
        self.compile_seconds = time.perf_counter() - start

    def _first(self, key):
        params = jax.jit(self.task.init)(key)
        state = init_state(self.method, self.task, params)
        rate = jnp.float32(self.method.rates[0])
        # Twice: a state that comes out may differ from the first in its weak types.
        params, state, _ = self.chunk(params, state, key, rate)
        return jax.block_until_ready(self.chunk(params, state, key, rate))

    def run(self, seed: int, rate: float, seconds: float) -> dict[str, Any]:
        """Steps and seconds to the target, and the best metric seen."""
        key = jax.random.key(seed)
        params = jax.block_until_ready(jax.jit(self.task.init)(key))
        state = init_state(self.method, self.task, params)
        jax.block_until_ready(state)
        best, steps, start = float("inf"), 0, time.perf_counter()
        while steps < self.task.limit:
            key = jax.random.fold_in(key, steps)
            out = self.chunk(params, state, key, jnp.float32(rate))
            params, state, metric = out
            steps += self.task.chunk
            value, spent = float(metric), time.perf_counter() - start
            if not np.isfinite(value):
                break
            best = min(best, value)
            if value <= self.task.target:
                return {"steps": steps, "seconds": spent, "best": best}
            if spent > seconds:
                break
        spent = time.perf_counter() - start
        return {"steps": None, "seconds": None, "best": best, "spent": spent}


def _tune(runner: Runner, budget: Budget) -> float:
    """The rate that reaches the target in the least time, or else comes nearest."""
    rates = runner.method.rates
    if len(rates) > budget.rates:
        places = np.linspace(0, len(rates) - 1, budget.rates).round().astype(int)
        # Both ends of the grid are seldom any good; look between them.
        if budget.rates < 5:
            places = np.linspace(3, 7, budget.rates).round().astype(int)
        rates = [rates[i] for i in places]
    if len(rates) == 1:
        return rates[0]
    found = []
    for rate in rates:
        run = runner.run(1000, rate, budget.tuning_seconds)
        reached = run["seconds"] is not None
        found.append((not reached, run["seconds"] if reached else run["best"], rate))
    return min(found)[2]


def race(task: Task, method: Method, budget: Budget) -> dict[str, Any]:
    """Figures of one method on one task."""
    runner = Runner(method, task)
    rate = _tune(runner, budget)
    runs = [runner.run(seed, rate, budget.seconds) for seed in range(budget.seeds)]
    reached = [run for run in runs if run["steps"] is not None]
    row: dict[str, Any] = {
        "method": method.name,
        "rate": rate,
        "reached": len(reached),
        "seeds": budget.seeds,
        "best": statistics.median(run["best"] for run in runs),
        "compile_s": runner.compile_seconds,
        "seconds": None,
        "steps": None,
    }
    # A median over all seeds exists if most of them got there.
    if 2 * len(reached) > budget.seeds:
        late = [float("inf")] * (budget.seeds - len(reached))
        for name in ("seconds", "steps"):
            values = sorted([run[name] for run in reached] + late)
            row[name] = values[len(values) // 2]
            row[f"{name}_range"] = [values[0], max(run[name] for run in reached)]
    return row


def _measure(name: str, methods: tuple[str, ...], budget: Budget, _: int) -> dict:
    task = TASKS[name]()
    rows = []
    for method in (METHODS[m] for m in methods):
        if not method.fits(task):
            continue
        try:
            rows.append(race(task, method, budget))
        except Exception as error:  # one method must not end the race of the others
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            rows.append({"method": method.name, "failed": text})
    return {"target": task.target, "rows": rows} | _ratios(rows)


def _ratios(rows: list[dict]) -> dict[str, float]:
    """Time to target over that of AdamW, by method."""
    by_name = {row["method"]: row for row in rows}
    base = by_name.get("adamw", {}).get("seconds")
    if base is None:
        # AdamW never got there: what it spent is a lower bound of its time.
        return {}
    return {
        f"{name} over adamw": row["seconds"] / base
        for name, row in by_name.items()
        if row.get("seconds") is not None and name != "adamw"
    }


def race_cases(config: Config) -> list[Case]:
    """One case a task."""
    budget = FAST if config.fast else FULL
    names = FAST_TASKS if config.fast else tuple(TASKS)
    methods = FAST_METHODS if config.fast else tuple(METHODS)
    return [
        Case(
            name=f"race/{name}",
            parameters={
                "methods": list(methods),
                "rates": budget.rates,
                "seeds": budget.seeds,
                "seconds": budget.seconds,
            },
            measure=functools.partial(_measure, name, methods, budget),
        )
        for name in names
    ]
