"""Which parameters form a layer, and how they are laid out as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._binding import is_masked
from ._instrument import TappedLinear, is_tapped, layer_ndim


@dataclass(frozen=True)
class LayerSpec:
    """Where a layer's weight and bias are in a tree of parameters, and their layout.

    `W a + b` for each of the layer's inputs `a`. Paths are the names on the way to a
    leaf with points between, `"layers.0.weight"` or `"dense.kernel"`, as written by
    `jax.tree_util.keystr(path, simple=True, separator=".")`.

    **Attributes:**

    - `weight_path`: path of the weight.
    - `bias_path`: path of the bias, or `None`.
    - `kind`: `"linear"` or `"conv"`.
    - `layout`: `"out_in"` for weights of shape (out, in, *kernel), as in Equinox;
      `"in_out"` for (*kernel, in, out), as in Flax. Inputs of a convolution are ordered
      (in, *kernel) in both.
    - `groups`: of a convolution; each has factors of its own.
    - `ndim`: how many of the weight's axes, the last ones, are of one layer; axes in
      front of them stack layers. `None` for all.
    """

    weight_path: str
    bias_path: str | None = None
    kind: str = "linear"
    layout: str = "out_in"
    groups: int = 1
    ndim: int | None = None

    def __post_init__(self):
        for name, value, choices in (
            ("kind", self.kind, ("linear", "conv")),
            ("layout", self.layout, ("out_in", "in_out")),
        ):
            if value not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"`{name}` must be one of {listed}; got {value!r}")


# Search -----------------------------------------------------------------------------


def _is_weight(leaf: Any) -> bool:
    if is_masked(leaf):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def path_name(path: Any) -> str:
    """A path as one writes it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _spec(path: Any, layer: Any) -> LayerSpec:
    name = path_name(path)
    prefix = f"{name}." if name else ""
    return LayerSpec(
        weight_path=f"{prefix}weight",
        bias_path=None if layer.bias is None else f"{prefix}bias",
        kind="linear" if isinstance(layer, TappedLinear) else "conv",
        groups=getattr(layer, "groups", 1),
        ndim=layer_ndim(layer),
    )


def find_layers(tree: PyTree) -> list[tuple[LayerSpec, Any]]:
    """The layers with a tap whose weight is a real parameter, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_tapped)
    return [
        (_spec(path, node), node)
        for path, node in leaves
        if is_tapped(node) and _is_weight(node.weight)
    ]


def layers(tree: PyTree) -> tuple[LayerSpec, ...]:
    """The layers of an instrumented model that statistics are gathered for.

    **Arguments:**

    - `tree`: a model from [`pathax.curvature.kron.instrument`][], or its parameters,
      `equinox.filter(model, equinox.is_inexact_array)`, or any tree with such in it.

    **Returns:** a [`pathax.curvature.kron.LayerSpec`][] for each layer, in the tree's
    order. Layers whose weight is `None` or not real are left out; those whose weight is
    masked (`optax.MaskedNode`) stay, so that statistics still go with them.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import pathax as px
    >>> model = {"a": eqx.nn.Conv1d(1, 2, 3, key=jax.random.key(0))}
    >>> px.curvature.kron.layers(px.curvature.kron.instrument(model))[0].bias_path
    'a.bias'

    ```
    """
    return tuple(spec for spec, _ in find_layers(tree))


# Matrices ---------------------------------------------------------------------------


def weight_matrix(spec: LayerSpec, weight: Array) -> Array:
    """A weight as `(*stack, out, in)`, or `(*stack, groups, out, in)` of one group."""
    ndim = weight.ndim if spec.ndim is None else spec.ndim
    lead, shape = weight.shape[: weight.ndim - ndim], weight.shape[weight.ndim - ndim :]
    if spec.layout == "in_out":
        order = _to_out_in(ndim)
        shape = tuple(shape[i] for i in order)
        start = len(lead)
        weight = weight.transpose(*range(start), *(start + i for i in order))
    groups = () if spec.groups == 1 else (spec.groups,)
    return weight.reshape(*lead, *groups, shape[0] // spec.groups, -1)


def _to_out_in(ndim: int) -> tuple[int, ...]:
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def weight_from_matrix(spec: LayerSpec, matrix: Array, like: Any) -> Array:
    """The inverse of [`weight_matrix`][], with the shape of `like`."""
    if spec.layout == "out_in":
        return matrix.reshape(like.shape)
    ndim = like.ndim if spec.ndim is None else spec.ndim
    start, order = like.ndim - ndim, _to_out_in(ndim)
    shape = (like.shape[start + i] for i in order)
    matrix = matrix.reshape(*like.shape[:start], *shape)
    back = (start + order.index(i) for i in range(ndim))
    return matrix.transpose(*range(start), *back)


def choose(found: Sequence[LayerSpec], wanted: Sequence[LayerSpec] | None) -> list[int]:
    """Positions in `found` of the wanted layers, by the path of their weights."""
    if wanted is None:
        return list(range(len(found)))
    paths = [spec.weight_path for spec in found]
    missing = [s.weight_path for s in wanted if s.weight_path not in paths]
    if missing:
        raise ValueError(
            f"there is no instrumented layer with a weight at {', '.join(missing)}; "
            f"there are {', '.join(paths) or 'none'}"
        )
    return [paths.index(spec.weight_path) for spec in wanted]
