"""Training: one loop for every model and every Optax transformation.

`fit` is the whole; its parts (`train_step`, `Batches`, `Checkpoints`, `JSONLines`,
`EarlyStopping`) can be used in a loop of your own.
"""

from ._checkpoints import Checkpoints as Checkpoints
from ._data import AbstractSource as AbstractSource, Batches as Batches
from ._fit import FitResult as FitResult, fit as fit
from ._metrics import EarlyStopping as EarlyStopping, JSONLines as JSONLines
from ._step import (
    TrainState as TrainState,
    init_state as init_state,
    train_step as train_step,
)


__all__ = [
    "AbstractSource",
    "Batches",
    "Checkpoints",
    "EarlyStopping",
    "FitResult",
    "JSONLines",
    "TrainState",
    "fit",
    "init_state",
    "train_step",
]
