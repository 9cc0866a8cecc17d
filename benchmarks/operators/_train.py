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


class _Trainer:
    """One rule on one task, compiled once for all rates."""

    def __init__(self, task: _Task, make: Callable[[Any], Any], data: tuple):
        self.model, (self.x, self.y) = task.make(), data

        def loss(model, batch, key):
            del key
            found = task.predict(model, batch[0])
            axes, wanted = tuple(range(1, found.ndim)), batch[1]
            errors = jnp.sum((found - wanted) ** 2, axes) / jnp.sum(wanted**2, axes)
            return jnp.mean(errors)

        tx = px.optimizers.inject(make)(learning_rate=1e-3)
        self.step = jax.jit(px.training.train_step(self.model, loss, tx, nan="skip"))
        self.state = px.training.init_state(self.model, tx, jax.random.key(1))
        self.rng = np.random.default_rng(0)
        jax.block_until_ready(self.step(self.state, self._batch()))

    def _batch(self) -> tuple[np.ndarray, np.ndarray]:
        pick = self.rng.integers(len(self.x), size=BATCH)
        return self.x[pick], self.y[pick]

    def run(self, rate: float, seconds: float) -> tuple[Any, int]:
        """The model after so many seconds of the processor, compilation apart."""
        self.rng, state = np.random.default_rng(0), self.state
        hyper = state.opt_state.hyperparams
        hyper = hyper | {"learning_rate": jnp.asarray(rate, jnp.float32)}
        opt_state = state.opt_state._replace(hyperparams=hyper)
        state = state._replace(opt_state=opt_state)
        begin, count = time.process_time(), 0
        while time.process_time() - begin < seconds:
            state, _ = jax.block_until_ready(self.step(state, self._batch()))
            count += 1
        static = eqx.filter(self.model, eqx.is_inexact_array, inverse=True)
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
            tried, trainer = [], _Trainer(task, make, train)
            for rate in rates:
                model, steps = trainer.run(rate, seconds)
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
