"""Averages over blocks of a parameter: the kernel of a convolution, a matrix's row."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._binding import is_masked


# What is averaged over in one leaf: nothing, these axes, or runs of this length.
Block = tuple[int, ...] | int | None


def check_layout(layout: str) -> str:
    """The layout, if there is one of that name."""
    if layout not in ("out_in", "in_out"):
        raise ValueError(
            "`layout` must be 'out_in' (Equinox: (out, in, *kernel)) or 'in_out' "
            f"(Flax: (*kernel, in, out)); got {layout!r}"
        )
    return layout


def _auto(ndim: int, layout: str) -> tuple[int, ...]:
    if ndim <= 1:
        return ()
    if ndim == 2:
        return (1,) if layout == "out_in" else (0,)
    return tuple(range(2, ndim) if layout == "out_in" else range(ndim - 2))


def block_axes(params: PyTree, layout: str = "out_in") -> PyTree:
    """The axes to average curvature over, for each parameter by its shape.

    A vector keeps its entries apart. A matrix is averaged over its input axis, and the
    weight of a convolution (three axes or more) over its kernel axes.

    **Arguments:**

    - `params`: a tree of arrays.
    - `layout`: `"out_in"` for weights of shape `(out, in, *kernel)`, as in Equinox, or
      `"in_out"` for `(*kernel, in, out)`, as in Flax and Haiku. The wrong one averages
      over outputs, and no error tells.

    **Returns:** a tree like `params` with a tuple of axes in place of each array.
    Change any of them, to `None` for no average or to a number for runs of that length,
    and give the tree to `block_average=` of [`pathax.optimizers.adahessian`][].

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> params = {"bias": jnp.ones(4), "conv": jnp.ones((4, 3, 5, 5))}
    >>> px.curvature.block_axes(params)
    {'bias': (), 'conv': (2, 3)}

    ```
    """
    check_layout(layout)
    return jax.tree.map(lambda p: _auto(p.ndim, layout), params)


def _check_block(block: Any, ndim: int) -> Block:
    if block is None or isinstance(block, int):
        return block
    if not isinstance(block, tuple) or any(not -ndim <= a < ndim for a in block):
        raise ValueError(
            "a block must be a tuple of axes, the length of runs, or None; "
            f"got {block!r} for an array with {ndim} axes"
        )
    return tuple(sorted({a % ndim for a in block}))


def leaf_blocks(params: PyTree, blocks: Any, layout: str) -> list[Block]:
    """One entry a leaf of `params`: axes, the length of runs, or None."""
    check_layout(layout)
    if isinstance(blocks, str) and blocks != "auto":
        raise ValueError(
            "blocks must be 'auto', None, the length of runs, or a tree of axes; "
            f"got {blocks!r}"
        )
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_masked)
    seen = [leaf for leaf in leaves if not is_masked(leaf)]
    if blocks is None:
        return [None] * len(seen)
    if isinstance(blocks, str):
        return [_auto(leaf.ndim, layout) for leaf in seen]
    if isinstance(blocks, int):
        # Entries of a vector mean different things, so a global length skips them.
        return [blocks if leaf.ndim >= 2 else None for leaf in seen]
    if not seen:  # a placeholder, which stands for any tree
        return []
    given = treedef.flatten_up_to(blocks)
    pairs = [(g, p) for g, p in zip(given, leaves, strict=True) if not is_masked(p)]
    return [_check_block(block, leaf.ndim) for block, leaf in pairs]


def _runs(x: Array, length: int, layout: str) -> Array:
    """Means over runs of so many entries; the last run may be shorter."""
    if length < 1:
        raise ValueError(f"blocks must have at least one entry; got {length}")
    # Runs follow the input and kernel axes of each output, in either layout.
    if layout == "in_out" and x.ndim >= 2:
        kernel = tuple(range(x.ndim - 2))
        order = (x.ndim - 1, x.ndim - 2, *kernel)
        back = tuple(order.index(a) for a in range(x.ndim))
        turned = jnp.transpose(x, order)
        return jnp.transpose(_runs(turned, length, "out_in"), back)
    total = x.size
    number = -(-total // length)
    padded = jnp.pad(x.reshape(-1), (0, number * length - total))
    sizes = jnp.full(number, length, x.real.dtype)
    sizes = sizes.at[-1].set(total - (number - 1) * length)
    means = jnp.sum(padded.reshape(number, length), axis=1) / sizes
    return jnp.repeat(means, length)[:total].reshape(x.shape)


def average_leaf(x: Array, block: Block, layout: str) -> Array:
    """The leaf averaged over its blocks; averaged axes have length one."""
    if block is None or block == () or x.size == 0:
        return x
    if isinstance(block, int):
        return _runs(x, block, layout)
    return jnp.mean(x, axis=block, keepdims=True)


def block_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """The shape of what `average_leaf` returns."""
    if block is None or isinstance(block, int) or 0 in shape:
        return shape
    return tuple(1 if axis in block else n for axis, n in enumerate(shape))


def block_average(
    tree: PyTree,
    blocks: Any = "auto",
    *,
    layout: str = "out_in",
    broadcast: bool = True,
) -> PyTree:
    """Average the entries of each leaf over blocks.

    **Arguments:**

    - `tree`: a tree of arrays, such as a Hessian's diagonal.
    - `blocks`: `"auto"` for [`pathax.curvature.block_axes`][]; a number for runs of
      that many entries of each leaf with two axes or more, in the order
      `(out, in, *kernel)`, the last run being shorter if need be; `None` for no
      average; or a tree like `tree` with a tuple of axes, a number or `None` in place
      of each array.
    - `layout`: `"out_in"` or `"in_out"`, the order of a weight's axes.
    - `broadcast`: whether averages are repeated to the shape of the leaf; else averaged
      axes have length one.

    **Returns:** a tree like `tree`.

    **Reference:** Yao et al., "AdaHessian: an adaptive second order optimizer for
    machine learning", arXiv:2006.00719 (spatial averaging).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> px.curvature.block_average(jnp.array([[1.0, 3.0], [2.0, 6.0]]))
    Array([[2., 2.],
           [4., 4.]], dtype=float32)

    ```
    """
    leaves, treedef = jax.tree.flatten(tree)
    found = leaf_blocks(tree, blocks, layout)
    out = [average_leaf(x, b, layout) for x, b in zip(leaves, found, strict=True)]
    if broadcast:
        out = [jnp.broadcast_to(y, x.shape) for y, x in zip(out, leaves, strict=True)]
    return treedef.unflatten(out)
