"""Optimizers of other libraries, where these are installed."""

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

from .._case import SkippedError
from ._methods import Method
from ._tasks import Task


def _somax() -> Any:
    """The library, of the distribution `python-somax`; another one has its name."""
    if find_spec("somax") is None or find_spec("somax.executor") is None:
        raise SkippedError("needs `pip install python-somax`")
    import somax

    return somax


def _with_hessian(name: str, **options):
    """A method that takes the loss."""

    def make(rate: Any, own: Any, task: Task) -> Any:
        del own
        loss = lambda params, batch: task.loss(params, batch["x"])
        return getattr(_somax(), name)(loss_fn=loss, learning_rate=rate, **options)

    return make


def _with_outputs(name: str, **options):
    """A method that takes the outputs of a classifier."""

    def make(rate: Any, own: Any, task: Task) -> Any:
        del own
        predict = task.predict
        return getattr(_somax(), name)(
            predict_fn=predict, learning_rate=rate, **options
        )

    return make


def _with_residual(name: str, **options):
    """A method for least squares; residuals are outputs that should be zero."""

    def make(rate: Any, own: Any, task: Task) -> Any:
        del own
        predict = task.residual
        return getattr(_somax(), name)(
            predict_fn=predict, learning_rate=rate, **options
        )

    return make


def _step(tx: Any, task: Task, params: Any, state: Any, batch: Any, key: jax.Array):
    """Its own step, which computes gradients and applies updates too."""
    if task.labels is not None:
        y = task.labels(batch)
    elif task.residual is not None:
        y = jnp.zeros(jax.eval_shape(task.residual, params, batch).shape)
    else:
        y = jnp.zeros(())
    params, state, _ = tx.step(params, {"x": batch, "y": y}, state, key)
    return params, state


def _peer(name: str, make: Any, *needs: str) -> Method:
    return Method(
        f"somax {name}",
        make,
        "peer",
        needs=frozenset(needs),
        step=_step,
        packages=("python-somax",),
    )


_ALL = (
    _peer("adahessian", _with_hessian("adahessian", eps=1e-4, use_abs=True), "real"),
    _peer("sophia_h", _with_hessian("sophia_h", weight_decay=0.0), "real"),
    _peer("sophia_g", _with_outputs("sophia_g", weight_decay=0.0), "classes"),
    _peer("newton_cg", _with_hessian("newton_cg", lam0=1e-3), "real", "deterministic"),
    _peer("egn_mse", _with_residual("egn_mse", lam0=1e-3), "rows"),
)

PEERS: dict[str, Method] = {method.name: method for method in _ALL}
