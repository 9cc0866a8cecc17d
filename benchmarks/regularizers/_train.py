"""Paired runs: the same seeds with and without a penalty."""

import functools
import time

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._tasks import METHODS, TASKS, make


def _predict_seconds(predict, model, x) -> float:
    times = []
    for _ in range(21):
        start = time.perf_counter()
        jax.block_until_ready(predict(model, x))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@functools.cache  # the plain runs are shared by all methods
def run(name: str, method: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy and evaluations on test data, and times, of one trained model."""
    task, (penalty, weights) = TASKS[name], METHODS[method]
    model, loss, data, (x, y) = make(task, penalty, seed)
    # The penalty comes in over the first third of training.
    ramp = optax.linear_schedule(0.0, weights[name], steps // 3)
    start = time.perf_counter()
    result = px.training.fit(
        model,
        loss,
        px.training.Batches(data, task.batch, seed=seed),
        optax.adam(task.learning_rate),
        steps=steps,
        key=jax.random.key(seed),
        has_aux=True,
        weights={"penalty": ramp},
        nan="skip",
        log_every=steps,
        progress=False,
    )
    seconds = time.perf_counter() - start
    found = {"train_s": seconds, "bad_steps": float(result.state.bad_steps)}
    others = {
        "": (task.tolerance, None),
        "_tight": (task.tolerance / 10, None),
        "_dopri5": (task.tolerance, dfx.Dopri5()),
    }
    for suffix, (tolerance, solver) in others.items():
        predict = eqx.filter_jit(
            lambda model, x, tolerance=tolerance, solver=solver: model(
                x, {}, None, tolerance=tolerance, solver=solver
            )
        )
        logits, record = predict(result.model, x)
        found[f"evaluations{suffix}"] = float(record.evaluations.total.drift)
        found[f"accuracy{suffix}"] = float(np.mean(np.argmax(logits, 1) == y))
        if not suffix:
            found["predict_s"] = _predict_seconds(predict, result.model, x)
    return found


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """A 95% interval of the mean over seeds."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _paired(name: str, method: str, seeds: int, steps: int) -> dict:
    pairs = [
        (run(name, "plain", seed, steps), run(name, method, seed, steps))
        for seed in range(seeds)
    ]
    ratio = lambda key: np.log([with_[key] / bare[key] for bare, with_ in pairs])
    change = np.array([w["accuracy"] - b["accuracy"] for b, w in pairs]) * 100
    low, high = np.exp(_bootstrap(ratio("evaluations")))
    figures = {
        "nfe_ratio": float(np.exp(ratio("evaluations").mean())),
        "nfe_ratio_lower95": float(low),
        "nfe_ratio_upper95": float(high),
        "nfe_ratio_tight": float(np.exp(ratio("evaluations_tight").mean())),
        "nfe_ratio_dopri5": float(np.exp(ratio("evaluations_dopri5").mean())),
        "predict_time_ratio": float(np.exp(ratio("predict_s").mean())),
        "accuracy_plain": float(np.mean([b["accuracy"] for b, _ in pairs])),
        "accuracy_change_pt": float(change.mean()),
        "accuracy_change_lower95_pt": _bootstrap(change)[0],
        "nfe_plain": float(np.mean([b["evaluations"] for b, _ in pairs])),
        "seeds": seeds,
        "bad_steps": sum(w["bad_steps"] for _, w in pairs),
    }
    return {**figures, "runs": [list(pair) for pair in pairs]}


def training_cases(config: Config) -> list[Case]:
    """Each method beside none, on each task."""
    seeds, steps = (2, 300) if config.fast else (5, 600)
    methods = ("error", "step cost") if config.fast else list(METHODS)[1:]
    return [
        Case(
            f"train/{task},{method}",
            {"steps": steps, "seeds": seeds, "weight": METHODS[method][1][task]},
            measure=lambda _, task=task, method=method: _paired(
                task, method, seeds, steps
            ),
            packages=("scikit-learn",),
        )
        for task in TASKS
        for method in methods
    ]
