"""One gradient an example, which an empirical Fisher matrix is made of."""

from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree

from ._real import from_real
from ._tree import in_real


def empirical_fisher_rows(
    loss_per_example: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    *,
    chunk: int | None = None,
) -> PyTree:
    """The gradient of every example's loss, `G`; its Fisher matrix is `G^T G / B`.

    **Arguments:**

    - `loss_per_example`: `loss_per_example(params, example)`, a real scalar.
    - `params`: where gradients are taken.
    - `batch`: a tree of arrays with a leading axis `B`; an example is a slice of it.
    - `chunk`: take so many examples at a time, which bounds the memory of activations
      (the rows themselves are `B` times the parameters). `None` takes all at once.

    **Returns:** a tree like `params` with a leading axis `B`. A complex leaf holds the
    derivatives in its two real coordinates as real and imaginary part, which is the
    conjugate of what `jax.grad` returns.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> loss = lambda w, x: jnp.sum(w * x) ** 2 / 2
    >>> px.curvature.empirical_fisher_rows(loss, jnp.ones(1), x, chunk=2).ravel()
    Array([1., 4., 9.], dtype=float32)

    ```
    """
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            "all arrays of `batch` must have one leading axis of the same length; got "
            f"shapes {[leaf.shape for leaf in jax.tree.leaves(batch)]}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, or None; got {chunk}")

    def row(example: PyTree) -> PyTree:
        f, x = in_real(lambda p: loss_per_example(p, example), params)
        return from_real(jax.grad(f)(x), params)

    if chunk is None:
        return jax.vmap(row)(batch)
    return jax.lax.map(row, batch, batch_size=chunk)
