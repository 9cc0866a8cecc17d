"""Diffrax solvers and controllers, and how often they evaluate an equation's terms."""

from ._cir import CIR as CIR
from ._cir_controller import CIRController as CIRController
from ._counting import (
    Counted as Counted,
    EvaluationCounts as EvaluationCounts,
    counting as counting,
    evaluations as evaluations,
)
from ._drift_implicit_euler import DriftImplicitEuler as DriftImplicitEuler
from ._evaluations import Evaluations as Evaluations
from ._exponential_euler import ExponentialEuler as ExponentialEuler
from ._hosts import HOStS as HOStS
from ._log_ode import LogODE as LogODE
from ._no_skip import DyadicController as DyadicController
from ._quicsort import QUICSORT as QUICSORT
from ._should import ShOULD as ShOULD
from ._sriw1 import SRIW1 as SRIW1
from ._ubu import UBU as UBU


__all__ = [  # noqa: RUF022  (plain order)
    "CIR",
    "CIRController",
    "Counted",
    "DriftImplicitEuler",
    "DyadicController",
    "EvaluationCounts",
    "Evaluations",
    "ExponentialEuler",
    "HOStS",
    "LogODE",
    "QUICSORT",
    "SRIW1",
    "ShOULD",
    "UBU",
    "counting",
    "evaluations",
]
