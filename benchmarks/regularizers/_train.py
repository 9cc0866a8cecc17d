"""Paired runs: the same seeds with and without a penalty, for a choice of weights."""

import functools
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from ._methods import METHODS, Run, loss_of, weights_of
from ._tasks import TASKS, Task


OPTIMIZERS = {
    "adamw": optax.adamw,
    "soap": px.optimizers.soap,
    "shampoo": px.optimizers.shampoo,
}
# What a weight may cost on the data it is chosen by, and on those it is reported of:
# half a point of accuracy; or, where variance is explained, a 2% larger rest of it.
ALLOWED, ALLOWED_REST = 0.005, 1.02
_ROUNDS = 15


class Setting(NamedTuple):
    """What the runs of a table share; `weights` says how many are tried."""

    task: str
    optimizer: str
    seeds: int
    steps: int
    weights: int


class _Seed(NamedTuple):
    """Batches of all steps, and the parts that are only evaluated on, in chunks."""

    train: tuple
    validation: tuple
    test: tuple


def _cast(arrays: tuple, task: Task) -> tuple:
    real = lambda x: x.dtype.kind == "f"
    kept = lambda x: x.astype(task.dtype if real(x) else np.int32)
    return tuple(kept(np.asarray(x)) for x in arrays)


def _chunks(arrays: tuple, size: int) -> tuple:
    size = min(size, len(arrays[0]))
    count = len(arrays[0]) // size
    return tuple(x[: count * size].reshape(count, size, *x.shape[1:]) for x in arrays)


