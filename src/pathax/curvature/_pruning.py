"""Optimal brain surgeon: which weights to remove, and what to make of the others."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._mfac import InverseFisher, flatten, unflatten


def pruning_scores(params: PyTree, inverse: InverseFisher) -> PyTree:
    """By how much the loss grows when one weight is removed, the others following.

    `score_i = theta_i^2 / (2 [F^-1]_ii)`, in the quadratic model of the loss.

    **Arguments:**

    - `params`: the weights, a tree of real arrays.
    - `inverse`: from [`pathax.curvature.mfac_ihvp`][] with gradients at `params`.

    **Returns:** a tree like `params`.

    **Reference:** Hassibi, Stork, "Second order derivatives for network pruning:
    optimal brain surgeon", NeurIPS 1992.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> inverse = px.curvature.mfac_ihvp(jnp.array([[1.0, 0.0]]), 0.5)
    >>> px.curvature.pruning_scores(jnp.array([1.0, 1.0]), inverse)
    Array([0.75, 0.25], dtype=float32)

    ```
    """
    _check_real(params)
    score = lambda p, d: p.astype(d.dtype) ** 2 / (2 * d)
    return jax.tree.map(score, params, inverse.diag())


def optimal_brain_surgeon(
    params: PyTree,
    inverse: InverseFisher,
    sparsity: float,
    *,
    mask: PyTree | None = None,
    joint: bool = False,
) -> tuple[PyTree, PyTree]:
    """Remove the weights that matter least, and move the others to make up for them.

    With `Q` the removed weights, `joint=True` takes the best move in the quadratic
    model, `-F^-1 E (E^T F^-1 E)^-1 theta_Q`; else the moves of single removals are
    added up, as is usual for many weights.

    **Arguments:**

    - `params`: the weights, a tree of real arrays.
    - `inverse`: from [`pathax.curvature.mfac_ihvp`][] with gradients at `params`.
    - `sparsity`: the fraction of weights that are zero afterwards, a Python number.
    - `mask`: from an earlier call: False where a weight is gone already. These stay
      zero and count among the removed ones. Give it to
      [`pathax.curvature.mfac_ihvp`][] too; else moves count on weights that are gone.
    - `joint`: whether to solve for all removed weights together; a dense system of
      their number, so for a few hundred.

    **Returns:** `(params, mask)`, the mask True where a weight is kept.

    **Raises:** `ValueError` for a sparsity outside of `[0, 1]` or complex weights.

    **Reference:** Hassibi, Stork (1992); Frantar, Kurtic, Alistarh, arXiv:2107.03356,
    section 4.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> inverse = px.curvature.mfac_ihvp(jnp.array([[1.0, 1.0]]), 0.5)
    >>> params, mask = px.curvature.optimal_brain_surgeon(
    ...     jnp.array([1.0, 3.0]), inverse, 0.5
    ... )
    >>> params
    Array([0.       , 3.6666667], dtype=float32)

    ```
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"`sparsity` must be in [0, 1]; got {sparsity}")
    scores = flatten(pruning_scores(params, inverse))
    weights = flatten(params).astype(scores.dtype)
    if mask is not None:
        # Weights that are gone cost nothing and come first.
        scores = jnp.where(flatten_mask(mask), scores, -1)
    count = round(sparsity * scores.size)
    removed = jnp.argsort(scores)[:count]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    keep = jnp.ones(scores.shape, bool).at[removed].set(False)
    if joint:
        forces = jnp.linalg.solve(inverse.entries(removed), weights[removed])
    else:
        forces = weights[removed] / flatten(inverse.diag())[removed]
    push = jnp.zeros_like(weights).at[removed].set(forces)
    move = flatten(inverse.mul(unflatten(push, like)))
    found = jnp.where(keep, weights - move, jnp.zeros_like(weights))
    pruned = jax.tree.map(
        lambda new, old: new.astype(old.dtype), unflatten(found, like), params
    )
    return pruned, _unflatten_mask(keep, params)


def pruning_schedule(
    step: float | int | Array, steps: int, final: float, initial: float = 0.0
) -> Any:
    """Sparsity that rises fast first and slowly at the end.

    `final + (initial - final) (1 - step / steps)^3`.

    **Arguments:**

    - `step`: from 0 to `steps`; later ones count as `steps`.
    - `steps`: after how many the final sparsity is reached.
    - `final`, `initial`: sparsities, fractions.

    **Returns:** the sparsity at that step.

    **Reference:** Zhu, Gupta, "To prune, or not to prune", arXiv:1710.01878.

    **Example:**

    ```python
    >>> import pathax as px
    >>> [round(px.curvature.pruning_schedule(i, 4, 0.9), 2) for i in range(5)]
    [0.0, 0.52, 0.79, 0.89, 0.9]

    ```
    """
    if isinstance(step, int | float):
        left = 1 - min(max(step / steps, 0.0), 1.0)
    else:
        left = 1 - jnp.clip(step / steps, 0, 1)
    return final + (initial - final) * left**3


def flatten_mask(mask: PyTree) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(mask)])


def _unflatten_mask(flat: Array, params: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    out, start = [], 0
    for leaf in leaves:
        out.append(flat[start : start + leaf.size].reshape(leaf.shape))
        start += leaf.size
    return treedef.unflatten(out)


def _check_real(params: PyTree) -> None:
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise ValueError(
            "pruning removes real weights, but some are complex; split them into real "
            "and imaginary parts first"
        )
