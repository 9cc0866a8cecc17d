"""Paired runs: the same seeds with and without a penalty, for a choice of weights."""

import functools
import time
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._tasks import (
    TASKS,
    Model,
    Task,
    arguments,
    loss_of,
    padded,
    solve,
    solver_of,
    weights_of,
)


OPTIMIZERS = {
    "adamw": optax.adamw,
    "soap": px.optimizers.soap,
    "shampoo": px.optimizers.shampoo,
}
# A weight may cost half a point of accuracy on the data it is chosen by.
ALLOWED = 0.005


class Setting(NamedTuple):
    """What the runs of a table share."""

    task: str
    optimizer: str
    seeds: int
    steps: int
    weights: int


def _stack(parts: list) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *parts)


@functools.cache
def _data(setting: Setting) -> tuple:
    """All parts and the order of the batches, along an axis of seeds."""
    task, parts, orders = TASKS[setting.task], [], []
    for seed in range(setting.seeds):
        data = task.load(seed)
        parts.append(type(data)(*((padded(task, x), y) for x, y in data)))
        count, rng = len(data.train[0]), np.random.default_rng(seed)
        epochs = -(-setting.steps * task.batch // count)
        order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
        order = order[: setting.steps * task.batch]
        orders.append(order.reshape(setting.steps, task.batch).astype(np.int32))
    return _stack(parts), np.stack(orders)


def _trainer(setting: Setting, method: str):
    """From a seed's key, data and order, and a weight, to parameters."""
    task, steps = TASKS[setting.task], setting.steps
    rate = optax.cosine_decay_schedule(task.learning_rate, steps)
    optimizer = OPTIMIZERS[setting.optimizer](rate)
    loss = loss_of(task, method)

    def train(key, data, order, weight):
        model = Model(task, key)
        # The penalty comes in over the second third of training.
        ramp = lambda step: weight * jnp.clip(3 * step / steps - 1, 0.0, 1.0)
        options = {"penalty": weight if method == "steer" else ramp}
        state = px.training.init_state(model, optimizer, key, options)
        step = px.training.train_step(
            model, loss, optimizer, has_aux=True, weights=options, nan="skip"
        )

        def one(state, rows):
            return step(state, (data[0][rows], data[1][rows]))

        state, metrics = jax.lax.scan(one, state, order)
        return state.params, state.bad_steps, metrics["evaluations"].mean()

    of_weights = jax.vmap(train, (None, None, None, 0))
    return jax.jit(jax.vmap(of_weights, (0, 0, 0, None)))


def _whole(task: Task, params: Any) -> Model:
    model = Model(task, jax.random.key(0))
    return eqx.combine(params, eqx.filter(model, eqx.is_inexact_array, inverse=True))


@functools.cache
def _predictor(name: str, tolerance: float, solver: str | None):
    """Evaluations and accuracy, of one set of parameters."""
    task = TASKS[name]
    chosen = getattr(dfx, solver)() if solver else None

    def predict(params, x, y):
        model, key = _whole(task, params), jax.random.key(7)
        options = {"tolerance": task.tolerance * tolerance, "solver": chosen}
        logits, record = solve(task, model, {}, x, key, **options)
        right = jnp.mean((jnp.argmax(logits, 1) == y).astype(jnp.float32))
        return record.evaluations.total.drift, right, logits

    return predict


@functools.cache
def _of_all(name: str):
    predict = _predictor(name, 1.0, None)
    short = lambda *args: predict(*args)[:2]
    # One after the other: none waits for the one that takes the most steps.
    lanes = lambda params, x, y: jax.lax.map(lambda p: short(p, x, y), params)
    return jax.jit(lanes)


@functools.cache
def _one(name: str, tolerance: float, solver: str | None):
    return jax.jit(_predictor(name, tolerance, solver))


@functools.cache
def _bare(name: str):
    """A prediction by Diffrax alone, to be timed and compared."""
    task = TASKS[name]

    def predict(params, x):
        model, (noise, _) = _whole(task, params), jax.random.split(jax.random.key(7))
        position, options = arguments(task, x, task.tolerance)
        terms = model.terms(x, noise)
        return model.logits(
            dfx.diffeqsolve(terms, solver_of(task), *position, **options)
        )

    return jax.jit(predict)


@functools.cache  # the plain runs are shared by all methods
def lanes(setting: Setting, method: str) -> dict[str, Any]:
    """All seeds and weights of a method, trained at once; and what they come to."""
    data, orders = _data(setting)
    grid = weights_of(TASKS[setting.task], method)[: setting.weights]
    weights = np.asarray(grid, np.float32)
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    start = time.perf_counter()
    out = _trainer(setting, method)(keys, data.train, orders, weights)
    params, bad, evaluations = jax.block_until_ready(out)
    found: dict[str, Any] = {
        "params": params,
        "weights": weights,
        "bad_steps": np.asarray(bad),
        "train_evaluations": np.asarray(evaluations),
        "seconds": time.perf_counter() - start,
    }
    for part in ("validation", "test"):
        values = [
            _of_all(setting.task)(
                jax.tree.map(lambda p, s=seed: p[s], params),
                *(z[seed] for z in getattr(data, part)),
            )
            for seed in range(setting.seeds)
        ]
        found[part] = [np.asarray(v, np.float64) for v in zip(*values, strict=True)]
    return found


def choose(found: dict, plain: dict) -> int:
    """The weight with the fewest evaluations that is accurate enough, on validation."""
    evaluations, accuracy = (x.mean(0) for x in found["validation"])
    enough = accuracy >= plain["validation"][1].mean() - ALLOWED
    if not enough.any():
        return int(np.argmax(accuracy))
    return int(np.argmin(np.where(enough, evaluations, np.inf)))


def _timed(name: str, pairs: list, x: np.ndarray) -> list[float]:
    """Time of a prediction over that of its twin, taken in turns."""
    predict, ratios = _bare(name), []
    for seed, pair in enumerate(pairs):
        times: list[list[float]] = [[], []]
        for _ in range(21):
            for params, kept in zip(pair, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(predict(params, x[seed]))
                kept.append(time.perf_counter() - start)
        plain, own = (float(np.median(kept[1:])) for kept in times)
        ratios.append(own / plain)
    return ratios


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """A 95% interval of the mean over seeds."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _paired(setting: Setting, method: str) -> dict:
    plain, found = lanes(setting, "plain"), lanes(setting, method)
    at = choose(found, plain)
    seeds = range(setting.seeds)
    take = lambda tree, s, w: jax.tree.map(lambda p: p[s, w], tree)
    pairs = [(take(plain["params"], s, 0), take(found["params"], s, at)) for s in seeds]
    (x, y), name = _data(setting)[0].test, setting.task
    other = "SPaRK" if TASKS[name].noise else "Dopri5"
    logs = {"": np.log(found["test"][0][:, at] / plain["test"][0][:, 0])}
    agree, same, loose = [], [], []
    for suffix, options in {"_tight": (0.1, None), "_other": (1.0, other)}.items():
        predict = _one(name, *options)
        count = lambda p, s, predict=predict: float(predict(p, x[s], y[s])[0])
        logs[suffix] = np.log(
            [count(b, s) / count(a, s) for s, (a, b) in enumerate(pairs)]
        )
    for s, (before, after) in enumerate(pairs):
        classes = lambda out: np.argmax(np.asarray(out[2]), 1)
        here = _one(name, 1.0, None)(after, x[s], y[s])
        there = _one(name, 0.1, None)(after, x[s], y[s])
        agree.append(np.mean(classes(here) == classes(there)))
        same.append(np.max(np.abs(np.asarray(here[2]) - _bare(name)(after, x[s]))))
        loose.append(_one(name, 10.0, None)(before, x[s], y[s])[:2])
    change = (found["test"][1][:, at] - plain["test"][1][:, 0]) * 100
    low, high = np.exp(bootstrap(logs[""]))
    loose = np.asarray(loose, np.float64)
    return {
        "weight": float(found["weights"][at]),
        "nfe_plain": float(plain["test"][0].mean()),
        "nfe_ratio": float(np.exp(logs[""].mean())),
        "nfe_ratio_lower95": float(low),
        "nfe_ratio_upper95": float(high),
        "nfe_ratio_tight": float(np.exp(logs["_tight"].mean())),
        "nfe_ratio_other_solver": float(np.exp(logs["_other"].mean())),
        "nfe_ratio_train": float(
            found["train_evaluations"][:, at].mean() / plain["train_evaluations"].mean()
        ),
        "predict_time_ratio": float(np.median(_timed(name, pairs, x))),
        "accuracy_plain": float(plain["test"][1].mean()),
        "accuracy_change_pt": float(change.mean()),
        "accuracy_change_lower95_pt": bootstrap(change)[0],
        "agreement_tight": float(np.mean(agree)),
        "difference_to_bare": float(np.max(same)),
        "loose_nfe_ratio": float(loose[:, 0].mean() / plain["test"][0].mean()),
        "loose_accuracy_change_pt": float(
            (loose[:, 1].mean() - plain["test"][1].mean()) * 100
        ),
        "bad_steps": int(found["bad_steps"][:, at].sum()),
        "seconds": found["seconds"],
        "weights": found["weights"].tolist(),
        "plain": [x[:, 0].tolist() for x in plain["test"]],
        "validation": [x.tolist() for x in found["validation"]],
        "test": [x.tolist() for x in found["test"]],
    }


def training_cases(config: Config) -> list[Case]:
    """Each method beside none, on each task."""
    out = []

    def add(methods, task, optimizer="adamw", **options):
        setting = Setting(task, optimizer, **options)
        for method in methods:
            parts = (task, method) + (optimizer,) * (optimizer != "adamw")
            out.append(
                Case(
                    f"train/{','.join(parts)}",
                    {**setting._asdict(), "grid": weights_of(TASKS[task], method)},
                    measure=lambda _, s=setting, m=method: _paired(s, m),
                    packages=("scikit-learn",),
                    revision=2,
                )
            )

    if config.fast:
        few = {"seeds": 2, "steps": 150, "weights": 2}
        for task in ("spirals", "digits"):
            add(("step cost", "local", "error"), task, **few)
        return out
    full = {"seeds": 5, "steps": 300, "weights": 3}
    long = {**full, "steps": 800}
    tasks = {"digits": full, "mnist": full, "spirals": long}
    groups = (("step cost", "error", "local"), ("published local", "steer", "taynode"))
    for group in groups:
        add(group, "digits", **full)
    add(groups[0], "mnist", **full)
    for optimizer in ("soap", "shampoo"):
        add(("step cost",), "digits", optimizer, **full)
    add(groups[0], "spirals", **long)
    add(groups[1], "mnist", **full)
    add(groups[0], "digits-sde", **full)
    for task, options in tasks.items():
        add(("rnode",), task, **options)
    add(groups[1], "spirals", **long)
    return out