def _of_seed(setting: Setting, seed: int) -> _Seed:
    task = TASKS[setting.task]
    data = task.load(seed)
    count, rng = len(data.train[0]), np.random.default_rng(seed)
    epochs = -(-setting.steps * task.batch // count)
    order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    order = order[: setting.steps * task.batch].reshape(setting.steps, task.batch)
    batches = tuple(x[order] for x in _cast(data.train, task))
    rest = (_chunks(_cast(x, task), task.chunk) for x in (data.validation, data.test))
    return _Seed(batches, *rest)


@functools.cache
def data_of(setting: Setting) -> _Seed:
    """Of all seeds, along a leading axis."""
    seeds = [_of_seed(setting, seed) for seed in range(setting.seeds)]
    return jax.tree.map(lambda *x: np.stack(x), *seeds)


def _trainer(setting: Setting, method: str, automatic: Any = None):
    """From seeds and weights to parameters.

    One run after the other: each stops at its own number of steps of the solver. With a
    weight that sets itself the given ones are ignored.
    """
    task, steps = TASKS[setting.task], setting.steps
    rate = optax.cosine_decay_schedule(task.learning_rate, steps)
    optimizer = OPTIMIZERS[setting.optimizer](rate)
    loss, kind = loss_of(task, method), METHODS[method].kind

    def train(key, batches, weight):
        model = task.model(key)
        # A penalty comes in over the second third of training.
        ramp = lambda step: weight * jnp.clip(3 * step / steps - 1, 0.0, 1.0)
        fixed = ramp if kind == "penalty" else weight
        options = {"penalty": fixed if automatic is None else automatic}
        state = px.training.init_state(model, optimizer, key, options)
        step = px.training.train_step(
            model, loss, optimizer, has_aux=True, weights=options, nan="skip"
        )
        state, metrics = jax.lax.scan(step, state, batches)
        return state.params, state.bad_steps, metrics["evaluations"].mean()

    def all_weights(seed, weights):
        key, batches = seed
        return jax.lax.map(lambda weight: train(key, batches, weight), weights)

    run = lambda keys, data, w: jax.lax.map(lambda s: all_weights(s, w), (keys, data))
    return jax.jit(run)


def _whole(task: Task, params: Any) -> Any:
    model = task.model(jax.random.key(0))
    return eqx.combine(params, eqx.filter(model, eqx.is_inexact_array, inverse=True))


def _predictor(name: str, **options: Any):
    """Evaluations and accuracy, the mean over chunks; and whether all were solved."""
    task = TASKS[name]

    def one(params, chunk):
        run = Run(task, {}, **options)
        found, record = task.predict(
            _whole(task, params), chunk, jax.random.key(7), run
        )
        evaluations = record.evaluations.total.drift
        return evaluations, task.score(found, chunk), record.complete

    def predict(params, chunks):
        evaluations, score, complete = jax.lax.map(lambda c: one(params, c), chunks)
        dtype = score.dtype
        return evaluations.astype(dtype).mean(), score.mean(), jnp.all(complete)

    return predict


@functools.cache
def _of_all(name: str):
    """Of all weights of a seed."""
    predict = _predictor(name)
    return jax.jit(lambda p, chunks: jax.lax.map(lambda q: predict(q, chunks), p))


@functools.cache
def _compared(name: str):
    """With the task's solver, another, a tighter tolerance, and a looser."""
    task = TASKS[name]
    ways = {
        "same": _predictor(name),
        "tight": _predictor(name, tolerance=0.1),
        "loose": _predictor(name, tolerance=10.0),
        "other": _predictor(name, solver=task.other),
    }
    return jax.jit(lambda p, chunks: {k: way(p, chunks) for k, way in ways.items()})


@functools.cache
def _alone(name: str, *, bare: bool):
    """A prediction by Diffrax alone, or with what counts, of one chunk."""
    task = TASKS[name]

    def predict(params, chunk):
        run = Run(task, None if bare else {})
        return task.predict(_whole(task, params), chunk, jax.random.key(7), run)[0]

    return jax.jit(predict)


@functools.cache
def _times(name: str):
    """Of all steps of a prediction."""
    task = TASKS[name]

    def steps(params, chunk):
        run = Run(task, None, steps=[])
        task.predict(_whole(task, params), chunk, jax.random.key(7), run)
        assert run.steps is not None
        return run.steps[0]

    return jax.jit(steps)


def _rounded(times: Any) -> list[float]:
    times = np.asarray(times, np.float64)
    return [float(f"{t:.5g}") for t in times[np.isfinite(times)]]


@functools.cache  # the plain runs are shared by all methods
def lanes(setting: Setting, method: str, automatic: Any = None) -> dict[str, Any]:
    """All seeds and weights of a method, and what they come to."""
    data, task = data_of(setting), TASKS[setting.task]
    weights = np.asarray(weights_of(task, method, setting.weights), task.dtype)
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    trainer = _trainer(setting, method, automatic)
    compiled = trainer.lower(keys, data.train, weights).compile()
    start = time.perf_counter()
    params, bad, evaluations = jax.block_until_ready(
        compiled(keys, data.train, weights)
    )
    found: dict[str, Any] = {
        "params": params,
        "weights": weights,
        "bad_steps": np.asarray(bad),
        "train_evaluations": np.asarray(evaluations, np.float64),
        "seconds": (time.perf_counter() - start) / bad.size,
    }
    predict = _of_all(setting.task)
    for part in ("validation", "test"):
        values = [
            predict(
                *jax.tree.map(lambda x, s=seed: x[s], (params, getattr(data, part)))
            )
            for seed in range(setting.seeds)
        ]
        evaluations, score, complete = (
            np.asarray(v, np.float64) for v in zip(*values, strict=True)
        )
        failed = ~np.isfinite(score) | (complete == 0)
        found[part] = [evaluations, np.where(failed, 0.0, score)]
        found["failed"] = failed
    return found


def choose(found: dict, plain: dict, *, right: bool = True) -> int:
    """The weight with the fewest evaluations that is accurate enough, on validation."""
    evaluations, accuracy = (x.mean(0) for x in found["validation"])
    before = plain["validation"][1].mean()
    least = before - ALLOWED if right else 1 - ALLOWED_REST * (1 - before)
    enough = accuracy >= least
    if not enough.any():
        return int(np.argmax(accuracy))
    return int(np.argmin(np.where(enough, evaluations, np.inf)))


def _timed(name: str, pairs: list, chunks: list) -> list[float]:
    """Time of a prediction over that of its twin, taken in turns."""
    predict, ratios = _alone(name, bare=True), []
    for pair, chunk in zip(pairs, chunks, strict=True):
        times: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for params, kept in zip(pair, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(predict(params, chunk))
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


def _comparison(name: str, pairs: list, tests: list) -> dict[str, Any]:
    """What remains of the gain elsewhere; and what a looser tolerance would give."""
    compare = _compared(name)
    out = [[compare(p, x) for p in pair] for pair, x in zip(pairs, tests, strict=True)]
    take = lambda way, who, what: np.array([float(o[who][way][what]) for o in out])
    ratio = lambda way: np.exp(np.mean(np.log(take(way, 1, 0) / take(way, 0, 0))))
    first = [jax.tree.map(lambda x: x[0], chunks) for chunks in tests]
    both = [
        [_alone(name, bare=bare)(pair[1], chunk) for bare in (False, True)]
        for pair, chunk in zip(pairs, first, strict=True)
    ]
    apart = lambda a, b: float(jnp.max(jnp.abs(a - b)))
    same = [max(jax.tree.leaves(jax.tree.map(apart, *pair))) for pair in both]
    plain = [take(way, 0, what) for way in ("loose", "same") for what in (0, 1)]
    return {
        "nfe_ratio_tight": float(ratio("tight")),
        "nfe_ratio_other_solver": float(ratio("other")),
        "accuracy_change_tight_pt": 100
        * float((take("tight", 1, 1) - take("same", 1, 1)).mean()),
        "difference_to_bare": max(same),
        "loose_nfe_ratio": float(plain[0].mean() / plain[2].mean()),
        "loose_accuracy_change_pt": float((plain[1] - plain[3]).mean() * 100),
        "predict_time_ratio": float(np.median(_timed(name, pairs, first))),
        "steps": [_rounded(_times(name)(params, first[0])) for params in pairs[0]],
    }


def paired(setting: Setting, method: str) -> dict:
    """All figures of a method on a task, beside its twin's."""
    with jax.enable_x64(TASKS[setting.task].double):
        return _paired(setting, method)


def _paired(setting: Setting, method: str) -> dict:
    plain, found = lanes(setting, "plain"), lanes(setting, method)
    at = choose(found, plain, right=TASKS[setting.task].right)
    seeds = range(setting.seeds)
    take = lambda tree, s, w: jax.tree.map(lambda p: p[s, w], tree)
    pairs = [(take(plain["params"], s, 0), take(found["params"], s, at)) for s in seeds]
    tests = [jax.tree.map(lambda x, s=s: x[s], data_of(setting).test) for s in seeds]
    logs = np.log(found["test"][0][:, at] / plain["test"][0][:, 0])
    change = (found["test"][1][:, at] - plain["test"][1][:, 0]) * 100
    left = np.log((1 - found["test"][1][:, at]) / (1 - plain["test"][1][:, 0]))
    low, high = np.exp(bootstrap(logs))
    return {
        "weight": float(found["weights"][at]),
        "nfe_plain": float(plain["test"][0].mean()),
        "nfe_ratio": float(np.exp(logs.mean())),
        "nfe_ratio_lower95": float(low),
        "nfe_ratio_upper95": float(high),
        "nfe_ratio_train": float(
            found["train_evaluations"][:, at].mean() / plain["train_evaluations"].mean()
        ),
        "accuracy_plain": float(plain["test"][1].mean()),
        "accuracy_change_pt": float(change.mean()),
        "accuracy_change_lower95_pt": bootstrap(change)[0],
        "error_ratio": float(np.exp(left.mean())),
        **_comparison(setting.task, pairs, tests),
        "bad_steps": int(found["bad_steps"][:, at].sum()),
        "failed": [int(x["failed"].sum()) for x in (plain, found)],
        "seconds": found["seconds"],
        "seconds_plain": plain["seconds"],
        "weights": found["weights"].tolist(),
        "plain": [x[:, 0].tolist() for x in plain["test"]],
        "validation": [x.tolist() for x in found["validation"]],
        "test": [x.tolist() for x in found["test"]],
    }
