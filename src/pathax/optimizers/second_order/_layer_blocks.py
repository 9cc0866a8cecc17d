"""Weights and biases of layers as one matrix each, out of trees and back into them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...curvature import kron
from ...curvature._binding import is_masked
from ...curvature._tree import wide_dtype
from ...curvature.kron._layers import path_name, weight_from_matrix, weight_matrix
from .._extras import require


class Block(NamedTuple):
    """One layer: where its leaves are, and the shape of its matrix."""

    spec: kron.LayerSpec
    weight: int
    bias: int | None
    shape: tuple[int, ...]  # (*stack, [groups,] out, in), a bias as the last input
    dtype: Any

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes of layers in a stack, and of groups, that have factors of their own."""
        return self.shape[:-2]

    def identity(self, side: int, dtype: Any) -> Array:
        """Identities of the size of the outputs (-2) or of the inputs (-1)."""
        size = self.shape[side]
        return jnp.broadcast_to(jnp.eye(size, dtype=dtype), (*self.lead, size, size))

    def axes(self) -> tuple[int, ...]:
        """Axes of one layer's matrix: those of all its groups."""
        return tuple(range(-2 - (self.spec.groups > 1), 0))


def _find(paths: Mapping[str, int], path: str, transform: str) -> int:
    if path not in paths:
        listed = ", ".join(list(paths)[:8])
        raise ValueError(
            f"{transform} was told of a layer with a parameter {path!r}, which is not "
            f"in the tree; its paths are {listed}{', ...' if len(paths) > 8 else ''}"
        )
    return paths[path]


def _block(
    spec: kron.LayerSpec, paths: Mapping[str, int], leaves: list, transform: str
) -> Block | None:
    weight = _find(paths, spec.weight_path, transform)
    if is_masked(leaves[weight]):
        return None
    if not jnp.issubdtype(leaves[weight].dtype, jnp.floating):
        raise TypeError(
            f"{transform} needs real weights; {spec.weight_path} is of dtype "
            f"{leaves[weight].dtype}"
        )
    bias = None
    if spec.bias_path is not None:
        bias = paths.get(spec.bias_path)  # `None` if it is not trained
        bias = None if bias is None or is_masked(leaves[bias]) else bias
    matrix = jax.eval_shape(lambda w: weight_matrix(spec, w), leaves[weight])
    *lead, rows, columns = matrix.shape
    shape = (*lead, rows, columns + (bias is not None))
    return Block(spec, weight, bias, shape, wide_dtype(leaves[weight].dtype))


class Blocks:
    """The layers of a tree of parameters or of gradients.

    A layer whose weight is masked has no block. A bias that is masked or not trained is
    no part of its matrix.
    """

    def __init__(
        self, tree: PyTree, layers: Sequence[kron.LayerSpec] | None, transform: str
    ):
        pairs, self._treedef = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=is_masked
        )
        self._leaves = [leaf for _, leaf in pairs]
        paths = {path_name(path): at for at, (path, _) in enumerate(pairs)}
        specs = kron.layers(tree) if layers is None else layers
        if not specs:
            raise ValueError(
                f"{transform} found no layers; write model = "
                "pathax.curvature.kron.instrument(model) before taking its parameters, "
                "or give `layers`, a tuple of pathax.curvature.kron.LayerSpec"
            )
        self.all = [_block(spec, paths, self._leaves, transform) for spec in specs]

    def map(self, fn: Any, *others: Sequence[Any]) -> list[Any]:
        """`fn` of every block and the entries that go with it; `None` without one."""
        rows = zip(self.all, *others, strict=True)
        return [None if row[0] is None else fn(*row) for row in rows]

    def matrices(self) -> list[Any]:
        """The matrix of each block, the bias as its last column."""

        def gather(block: Block) -> Array:
            matrix = weight_matrix(block.spec, self._leaves[block.weight])
            matrix = matrix.astype(block.dtype)
            if block.bias is None:
                return matrix
            bias = self._leaves[block.bias].astype(block.dtype)
            column = bias.reshape(*matrix.shape[:-1], 1)
            return jnp.concatenate([matrix, column], axis=-1)

        return self.map(gather)

    def replaced(self, matrices: Sequence[Any]) -> PyTree:
        """The tree with these matrices for its own, and other leaves as they are."""
        leaves = list(self._leaves)
        for block, matrix in zip(self.all, matrices, strict=True):
            if block is None:
                continue
            weight, inputs = leaves[block.weight], matrix
            if block.bias is not None:
                bias = leaves[block.bias]
                column = matrix[..., -1].reshape(bias.shape)
                leaves[block.bias] = column.astype(bias.dtype)
                inputs = matrix[..., :-1]
            new = weight_from_matrix(block.spec, inputs, weight)
            leaves[block.weight] = new.astype(weight.dtype)
        return self._treedef.unflatten(leaves)


# Statistics -------------------------------------------------------------------------


def read_stats(
    extra: Mapping[str, Any], blocks: Blocks, transform: str
) -> Sequence[kron.LayerStats]:
    """The extra `kron`, called if it is a function, with an entry a layer."""
    given: Any = require(extra, "kron", transform)
    stats: Any = given() if callable(given) else given
    if len(stats) != len(blocks.all):
        raise ValueError(
            f"{transform} has {len(blocks.all)} layers; `kron` has {len(stats)} "
            "entries. Gather them with the same `layers`"
        )
    return stats


def trim(block: Block, stat: Any, axes: int) -> Array:
    """A statistic of inputs without the entries of a bias that is not in the matrix.

    `axes` is how many of its last axes are inputs.
    """
    size = block.shape[-1]
    stat = jnp.asarray(stat).astype(block.dtype)
    if stat.shape[-1] == size + 1:
        stat = stat[..., :-1] if axes == 1 else stat[..., :-1, :-1]
    check_shape(block, stat, (*block.lead, *(size,) * axes), "inputs")
    return stat


def check_shape(block: Block, stat: Array, shape: tuple[int, ...], what: str) -> None:
    """An error if a statistic is not one of this layer."""
    if stat.shape != shape:
        raise ValueError(
            f"the statistic of the {what} of layer {block.spec.weight_path} must have "
            f"shape {shape}; got {stat.shape}"
        )
