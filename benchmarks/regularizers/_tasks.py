"""Neural ODEs on small tasks, trained with a penalty or without."""

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import SkippedError


class Task(NamedTuple):
    """Data, sizes and tolerance of a task of classification."""

    load: Any
    zeros: int
    hidden: int
    tolerance: float
    batch: int
    learning_rate: float


def _digits(seed: int) -> tuple:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SkippedError("needs scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = np.asarray(x[order] / 16, np.float32), np.asarray(y[order], np.int32)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def _spirals(seed: int) -> tuple:
    """Two interleaved spirals."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 1024)
    turn = np.sqrt(rng.uniform(0.05, 1, 1024)) * 2.5 * np.pi
    x = np.stack([np.cos(turn), np.sin(turn)], 1) * (turn * (2 * y - 1))[:, None] / 8
    x = (x + 0.02 * rng.normal(size=x.shape)).astype(np.float32)
    y = y.astype(np.int32)
    return (x[:512], y[:512]), (x[512:], y[512:])


TASKS = {
    "spirals": Task(_spirals, 2, 32, 1e-6, 256, 5e-3),
    "digits": Task(_digits, 0, 100, 1e-6, 128, 1e-3),
}
# Weights were set beforehand, and not tuned.
METHODS: dict[str, tuple[Any, dict[str, float]]] = {
    "plain": (None, {"digits": 0.0, "spirals": 0.0}),
    "error": (px.regularizers.Error(), {"digits": 0.1, "spirals": 0.02}),
    "step cost": (px.regularizers.StepCost(), {"digits": 0.01, "spirals": 0.005}),
    "local": (px.regularizers.Local(), {"digits": 0.1, "spirals": 0.02}),
    "kinetic": (
        px.regularizers.KineticEnergy(normalize="mean"),
        {"digits": 0.02, "spirals": 0.01},
    ),
    "published": (
        px.regularizers.PublishedLocal("biased"),
        {"digits": 1.0, "spirals": 0.2},
    ),
}


class Model(eqx.Module):
    """A field with one hidden layer, which sees time, and a linear classifier."""

    field: eqx.nn.MLP
    last: eqx.nn.Linear

    def __init__(self, size: int, hidden: int, classes: int, key: Any):
        keys = jax.random.split(key)
        self.field = eqx.nn.MLP(size + 1, size, hidden, 1, jnp.tanh, key=keys[0])
        self.last = eqx.nn.Linear(size, classes, key=keys[1])

    def __call__(self, x, penalties, key, *, tolerance, solver=None):
        def field(t, x, args):
            time = jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)
            return jax.vmap(self.field)(jnp.concatenate([x, time], 1))

        sol, record = px.regularizers.solve(
            dfx.ODETerm(field),
            dfx.Tsit5() if solver is None else solver,
            0.0,
            1.0,
            0.1,
            x,
            penalties=penalties,
            key=key,
            stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=512,
        )
        return jax.vmap(self.last)(sol.ys[-1]), record


def make(task: Task, penalty: Any, seed: int) -> tuple:
    """Model, loss and data."""
    (x, y), test = task.load(seed)
    pad = lambda x: np.pad(x, ((0, 0), (0, task.zeros)))
    size, classes = x.shape[1] + task.zeros, int(y.max()) + 1
    model = Model(size, task.hidden, classes, jax.random.key(seed))
    penalties = {} if penalty is None else {"penalty": penalty}

    def loss(model, batch, key, weights):
        logits, record = model(batch[0], penalties, key, tolerance=task.tolerance)
        task_loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        value = task_loss.mean()
        for found in record.penalties.values():
            value = value + weights["penalty"] * found
        return value, {"evaluations": record.evaluations.total.drift}

    return model, loss, (pad(x), y), (pad(test[0]), test[1])
