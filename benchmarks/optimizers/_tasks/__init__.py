"""The problems that optimizers are raced on: small, seeded, with a target each."""

from collections.abc import Callable

from ._characters import characters as characters
from ._convex import (
    log_sum_exp as log_sum_exp,
    logistic as logistic,
    quadratic as quadratic,
    quadratic_matrix as quadratic_matrix,
)
from ._deep_linear import deep_linear as deep_linear
from ._digits import (
    classifier as classifier,
    digits as digits,
    digits_data as digits_data,
    random_images as random_images,
)
from ._fourier import fourier as fourier
from ._poisson import poisson as poisson
from ._spiral import spiral as spiral
from ._task import Task as Task, network as network


_SMOOTH = frozenset({"real", "deterministic"})
_LEAST_SQUARES = frozenset({"real", "deterministic", "layers", "outputs"})
_CLASSES = frozenset({"real", "layers", "outputs"})

# Name in results -> how to build it, and what methods may ask of it: parameters that
# are `real`, or those of instrumented `layers`; a `deterministic` loss; `outputs`
# (residuals, too) of a likelihood; one row of outputs, of `classes`, an example;
# residuals so few that a matrix of all `rows` is small; data so few that their `whole`
# can be a batch.
TASKS: dict[str, tuple[Callable[[], Task], frozenset[str]]] = {
    "logistic 1e-4": (lambda: logistic(1e-4), _SMOOTH),
    "logistic 1e-6": (lambda: logistic(1e-6), _SMOOTH),
    "log-sum-exp": (log_sum_exp, _SMOOTH),
    "quadratic": (quadratic, _SMOOTH),
    "deep-linear": (deep_linear, _LEAST_SQUARES),
    "pinn 1e-3": (lambda: poisson(1e-3), _LEAST_SQUARES | {"rows"}),
    "pinn 1e-5": (lambda: poisson(1e-5), _LEAST_SQUARES | {"rows"}),
    "spiral": (spiral, _LEAST_SQUARES | {"rows"}),
    "digits": (digits, _CLASSES | {"classes", "whole"}),
    "characters": (characters, _CLASSES),
    "fourier": (fourier, frozenset({"outputs"})),
}


def build(name: str) -> Task:
    """The task of a name."""
    return TASKS[name][0]()
