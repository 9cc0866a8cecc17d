"""Layers that act on channels alone, the same at every point of a grid."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray


def at_points(layer: Callable[[Array], Array], x: Array) -> Array:
    """A function of channels at every point of `(channels, *grid)`."""
    flat = x.reshape(x.shape[0], -1)
    y = jax.vmap(layer, in_axes=1, out_axes=1)(flat)
    return y.reshape(y.shape[0], *x.shape[1:])


class ChannelMLP(eqx.Module):
    """Two linear layers with an activation between."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        activation: Callable[[Array], Array],
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        k1, k2 = jax.random.split(key)
        self.first = eqx.nn.Linear(inputs, hidden, dtype=dtype, key=k1)
        self.second = eqx.nn.Linear(hidden, outputs, dtype=dtype, key=k2)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        y = self.activation(at_points(self.first, x))
        return at_points(self.second, y)
