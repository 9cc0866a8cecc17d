"""Layers of Equinox with a tap: same parameters, same outputs."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ._taps import Geometry, Window, tapped


# Layers -----------------------------------------------------------------------------


def _fill(layer: Any, original: Any, tap: Any, basis: Any) -> None:
    for field in dataclasses.fields(original):
        setattr(layer, field.name, getattr(original, field.name))
    layer.tap, layer.basis = tap, basis


def _call_conv(layer: Any, x: Array, y: Array) -> Array:
    if layer.tap is None:
        return y
    return tapped(geometry(layer), x[None], y[None], layer.tap, layer.basis)[0]


class TappedLinear(eqx.nn.Linear):
    """`equinox.nn.Linear` with a tap."""

    tap: Any = None
    basis: Any = None

    def __init__(self, original: eqx.nn.Linear, tap: Any = None, basis: Any = None):
        _fill(self, original, tap, basis)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        y = super().__call__(x, key=key)
        if self.tap is None:
            return y
        # One column is what Equinox documents; a layer without bias takes several.
        a, out = x.reshape(1, -1), y.reshape(1, -1)
        if x.ndim > 1:
            a, out = (z.swapaxes(-1, -2).reshape(-1, z.shape[-2]) for z in (x, y))
        out = tapped(geometry(self), a, out, self.tap, self.basis)
        if x.ndim > 1:
            columns = (*y.shape[:-2], y.shape[-1], y.shape[-2])
            return out.reshape(columns).swapaxes(-1, -2)
        return out.reshape(y.shape)


class TappedConv(eqx.nn.Conv):
    """`equinox.nn.Conv` with a tap."""

    tap: Any = None
    basis: Any = None

    def __init__(self, original: eqx.nn.Conv, tap: Any = None, basis: Any = None):
        _fill(self, original, tap, basis)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        return _call_conv(self, x, super().__call__(x, key=key))


class TappedConv1d(eqx.nn.Conv1d):
    """`equinox.nn.Conv1d` with a tap."""

    tap: Any = None
    basis: Any = None

    def __init__(self, original: eqx.nn.Conv1d, tap: Any = None, basis: Any = None):
        _fill(self, original, tap, basis)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        return _call_conv(self, x, super().__call__(x, key=key))


class TappedConv2d(eqx.nn.Conv2d):
    """`equinox.nn.Conv2d` with a tap."""

    tap: Any = None
    basis: Any = None

    def __init__(self, original: eqx.nn.Conv2d, tap: Any = None, basis: Any = None):
        _fill(self, original, tap, basis)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        return _call_conv(self, x, super().__call__(x, key=key))


class TappedConv3d(eqx.nn.Conv3d):
    """`equinox.nn.Conv3d` with a tap."""

    tap: Any = None
    basis: Any = None

    def __init__(self, original: eqx.nn.Conv3d, tap: Any = None, basis: Any = None):
        _fill(self, original, tap, basis)

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        return _call_conv(self, x, super().__call__(x, key=key))


_TAPPED: dict[type, type] = {
    eqx.nn.Linear: TappedLinear,
    eqx.nn.Conv: TappedConv,
    eqx.nn.Conv1d: TappedConv1d,
    eqx.nn.Conv2d: TappedConv2d,
    eqx.nn.Conv3d: TappedConv3d,
}


def is_tapped(node: Any) -> bool:
    """Whether this is a layer with a place for a tap."""
    return type(node) in _TAPPED.values()


def layer_ndim(layer: Any) -> int:
    """How many axes of the weight belong to one layer; others in front stack layers."""
    return 2 + getattr(layer, "num_spatial_dims", 0)


def geometry(layer: Any) -> Geometry:
    """The sizes of a layer with a tap, from its weight."""
    ndim = layer_ndim(layer)
    out, *inside = layer.weight.shape[-ndim:]
    size = math.prod(inside)
    if isinstance(layer, TappedLinear):
        return Geometry(size, out, 1, None)
    padding = layer.padding
    window = Window(
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=padding if isinstance(padding, str) else tuple(map(tuple, padding)),
        dilation=layer.dilation,
        mode=layer.padding_mode,
    )
    return Geometry(size, out // layer.groups, layer.groups, window)


# Models -----------------------------------------------------------------------------


def instrument(model: PyTree) -> PyTree:
    """Give every linear and convolutional layer of a model a tap.

    A tap is an input that the layer ignores, and whose cotangent is sums over the
    layer's inputs and output cotangents; [`pathax.curvature.kron.value_and_grad`][]
    fills it. In the model that is returned all taps are `None`: it has the same
    parameters, leaves and outputs as before, and costs the same.

    Replaced are instances of `equinox.nn.Linear`, `Conv`, `Conv1d`, `Conv2d` and
    `Conv3d` (their subclasses of other origin are left alone), wherever they are in the
    tree: in a `MultiheadAttention`, shared by `equinox.nn.Shared`, or many stacked in
    one by `equinox.filter_vmap`. Recurrent cells of Equinox hold plain arrays instead
    of layers, and transposed convolutions, embeddings and norms have no such factors.

    **Arguments:**

    - `model`: any tree.

    **Returns:** the model with these layers replaced by subclasses of theirs.

    **Raises:** `ValueError` if there is no such layer.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import pathax as px
    >>> model = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> isinstance(model.layers[0], eqx.nn.Linear)
    True
    >>> [layer.weight_path for layer in px.curvature.kron.layers(model)]
    ['layers.0.weight', 'layers.1.weight']

    ```
    """
    found = 0

    def replace(node: Any) -> Any:
        nonlocal found
        found += type(node) in _TAPPED or is_tapped(node)
        return _TAPPED[type(node)](node) if type(node) in _TAPPED else node

    def is_layer(node: Any) -> bool:
        return type(node) in _TAPPED or is_tapped(node)

    model = jax.tree.map(replace, model, is_leaf=is_layer)
    if not found:
        raise ValueError(
            "there is no equinox.nn.Linear or equinox.nn.Conv in this model; for a "
            "model of another library compute the statistics yourself, see "
            "pathax.curvature.kron.LayerStats"
        )
    return model
