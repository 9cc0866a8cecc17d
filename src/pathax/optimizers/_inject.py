"""Hyperparameters in the state, where some arguments must stay Python values."""

from collections.abc import Callable
from typing import Any, TypeVar

import optax


_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def static_args(*names: str) -> Callable[[_Factory], _Factory]:
    """Mark the arguments of a factory that are shapes, choices or functions."""

    def mark(factory: _Factory) -> _Factory:
        setattr(factory, "static_args", names)  # noqa: B010 - a function's own field
        return factory

    return mark


def inject(factory: Callable[..., Any], **keywords: Any) -> Callable[..., Any]:
    """`optax.inject_hyperparams` that keeps shapes, choices and functions static.

    Optax turns every numeric argument into an array in the state, and every callable
    one into a schedule. A window length or a rank must stay a Python number.

    **Arguments:**

    - `factory`: a function that makes a transformation, of this library or any other;
      ours list what must stay static in their `static_args` attribute.
    - `keywords`: passed to `optax.inject_hyperparams`.

    **Returns:** the factory, making transformations whose numeric hyperparameters live
    in `state.hyperparams`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.inject(px.optimizers.mfac)(learning_rate=0.1, window=4)
    >>> state = tx.init(jnp.zeros(3))
    >>> float(state.hyperparams["learning_rate"])
    0.1

    ```
    """
    static = (*getattr(factory, "static_args", ()), *keywords.pop("static_args", ()))
    return optax.inject_hyperparams(factory, static_args=static, **keywords)
