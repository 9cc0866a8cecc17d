"""Diffrax solvers: how often they evaluate the terms of an equation."""

from ._counting import (
    Counted as Counted,
    EvaluationCounts as EvaluationCounts,
    counting as counting,
    evaluations as evaluations,
)
from ._evaluations import Evaluations as Evaluations
from ._log_ode import LogODE as LogODE
from ._no_skip import DyadicController as DyadicController


__all__ = [
    "Counted",
    "DyadicController",
    "EvaluationCounts",
    "Evaluations",
    "LogODE",
    "counting",
    "evaluations",
]
