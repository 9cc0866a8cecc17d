"""One matrix an axis of a tensor: where the axes are, second moments, products.

A complex leaf is a real tensor with one more axis of two, which gets no matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...curvature._real import from_real, to_real
from ...curvature._tree import wide_dtype


_HIGHEST = jax.lax.Precision.HIGHEST

# One entry an axis; `None` where an axis has no matrix.
Matrices = tuple[Array | None, ...]


@dataclass(frozen=True)
class Fold:
    """A leaf as a tensor: its shape after merging axes, and the axes with a matrix."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    leaf: Any  # shape and dtype of the leaf itself

    @property
    def dtype(self) -> Any:
        """The real dtype of the tensor."""
        return jnp.finfo(wide_dtype(self.leaf.dtype)).dtype

    @property
    def order(self) -> int:
        """The number of axes that are longer than one, 1 at least."""
        return max(1, sum(d > 1 for d in self.shape))

    def tensor(self, leaf: Array) -> Array:
        """The leaf in real coordinates, in single precision at least."""
        real = to_real(leaf.astype(wide_dtype(leaf.dtype)))
        return real.reshape(self.shape + real.shape[leaf.ndim :])

    def back(self, tensor: Array) -> Array:
        """The inverse, in the precision of the tensor."""
        return from_real(
            tensor.reshape(self.leaf.shape + tensor.shape[len(self.shape) :]),
            jax.ShapeDtypeStruct(self.leaf.shape, wide_dtype(self.leaf.dtype)),
        )


def fold(leaf: Any, longest: int, merge: bool, min_order: int) -> Fold:
    """The tensor that a leaf is read as.

    An axis has a matrix if it is longer than one and at most `longest`. With `merge`,
    neighbors become one axis while their product is at most `longest`. Leaves with
    fewer than `min_order` axes longer than one have no matrix.
    """
    shape = tuple(leaf.shape) or (1,)
    shape = _merged(shape, longest) if merge else shape
    axes = tuple(i for i, d in enumerate(shape) if 1 < d <= longest)
    if sum(d > 1 for d in leaf.shape) < min_order:
        axes = ()
    return Fold(shape, axes, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def _merged(shape: Sequence[int], longest: int) -> tuple[int, ...]:
    merged: list[int] = []
    for d in shape:
        if merged and merged[-1] * d <= longest:
            merged[-1] *= d
        else:
            merged.append(d)
    return tuple(merged)


# Tensors ----------------------------------------------------------------------------


def second_moment(tensor: Array, axis: int) -> Array:
    """`G G^T` of the tensor as a matrix whose rows are slices along that axis."""
    others = [i for i in range(tensor.ndim) if i != axis]
    return jnp.tensordot(tensor, tensor, (others, others), precision=_HIGHEST)


def square_sums(tensor: Array, axis: int) -> Array:
    """The diagonal of [`second_moment`][]."""
    return jnp.sum(tensor**2, [i for i in range(tensor.ndim) if i != axis])


def multiply(tensor: Array, matrices: Matrices, transpose: bool = False) -> Array:
    """The product with every matrix, `M` or its transpose, along its own axis.

    A vector stands for a diagonal matrix.
    """
    for axis, matrix in enumerate(matrices):
        if matrix is None:
            continue
        if matrix.ndim == 1:
            shape = [1] * tensor.ndim
            shape[axis] = matrix.size
            tensor = tensor * matrix.reshape(shape)
            continue
        contracted = 0 if transpose else 1
        tensor = jnp.tensordot(
            tensor, matrix, ((axis,), (contracted,)), precision=_HIGHEST
        )
        tensor = jnp.moveaxis(tensor, -1, axis)
    return tensor


def each_axis(fn: Callable[..., Array], *matrices: Matrices) -> Matrices:
    """`fn` of what is there on every axis."""
    rows = zip(*matrices, strict=True)
    return tuple(None if row[0] is None else fn(*row) for row in rows)


# States -----------------------------------------------------------------------------
#
# Trees of the parameters' structure, so that functions of Optax may map over both: an
# axis without a matrix has one of size one by one, which no other axis has. (An empty
# array would do, but checkpoints refuse it.)


def _pack(others: Matrices) -> Any:
    """Matrices of the later axes: one array for one axis, else a tuple."""
    none = jnp.zeros((1, 1), jnp.float32)
    filled = tuple(none if m is None else m for m in others)
    if not filled:
        return none
    return filled[0] if len(filled) == 1 else filled


def _unpack(first: Array, others: Any, fold: Fold) -> Matrices:
    rest = others if isinstance(others, tuple) else (others,)
    matrices = (first, *rest)[: len(fold.shape)]
    return tuple(None if m.shape == (1, 1) else m for m in matrices)


def start(
    params: PyTree,
    plan: Callable[[Any], Fold],
    make: Callable[[Fold, int], Array | None],
) -> tuple[PyTree, PyTree]:
    """Trees like those of [`split`][], from a function of a leaf's fold and an axis."""

    def others(leaf: Any) -> Any:
        found = plan(leaf)
        return _pack(tuple(make(found, axis) for axis in range(1, len(found.shape))))

    first = jax.tree.map(lambda leaf: _pack((make(plan(leaf), 0),)), params)
    return first, jax.tree.map(others, params)


def split(treedef: Any, matrices: list[Matrices]) -> tuple[PyTree, PyTree]:
    """Trees of the first axis' matrices, and of those of the others."""
    left = treedef.unflatten([_pack(m[:1]) for m in matrices])
    return left, treedef.unflatten([_pack(m[1:]) for m in matrices])


def join(treedef: Any, left: PyTree, right: PyTree, folds: list[Fold]) -> list:
    """The inverse of [`split`][]."""
    up_to = treedef.flatten_up_to
    return list(map(_unpack, up_to(left), up_to(right), folds))
