"""M-FAC: the inverse empirical Fisher matrix of the last gradients, never formed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature._binding import is_masked
from .._extras import when
from .._inject import static_args
from ._adahessian import with_decay_and_rate
from ._moments import (
    cast_like,
    check_choice,
    check_range,
    mean_update,
    wide,
    zeros_wide,
)
from ._window import (
    coefficients,
    combine,
    insert,
    products,
    real_wide,
    total,
    zeros_window,
)


class MFACState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_mfac`][].

    **Attributes:**

    - `count`: gradients seen.
    - `slot`: where the next one is written.
    - `window`: the last gradients, each leaf with a leading axis.
    - `gram`: their inner products, `(window, window)`; a tree of them if `layerwise`.
    - `mu`: the momentum, or `None`.
    """

    count: Array
    slot: Array
    window: PyTree
    gram: PyTree
    mu: PyTree


_STATIC = (
    "window",
    "normalize",
    "layerwise",
    "window_dtype",
    "solver",
    "recompute_interval",
)


@static_args(*_STATIC)
def scale_by_mfac(
    window: int = 32,
    damping: float | Array = 1e-4,
    momentum: float | Array | None = None,
    *,
    normalize: str = "count",
    layerwise: bool = False,
    window_dtype: Any = None,
    solver: str = "cholesky",
    recompute_interval: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Precondition by the inverse empirical Fisher matrix of the last gradients.

    With the last `N` gradients as rows of `R`, `F = damping I + R^T R / N`, and the
    update is `F^-1 g = N R^T K^-1 e`, where `K = N damping I + R R^T` and `e` picks the
    newest row, `g`. One gradient alone gives `g / (damping + |g|^2)`.

    **Arguments:**

    - `window`: how many gradients are kept; also the memory, in copies of the
      parameters.
    - `damping`: added to the Fisher matrix; scales with the squared gradient. Where
      gradients are parallel to rounding, less than `window eps |g|^2 / N` does nothing.
    - `momentum`: `mu <- momentum mu + (1 - momentum) F^-1 g` is the update, without
      correction of its bias; `None` for none.
    - `normalize`: `N` is the number of gradients in the window (`"count"`) or its
      length (`"window"`, as in the paper), which damps the first steps more.
    - `layerwise`: a window of its own, and a matrix, for each leaf.
    - `window_dtype`: dtype of stored gradients, e.g. `jax.numpy.bfloat16`; single
      precision at least by default. Inner products are single precision anyway.
    - `solver`: `"cholesky"`, and `"eigh"` where gradients are parallel to rounding and
      the damping is below it; or always `"eigh"`.
    - `recompute_interval`: compute all inner products anew at every so many gradients.
      They don't drift, as each is computed once from what is stored; this is for
      windows that were changed from outside.

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` needs
    gradients alone. With the extra `rows`, gradients of examples with a leading axis of
    at most `window`, all are put into the window at once and the update is that of
    their mean, scaled by how much of it there is in the gradient that is given.

    **Raises:** `ValueError` for arguments out of range, and for more rows than fit.

    **Cost:** per step `2 window P + window^3 / 3` operations.

    **Reference:** Frantar, Kurtic, Alistarh, "M-FAC: efficient matrix-free
    approximations of second-order information", arXiv:2107.03356. The authors' dynamic
    algorithm computes the same product by a recursion; in float32 it is less accurate
    for large gradients, as it takes differences.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.scale_by_mfac(window=4, damping=1.0)
    >>> g = jnp.array([1.0, 0.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates  # g / (damping + |g|^2)
    Array([0.5, 0. ], dtype=float32)

    ```
    """
    check_range("window", window, 1)
    check_range("damping", damping, 0, closed=(False, False))
    check_range("momentum", momentum, 0, 1)
    check_choice("normalize", normalize, ("count", "window"))
    check_choice("solver", solver, ("cholesky", "eigh"))
    if recompute_interval is not None:
        check_range("recompute_interval", recompute_interval, 1)

    def init(params: PyTree) -> MFACState:
        zero = lambda: jnp.zeros((), jnp.int32)
        leaves = jax.tree.leaves(params)
        gram = lambda dtype: jnp.zeros((window, window), dtype)
        dtype = total([jnp.zeros(1, real_wide(x)) for x in leaves], (1,)).dtype
        return MFACState(
            count=zero(),
            slot=zero(),
            window=jax.tree.map(
                lambda p: zeros_window(p, window, window_dtype), params
            ),
            gram=jax.tree.map(lambda p: gram(real_wide(p)), params)
            if layerwise
            else gram(dtype),
            mu=None if momentum is None else zeros_wide(params),
        )

    def update(updates, state, params=None, **extra):
        rows = extra.get("rows")
        if rows is None:
            new = jax.tree.map(lambda x: x[None], updates)
        else:
            new = rows = _seen(rows, updates)
        added = _number_of(new, window)
        slots = (state.slot + jnp.arange(added, dtype=jnp.int32)) % window
        stored = jax.tree.map(
            lambda w, x: w.at[slots].set(x.astype(w.dtype)), state.window, new
        )
        # A count that never overflows: beyond the window only "full" matters.
        count = _capped(state.count, added, window)
        filled = jnp.minimum(count, window)
        grams = _grams(state.gram, stored, slots, filled)
        if recompute_interval is not None:
            due = (count // added) % recompute_interval == 0
            fresh = lambda grams: _grams(grams, stored, jnp.arange(window), filled)
            grams = when(due, fresh, lambda grams: grams, grams)
        number = filled if normalize == "count" else jnp.full_like(filled, window)
        target = jnp.zeros(window).at[slots].set(1 / added)
        solve = lambda gram: coefficients(
            gram, target, damping, number.astype(gram.dtype), solver
        )
        if layerwise:
            steps = jax.tree.map(lambda g, w: combine(solve(g), w), grams, stored)
        else:
            weights = solve(grams)
            steps = jax.tree.map(lambda w: combine(weights, w), stored)
        if rows is not None:
            scale = _share(updates, rows)
            steps = jax.tree.map(lambda x: scale.astype(x.dtype) * x, steps)
        mu = state.mu
        if momentum is not None:
            steps = mean_update(steps, mu, momentum)
            mu = cast_like(steps, mu)
        state = MFACState(count, (state.slot + added) % window, stored, grams, mu)
        return cast_like(steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(rows: PyTree, updates: PyTree) -> PyTree:
    """The rows without what `optax.masked` hides."""
    pick = lambda u, row: u if is_masked(u) else row
    return jax.tree.map(pick, updates, rows, is_leaf=is_masked)


def _number_of(rows: PyTree, window: int) -> int:
    lengths = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(rows)}
    if len(lengths) > 1 or not lengths <= set(range(1, window + 1)):
        raise ValueError(
            "`rows` must be gradients with one leading axis, no longer than the window "
            f"of {window}; got lengths {sorted(lengths)}. Take a longer window or give "
            "fewer rows."
        )
    return next(iter(lengths), 1)


def _capped(count: Array, added: int, window: int) -> Array:
    """The count, which wraps around by whole windows long before it overflows."""
    limit = 2**30
    more = count + added
    return jnp.where(more > limit, more - (limit // window) * window + window, more)


def _grams(gram: PyTree, stored: PyTree, slots: Array, filled: Array) -> PyTree:
    """Inner products after these rows were written."""
    parts = jax.tree.map(lambda w: products(w, w[slots]), stored)
    put = lambda g, columns: insert(g, columns, slots, filled)
    if not isinstance(gram, Array):
        return jax.tree.map(put, gram, parts)
    shape = (len(gram), len(slots))
    return put(gram, total(jax.tree.leaves(parts), shape))


def _share(updates: PyTree, rows: PyTree) -> Array:
    """How much of the mean of the rows there is in a gradient; 1 if it is the mean."""
    above = below = jnp.zeros((), jnp.float32)
    for u, r in zip(jax.tree.leaves(updates), jax.tree.leaves(rows), strict=True):
        mean = jnp.mean(wide(r), axis=0)
        inner = jnp.sum(jnp.real(jnp.conj(mean) * wide(u)))
        above = above + inner.astype(jnp.float32)
        below = below + jnp.sum(jnp.abs(mean) ** 2).astype(jnp.float32)
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 1)


@static_args(*_STATIC, "mask", "coupled_l2")
def mfac(
    learning_rate: float | Array | Callable[[Array], Any],
    window: int = 32,
    damping: float | Array = 1e-4,
    momentum: float | Array | None = None,
    *,
    weight_decay: float | Array = 0.0,
    mask: Any = None,
    coupled_l2: float = 0.0,
    normalize: str = "count",
    layerwise: bool = False,
    window_dtype: Any = None,
    solver: str = "cholesky",
    recompute_interval: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """M-FAC with weight decay.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - `coupled_l2`: strength of a decay that is added to the gradient before it enters
      the window, as the authors do; it then is part of the Fisher matrix.
    - the others: see [`pathax.optimizers.scale_by_mfac`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`.

    **Reference:** Frantar, Kurtic, Alistarh, arXiv:2107.03356.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(jnp.array([1.0, 100.0]) * p**2) / 2
    >>> tx = px.optimizers.mfac(0.5, window=2, damping=1e-3)
    >>> params = jnp.array([1.0, 1.0])
    >>> updates, state = tx.update(jax.grad(loss)(params), tx.init(params), params)
    >>> print(f"{updates[1] / updates[0]:.0f}")  # one gradient: its own direction
    100

    ```
    """
    scale = scale_by_mfac(
        window,
        damping,
        momentum,
        normalize=normalize,
        layerwise=layerwise,
        window_dtype=window_dtype,
        solver=solver,
        recompute_interval=recompute_interval,
    )
    if coupled_l2:
        scale = optax.chain(optax.add_decayed_weights(coupled_l2, mask), scale)
    return with_decay_and_rate(scale, learning_rate, weight_decay, mask)
