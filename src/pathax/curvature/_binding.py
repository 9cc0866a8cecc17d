"""Functions of all parameters, where a transformation sees some of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree


def bind(fn: Callable[..., Any], full_params: PyTree) -> Callable[..., Any]:
    """Let a function take trees of which parts are masked out.

    `optax.masked` and `optax.multi_transform` put `optax.MaskedNode` where a
    transformation must not look. The bound function fills these from `full_params`, as
    constants: derivatives are those of the other parts.

    **Arguments:**

    - `fn`: a function of the whole tree of parameters, and of anything else.
    - `full_params`: the whole tree.

    **Returns:** a function that takes trees like `full_params` with any parts masked.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> params = {"a": jnp.array(2.0), "b": jnp.array(3.0)}
    >>> loss = px.curvature.bind(lambda p: p["a"] * p["b"], params)
    >>> float(loss({"a": jnp.array(5.0), "b": optax.MaskedNode()}))
    15.0

    ```
    """

    @functools.wraps(fn)
    def bound(params: PyTree, *args: Any, **keywords: Any) -> Any:
        filled = jax.tree.map(
            lambda part, full: full if is_masked(part) else part,
            params,
            full_params,
            is_leaf=is_masked,
        )
        return fn(filled, *args, **keywords)

    return bound


def is_masked(part: Any) -> bool:
    """Whether this part of a tree was masked out."""
    return isinstance(part, optax.MaskedNode)
