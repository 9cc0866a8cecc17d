"""What is added to the loss, and how an equation is then solved in training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp

import pathax as px

from ._tasks import Task


_R = px.regularizers


class Method(NamedTuple):
    """Penalties, given the task, and the weights to choose from.

    `kind` is `"penalty"`, `"times"` where the weight is that of random times, or
    `"decay"` where it is of the squares of all parameters.
    """

    penalties: Callable[[Task], dict[str, Any]]
    weights: tuple[float, ...]
    kind: str = "penalty"


def _published(mode: str) -> Callable[[Task], dict[str, Any]]:
    def make(task: Task) -> dict[str, Any]:
        # The search for a first step is one for equations without noise.
        return {"r": _R.PublishedLocal(mode, size=0.1 if task.noisy else None)}

    return make


def _nothing(task: Task) -> dict[str, Any]:
    del task
    return {}


def _rnode(task: Task) -> dict[str, Any]:
    del task
    return {
        "k": _R.KineticEnergy(normalize="mean"),
        "j": _R.JacobianNorm(normalize="mean"),
    }


# Half powers of ten, around where a penalty is about a tenth of the loss.
METHODS = {
    "plain": Method(_nothing, (0.0,)),
    "step cost": Method(lambda _: {"r": _R.StepCost()}, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "local": Method(lambda _: {"r": _R.Local()}, (0.03, 0.1, 0.3, 1.0, 3.0)),
    "local, by steps": Method(
        lambda _: {"r": _R.Local(sampling="step")}, (0.03, 0.1, 0.3, 1.0, 3.0)
    ),
    "error": Method(lambda _: {"r": _R.Error()}, (0.03, 0.1, 0.3, 1.0, 3.0)),
    "stiffness": Method(lambda _: {"r": _R.Stiffness()}, (0.003, 0.01, 0.03, 0.1, 0.3)),
    "published unbiased": Method(_published("unbiased"), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "published biased": Method(_published("biased"), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "steer": Method(_nothing, (0.1, 0.25, 0.5, 0.75, 0.9), "times"),
    "taynode": Method(
        lambda _: {"r": _R.TaylorDerivative(2)}, (0.01, 0.03, 0.1, 0.3, 1.0)
    ),
    "rnode": Method(_rnode, (0.01, 0.03, 0.1, 0.3, 1.0)),
    "weight decay": Method(_nothing, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "decay"),
}


def weights_of(task: Task, method: str, count: int) -> tuple[float, ...]:
    """The weights that a method chooses from, all or those in the middle.

    A width of times has no scale.
    """
    how = METHODS[method]
    scale = 1.0 if how.kind == "times" else task.scale
    skip = max(len(how.weights) - count, 0) // 2
    return tuple(scale * weight for weight in how.weights[skip : skip + count])


class Run(NamedTuple):
    """Solves an equation as a task does; `width` is that of random times.

    With a list for `steps`, the times of all steps go there instead of the solution.
    """

    task: Task
    penalties: dict[str, Any] | None
    width: Any = None
    tolerance: float = 1.0
    solver: Any = None
    training: bool = False
    steps: list | None = None

    def __call__(
        self, terms: Any, y0: Any, *, key: Any, end: float = 1.0, ts: Any = None
    ) -> tuple:
        """The solution, at the end or at times, and the record.

        With `penalties=None` Diffrax solves alone, and there is no record.
        """
        task = self.task
        if self.width is not None:
            own, key = jax.random.split(key)
            if ts is None:
                end = end * (1 + self.width * jax.random.uniform(own, minval=-1.0))
            else:
                ts = ts + self.width * (_R.steer_times(own, ts) - ts)
        saveat = dfx.SaveAt(t1=True) if ts is None else dfx.SaveAt(ts=ts)
        if self.steps is not None:
            saveat = dfx.SaveAt(t0=True, steps=True)
        position = (
            terms,
            task.solver if self.solver is None else self.solver,
            jnp.zeros((), y0.dtype),
            jnp.asarray(end, y0.dtype),
            jnp.asarray(task.first, y0.dtype),
            y0,
        )
        options: dict[str, Any] = {
            "saveat": saveat,
            "stepsize_controller": task.controller(task.tolerance * self.tolerance),
            "max_steps": task.max_steps,
            "throw": False,
        }
        if self.penalties is None:
            sol, record = dfx.diffeqsolve(*position, **options), None
        else:
            penalties = self.penalties
            sol, record = _R.solve(*position, penalties=penalties, key=key, **options)
        if self.steps is not None:
            self.steps.append(sol.ts)
        return sol, record


def loss_of(task: Task, method: str) -> Any:
    """The loss of a method, whose weight is that of the penalty."""
    how = METHODS[method]
    penalties = how.penalties(task)

    def loss(model, batch, key, weights):
        weight = weights["penalty"]
        width = weight if how.kind == "times" else None
        run = Run(task, penalties, width, training=True)
        found, record = task.predict(model, batch, key, run)
        value = task.loss(found, batch)
        for penalty in record.penalties.values():
            value = value + weight * penalty
        if how.kind == "decay":
            squares = [jnp.sum(x**2) for x in jax.tree.leaves(model) if _inexact(x)]
            value = value + weight * sum(squares)
        return value, {"evaluations": record.evaluations.total.drift}

    return loss


def _inexact(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
