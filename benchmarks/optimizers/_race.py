"""Races to a target: each method tuned, then timed, on the same seeds.

The steps to the target are found first, with a look at the metric every few steps. Then
the same number of steps is timed without any looks, in one compiled loop. The unit of
time is a step of AdamW on the same task, timed just before and after.
"""

import functools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._case import Case, Config
from ._methods import METHODS, Method
from ._peers import PEERS
from ._runner import UNIT_SECONDS, Runner, Unit, unit_of
from ._search import Score, search
from ._tasks import TASKS, Task, build


@dataclass(frozen=True)
class Budget:
    """What a race may cost; the same for each method."""

    trials: int
    seeds: int
    seconds: float  # of one run on the processor, compilation apart


FULL = Budget(trials=12, seeds=5, seconds=12.0)
# Of tasks whose steps take long: fewer trials, for all methods alike.
SMALL = Budget(trials=8, seeds=5, seconds=4.0)
LONG_STEPS = frozenset({"pinn 1e-3", "pinn 1e-5", "spiral", "characters", "fourier"})
FAST = Budget(trials=6, seeds=3, seconds=4.0)

LONG = 4.0  # seconds after which a time is not taken again

FAST_RACES = {
    "logistic 1e-6": ("adamw", "lbfgs", "newton", "newton fixed"),
    "pinn 1e-5": ("adamw", "lbfgs", "newton", "newton fixed"),
}


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
    steps than the slowest of the best trial. A trial ends with two failures, or with
    one where another had none, which it can't beat any more.
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
            if trial.steps.count(None) >= (2 if fewest == task.limit else 1):
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
    task, unit = build(name), unit_of(name)
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
    methods = {**METHODS, **PEERS}
    cases: list[Case] = []
    for name, (_, traits) in TASKS.items():
        fitting = [m for m in methods.values() if m.needs <= traits and m.races]
        if config.fast:
            fitting = [m for m in fitting if m.name in FAST_RACES.get(name, ())]
        full = SMALL if name in LONG_STEPS else FULL
        budget = FAST if config.fast else full
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
        packages=("optax", *method.packages),
    )
