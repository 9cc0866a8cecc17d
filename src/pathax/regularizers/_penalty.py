"""Kinds of penalties: over all steps, at sampled ones, and along the path."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._step import Step


REDUCTIONS = ("sum", "mean", "max", "time_mean")


class AbstractPenalty(eqx.Module):
    """What can be handed to [`pathax.regularizers.solve`][] under a name."""


class AbstractStepPenalty(AbstractPenalty):
    """A penalty made of one number from each accepted step.

    `of_step` gives that number; `reduction` says how all are put together: their
    `"sum"`, `"mean"`, `"max"`imum, or the sum over the time that was integrated
    (`"time_mean"`).
    """

    reduction: eqx.AbstractVar[str]

    # Whether `of_step` needs `Step.scaled_error`.
    needs_error: ClassVar[bool] = True
    # Whether there is anything to differentiate.
    has_gradient: ClassVar[bool] = True

    @abc.abstractmethod
    def of_step(self, step: Step) -> Array:
        """What one step contributes."""

    def accumulate(self, total: Array, value: Array) -> Array:
        """The total with one more step."""
        if self.reduction == "max":
            return jnp.maximum(total, value)
        return total + value

    def result(self, total: Array, steps: Array, time: Array) -> Array:
        """The penalty, from the total over all steps."""
        if self.reduction == "mean":
            return total / jnp.maximum(steps, 1).astype(total.dtype)
        if self.reduction == "time_mean":
            return total / jnp.where(time > 0, time, 1).astype(total.dtype)
        return total


class AbstractIntegralPenalty(AbstractPenalty):
    r"""A penalty $\int r(t, y, \theta)\,\mathrm dt$ along the path."""

    # Whether `rate` needs a random direction of the shape of the state.
    needs_direction: ClassVar[bool] = False

    @abc.abstractmethod
    def rate(self, field: Any, t: Array, y: PyTree, direction: PyTree) -> Array:
        """What is integrated; `field(t, y)` is the vector field."""

    def direction(self, key: Any, y: PyTree) -> PyTree:
        """A random direction for the whole solve."""
        del key, y
        return None


def check_reduction(reduction: str) -> None:
    """Raise if there is no such reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"`reduction` must be one of {', '.join(map(repr, REDUCTIONS))}; got "
            f"{reduction!r}."
        )
