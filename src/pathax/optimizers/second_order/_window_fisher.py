"""An empirical Fisher matrix of the last gradients, leaf by leaf."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._inject import static_args
from ._moments import check_choice, check_range
from ._window import coefficients, combine, insert, products, real_wide, zeros_window


class WindowFisherState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_window_fisher`][].

    **Attributes:**

    - `count`: steps since the window was last emptied.
    - `slot`: where the next gradient is written.
    - `window`: the last gradients, each leaf with a leading axis.
    - `gram`: their inner products, `(history, history)` a leaf.

    Leaves that pass through have an `optax.MaskedNode`.
    """

    count: Array
    slot: Array
    window: PyTree
    gram: PyTree


@static_args("history", "fisher_scale", "min_ndim", "reset_every", "window_dtype")
def scale_by_window_fisher(
    history: int = 20,
    damping: float | Array = 1e-3,
    *,
    fisher_scale: str = "sum",
    min_ndim: int = 2,
    reset_every: int | None = None,
    window_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Precondition each leaf by the Fisher matrix of its own last gradients.

    With the last gradients of a leaf as columns of `X`, the newest last, the update is
    `(damping I + X X^T)^-1 x = X (damping I + X^T X)^-1 e`. It is one part of Natural
    GaLore, and can be the base of `optax.contrib.scale_by_galore`.

    **Arguments:**

    - `history`: how many gradients are kept.
    - `damping`: added to the Fisher matrix.
    - `fisher_scale`: `"sum"` for `X X^T`, or `"mean"` to divide it by the number of
      gradients.
    - `min_ndim`: leaves with fewer axes pass through.
    - `reset_every`: empty the window at every so many steps, for instance where a
      projection changes and old gradients lose their meaning.
    - `window_dtype`: dtype of stored gradients; single precision at least by default.

    **Returns:** an `optax.GradientTransformationExtraArgs` that needs no parameters.

    **Cost:** `history` copies of the leaves; `2 history P + history^3 / 3` operations a
    step.

    **Reference:** Das, "Natural GaLore", arXiv:2410.16029, whose formula
    `x / damping - X S^-1 X^T x / damping^2` is the same in exact arithmetic and loses
    all digits in low precision.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.scale_by_window_fisher(history=2, damping=1.0)
    >>> g = jnp.array([[1.0, 0.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates
    Array([[0.5, 0. ]], dtype=float32)

    ```
    """
    check_range("history", history, 1)
    check_range("damping", damping, 0, closed=(False, False))
    check_choice("fisher_scale", fisher_scale, ("sum", "mean"))
    if reset_every is not None:
        check_range("reset_every", reset_every, 1)

    def init(params: PyTree) -> WindowFisherState:
        def of(make):
            skip = lambda p: optax.MaskedNode() if p.ndim < min_ndim else make(p)
            return jax.tree.map(skip, params)

        return WindowFisherState(
            count=jnp.zeros((), jnp.int32),
            slot=jnp.zeros((), jnp.int32),
            window=of(lambda p: zeros_window(p, history, window_dtype)),
            gram=of(lambda p: jnp.zeros((history, history), real_wide(p))),
        )

    def update(updates, state, params=None, **extra):
        del params, extra
        if reset_every is not None:
            state = emptied(state, state.count >= reset_every)
        leaves, treedef = jax.tree.flatten(updates)
        windows = treedef.flatten_up_to(state.window)
        grams = treedef.flatten_up_to(state.gram)
        # Beyond a full window the count matters for `reset_every` alone.
        most = max(history, reset_every or 0)
        count = jnp.minimum(state.count + 1, most)
        filled = jnp.minimum(count, history)
        slots = state.slot[None]
        out = []
        for i, leaf in enumerate(leaves):
            if leaf.ndim < min_ndim:
                out.append(leaf)
                continue
            windows[i] = windows[i].at[state.slot].set(leaf.astype(windows[i].dtype))
            columns = products(windows[i], windows[i][slots])
            grams[i] = insert(grams[i], columns, slots, filled)
            number = filled if fisher_scale == "mean" else jnp.ones_like(filled)
            target = jnp.zeros(history).at[state.slot].set(1.0)
            weights = coefficients(
                grams[i], target, damping, number.astype(grams[i].dtype), "cholesky"
            )
            out.append(combine(weights, windows[i]).astype(leaf.dtype))
        state = WindowFisherState(
            count,
            (state.slot + 1) % history,
            treedef.unflatten(windows),
            treedef.unflatten(grams),
        )
        return treedef.unflatten(out), state

    return optax.GradientTransformationExtraArgs(init, update)


def emptied(state: WindowFisherState, due: Array) -> WindowFisherState:
    """The state with an empty window, if due. Rows stay, but count for nothing."""
    zero = lambda x: jnp.where(due, jnp.zeros_like(x), x)
    return state._replace(
        count=zero(state.count),
        slot=zero(state.slot),
        gram=jax.tree.map(zero, state.gram),
    )
