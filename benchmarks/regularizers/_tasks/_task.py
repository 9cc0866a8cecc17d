"""What a task of learning a differential equation consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import numpy as np


class Data(NamedTuple):
    """Parts of the data, each a tuple of arrays along an axis of examples."""

    train: tuple
    validation: tuple
    test: tuple


class Task(NamedTuple):
    """Data, a model and how its equation is solved.

    `predict(model, batch, key, run)` gives a prediction and the record of the solve,
    where `run(terms, y0, end, ts, key)` solves, as one equation, a whole batch.
    `score(prediction, batch)` is the part of examples that are right, or else the part
    of the variance that is explained: one at best. `scale` multiplies the weights of
    penalties. `published` says which rows of the published tables go with the task.
    """

    load: Callable[[int], Data]
    model: Callable[[Any], Any]
    predict: Callable[..., tuple]
    loss: Callable[..., Any]
    score: Callable[..., Any]
    tolerance: float
    batch: int = 32
    learning_rate: float = 4e-3
    scale: float = 1.0
    double: bool = True
    noisy: bool = False
    chunk: int = 512
    max_steps: int = 128
    first: float = 0.1
    right: bool = True
    packages: tuple[str, ...] = ()

    @property
    def solver(self) -> Any:
        """What a task is trained with."""
        return dfx.SPaRK() if self.noisy else dfx.Tsit5()

    @property
    def other(self) -> Any:
        """What the trained equation is solved with for comparison."""
        return dfx.Heun() if self.noisy else dfx.Dopri5()

    def controller(self, tolerance: float) -> Any:
        """Of step sizes; that of a stochastic equation has gains that suit it."""
        gains: dict[str, Any] = (
            {"pcoeff": 0.1, "icoeff": 0.3, "dtmin": 2.0**-9} if self.noisy else {}
        )
        return dfx.PIDController(rtol=tolerance, atol=tolerance, **gains)

    @property
    def dtype(self) -> Any:
        """Of data, parameters and states."""
        return np.float64 if self.double else np.float32


def parts(arrays: tuple, first: int, second: int, end: int | None = None) -> Data:
    """Cut into training, validation and test data."""
    cut = lambda a, b: tuple(x[a:b] for x in arrays)
    return Data(cut(0, first), cut(first, second), cut(second, end))


def explained(prediction: Any, target: Any, mask: Any = None) -> Any:
    """Part of the variance explained, all components together."""
    weight = jax.numpy.ones_like(target) if mask is None else mask
    mean = (weight * target).sum() / weight.sum()
    left = (weight * (prediction - target) ** 2).sum()
    return 1 - left / (weight * (target - mean) ** 2).sum()
