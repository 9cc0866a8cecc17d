"""The tasks that learned equations are compared on."""

from ._classes import DIGITS, DIGITS_SDE, MNIST
from ._series import CLINICAL, CONTROLLED, VOWELS
from ._spirals import SPIRAL_ODE, SPIRAL_SDE
from ._task import Data, Task


TASKS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "clinical": CLINICAL,
    "vowels": VOWELS,
    "spiral ODE": SPIRAL_ODE,
    "spiral SDE": SPIRAL_SDE,
    "digits SDE": DIGITS_SDE,
    "speakers CDE": CONTROLLED,
}

__all__ = ["TASKS", "Data", "Task"]
