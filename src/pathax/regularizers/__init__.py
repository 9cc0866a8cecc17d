"""Regularizers: learned equations that are cheap to solve.

[`pathax.regularizers.solve`][] solves as `diffrax.diffeqsolve` does and returns
penalties of how hard it was, which a loss adds up.
"""

from ._cost import StepCost as StepCost, StepCount as StepCount
from ._error import Error as Error
from ._kinetic import JacobianNorm as JacobianNorm, KineticEnergy as KineticEnergy
from ._local import Local as Local, PublishedLocal as PublishedLocal
from ._solve import Record as Record, solve as solve
from ._steer import steer_end as steer_end, steer_times as steer_times
from ._step import Tolerances as Tolerances
from ._stiffness import Stiffness as Stiffness
from ._taylor import (
    TaylorDerivative as TaylorDerivative,
    total_derivative as total_derivative,
)
from ._weights import DualAscent as DualAscent, gradient_ratio as gradient_ratio


__all__ = [
    "DualAscent",
    "Error",
    "JacobianNorm",
    "KineticEnergy",
    "Local",
    "PublishedLocal",
    "Record",
    "StepCost",
    "StepCount",
    "Stiffness",
    "TaylorDerivative",
    "Tolerances",
    "gradient_ratio",
    "solve",
    "steer_end",
    "steer_times",
    "total_derivative",
]
