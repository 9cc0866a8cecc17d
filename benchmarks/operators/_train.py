"""Operators trained by several optimizers, for the same processor time each."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._fno import relative
from ._problems import burgers, forced_flow


BATCH = 8
TRAIN, CHOOSE, TEST = 192, 32, 32

# The rate's grid and the rule. What is left at its default was not tuned.
METHODS: dict[str, tuple[tuple[float, ...], Callable[[Any], Any]]] = {
    "AdamW": ((1e-3, 3e-3, 1e-2, 3e-2), optax.adamw),
    "SOAP": ((1e-3, 3e-3, 1e-2, 3e-2), px.optimizers.soap),
    "Sophia-H": ((3e-4, 1e-3, 3e-3, 1e-2), px.optimizers.sophia_h),
    "AdaHessian": ((1e-2, 3e-2, 1e-1, 3e-1), px.optimizers.adahessian),
    "M-FAC": (
        (1e-4, 1e-3, 1e-2, 1e-1),
        px.optimizers.mfac,
    ),
}


class _Task(NamedTuple):
    """A model, a batch's prediction, and data."""

    make: Callable[[], Any]
    predict: Callable[[Any, Any], Any]
    data: Callable[[], tuple[np.ndarray, np.ndarray]]


def _flows() -> tuple[np.ndarray, np.ndarray]:
    flows = forced_flow(TRAIN + CHOOSE + TEST, 32, 20)
    return flows[:, :10], flows[:, 10:]


def _fields() -> tuple[np.ndarray, np.ndarray]:
    start, end = burgers(TRAIN + CHOOSE + TEST)
    return start[:, None], end[:, None]


_TIMES = np.arange(1, 11, dtype=np.float32) / 10
TASKS = {
    "FNO, Burgers": _Task(
        lambda: px.operators.FNO(1, 1, (16,), width=32, key=jax.random.key(0)),
        lambda model, x: jax.vmap(model)(x),
        _fields,
    ),
    "STFNO, forced flow": _Task(
        lambda: px.operators.STFNO(
            (8, 8, 4), width=8, depth=3, frames=10, horizon=1.0, key=jax.random.key(0)
        ),
        lambda model, x: jax.vmap(lambda f: model(f, jnp.asarray(_TIMES)))(x),
        _flows,
    ),
}


def _train(task: _Task, tx: Any, data: tuple, seconds: float) -> tuple[Any, int]:
    """The model after so many seconds of the processor, compilation apart."""
    x, y = data
    model = task.make()

    def loss(model, batch, key):
        del key
        found = task.predict(model, batch[0])
        axes = tuple(range(1, found.ndim))
        errors = jnp.sum((found - batch[1]) ** 2, axes) / jnp.sum(batch[1] ** 2, axes)
        return jnp.mean(errors)

    step = jax.jit(px.training.train_step(model, loss, tx, nan="skip"))
    state = px.training.init_state(model, tx, jax.random.key(1))
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(len(x), size=BATCH)
    pick = draw()
    jax.block_until_ready(step(state, (x[pick], y[pick])))
    begin, count = time.process_time(), 0
    while time.process_time() - begin < seconds:
        pick = draw()
        state, _ = jax.block_until_ready(step(state, (x[pick], y[pick])))
        count += 1
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    return eqx.combine(state.params, static), count


def _measure(task: _Task, seconds: float, methods: tuple[str, ...]) -> dict[str, Any]:
    """Error on the test set at the rate that was best on the set for choosing."""
    x, y = task.data()
    parts = np.split(np.arange(len(x)), [TRAIN, TRAIN + CHOOSE])
    train, choose, test = ((x[part], y[part]) for part in parts)
    out: dict[str, Any] = {}
    predict = eqx.filter_jit(task.predict)
    with jax.numpy_dtype_promotion("standard"):
        for name in methods:
            rates, make = METHODS[name]
            tried = []
            for rate in rates:
                model, steps = _train(task, make(rate), train, seconds)
                errors = [
                    relative(np.asarray(predict(model, a)), b)
                    for a, b in (choose, test)
                ]
                tried.append((*errors, rate, steps))
            finite = [found for found in tried if np.isfinite(found[0])]
            _, error, rate, steps = min(finite)
            out |= {
                f"error {name}": error,
                f"rate {name}": rate,
                f"steps {name}": steps,
                f"tried {name}": [[found[2], found[1]] for found in tried],
            }
    return out


def train_cases(config: Config) -> list[Case]:
    """All optimizers for twenty seconds each rate; two for a moment in a fast run."""
    methods = tuple(METHODS)[:2] if config.fast else tuple(METHODS)
    seconds = 4.0 if config.fast else 20.0
    return [
        Case(
            name=f"train/{name}",
            parameters={"processor_s": seconds, "batch": BATCH, "flows": TRAIN},
            measure=lambda _, task=task: _measure(task, seconds, methods),
            packages=("optax",),
        )
        for name, task in TASKS.items()
    ]
