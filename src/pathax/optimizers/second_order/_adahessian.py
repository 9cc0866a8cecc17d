"""AdaHessian: Adam with the Hessian's diagonal in place of squared gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature._blocks import average_leaf, block_shape, check_layout, leaf_blocks
from ...curvature._tree import wide_dtype
from .._extras import is_due, when
from .._inject import static_args
from ._estimators import curvature_diagonal, hutchinson_estimator
from ._moments import (
    Scalar,
    by_parts,
    cast_like,
    check_choice,
    check_range,
    correction,
    mean_update,
    one_more,
    scalar,
    zeros_moment,
)


class AdaHessianState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_adahessian`][].

    **Attributes:**

    - `count`: steps taken.
    - `refreshes`: how often curvature was estimated.
    - `mu`: running mean of gradients.
    - `nu`: running mean of squared curvatures; axes that are averaged over have length
      one. In a complex leaf, of the real and of the imaginary coordinates.
    - `estimator`: the state of the estimator of curvature.
    """

    count: Array
    refreshes: Array
    mu: PyTree
    nu: PyTree
    estimator: Any


_STATIC = (
    "block_average",
    "average",
    "num_samples",
    "hvp_mode",
    "hessian_diagonal_fn",
    "layout",
    "key",
    "axis_name",
    "mu_dtype",
)


def _zeros_blocks(params: PyTree, blocks: Any, layout: str) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    found = leaf_blocks(params, blocks, layout)
    shapes = [block_shape(p.shape, b) for p, b in zip(leaves, found, strict=True)]
    zeros = [
        jnp.zeros_like(p, dtype=wide_dtype(p.dtype), shape=shape)
        for p, shape in zip(leaves, shapes, strict=True)
    ]
    return treedef.unflatten(zeros)


def _squares(diag: PyTree, blocks: Any, layout: str, absolute: bool) -> PyTree:
    """Squares of curvatures averaged over blocks."""

    def one(d: Array, block: Any) -> Array:
        d = jnp.abs(d) if absolute else d
        return average_leaf(d, block, layout) ** 2

    leaves, treedef = jax.tree.flatten(diag)
    found = leaf_blocks(diag, blocks, layout)
    pairs = zip(leaves, found, strict=True)
    return treedef.unflatten(
        [by_parts(lambda d, b=block: one(d, b), leaf) for leaf, block in pairs]
    )


def _check(
    b1: Any, b2: Any, eps: Any, hessian_power: Any, interval: Any, average: str
) -> None:
    check_range("b1", b1, 0, 1)
    check_range("b2", b2, 0, 1)
    check_range("eps", eps, 0)
    check_range("hessian_power", hessian_power, 0, 1, closed=(False, True))
    check_range("update_interval", interval, 1)
    check_choice("average", average, ("abs", "signed"))


@static_args(*_STATIC)
def scale_by_adahessian(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    hessian_power: Scalar = 1.0,
    update_interval: int | Array = 1,
    *,
    block_average: Any = "auto",
    average: str = "abs",
    layout: str = "out_in",
    num_samples: int = 1,
    hvp_mode: str = "fwd_over_rev",
    hessian_diagonal_fn: optax.GradientTransformation | None = None,
    key: int | Array = 0,
    axis_name: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale gradients by a running mean of squared Hessian diagonals.

    `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) s^2`, and the update is
    `m_hat / (v_hat^(hessian_power / 2) + eps)`, with `s` the Hessian's diagonal
    estimated from random signs, averaged over blocks. For one sign vector and no blocks
    the mean of `s_i^2` is `sum_j H_ij^2`, the squared norm of a row of the Hessian, and
    not `H_ii^2`: the method is more damped than its name says. Averages with
    `average="signed"` and more samples bring it closer to `H_ii^2`.

    **Arguments:**

    - `b1`, `b2`: decay of the two running means.
    - `eps`: added to the size of the curvature, so it scales with the loss.
    - `hessian_power`: in `(0, 1]`; less than one trusts curvature less.
    - `update_interval`: estimate curvature at every so many steps only. `v_hat` is
      corrected by the number of estimates, not of steps. Before the first estimate
      (if `update_curvature=False` is given from the start) updates are zero.
    - `block_average`: what curvature is averaged over: `"auto"` (the input axis of a
      matrix, the kernel of a convolution), the length of runs, `None`, or a tree of
      axes; see [`pathax.curvature.block_average`][].
    - `average`: `"abs"` averages absolute values, as the authors' code does;
      `"signed"` the values.
    - `layout`: `"out_in"` (Equinox) or `"in_out"` (Flax), the axes of weights.
    - `num_samples`: random vectors an estimate.
    - `hvp_mode`: how Hessian products are taken, see [`pathax.curvature.hvp`][].
    - `hessian_diagonal_fn`: another estimator, a transformation whose updates are a
      diagonal, such as `optax.contrib.hutchinson_estimator_diag_hessian()`.
      `num_samples`, `hvp_mode`, `key` and `axis_name` are then not used.
    - `key`: seed or key of the random vectors.
    - `axis_name`: mapped axis to average Hessian products over.
    - `mu_dtype`: dtype of `mu`; that of the parameters by default.

    **Returns:** an `optax.GradientTransformationExtraArgs`. Its `update` takes `obj_fn`
    (or `value_fn`), the loss as a function of the parameters; or `hessian_diag`, the
    diagonal itself or a function that returns it; and, if wanted, `key` and
    `update_curvature`.

    **Cost:** one Hessian product an estimate; two moments of state, the second smaller
    where blocks are averaged. With `update_interval=1` take
    [`pathax.curvature.value_grad_and_hutchinson`][], which shares its work with the
    gradient, and give its last result as `hessian_diag`. With a longer interval and a
    smooth loss, `hessian_diag=lambda: pathax.curvature.hutchinson_diagonal(loss,
    params, key, hvp_mode="forward_diff", grads=grads)` takes one gradient a refresh
    instead of three.

    **Reference:** Yao et al., "AdaHessian: an adaptive second order optimizer for
    machine learning", arXiv:2006.00719, and its authors' code, whose estimates are not
    averaged over devices; ours are.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(jnp.array([1.0, 10.0]) * p**2)
    >>> tx = px.optimizers.scale_by_adahessian(eps=0.0)
    >>> params = jnp.array([3.0, 4.0])
    >>> @jax.jit
    ... def step(params, state):
    ...     grads = jax.grad(loss)(params)
    ...     return tx.update(grads, state, params, obj_fn=loss)
    >>> step(params, tx.init(params))[0]  # Newton's step, for a diagonal Hessian
    Array([3., 4.], dtype=float32)

    ```
    """
    _check(b1, b2, eps, hessian_power, update_interval, average)
    check_layout(layout)
    absolute = average == "abs"
    if hessian_diagonal_fn is None:
        hessian_diagonal_fn = hutchinson_estimator(
            key,
            num_samples=num_samples,
            hvp_mode=hvp_mode,
            absolute=absolute,
            axis_name=axis_name,
        )
    estimator = optax.with_extra_args_support(hessian_diagonal_fn)

    def init(params: PyTree) -> AdaHessianState:
        return AdaHessianState(
            count=jnp.zeros((), jnp.int32),
            refreshes=jnp.zeros((), jnp.int32),
            mu=zeros_moment(params, mu_dtype),
            nu=_zeros_blocks(params, block_average, layout),
            estimator=estimator.init(params),
        )

    def update(updates, state, params=None, **extra):
        def refresh(operand):
            refreshes, nu, inner = operand
            diag, inner = curvature_diagonal(estimator, inner, updates, params, extra)
            squares = _squares(diag, block_average, layout, absolute)
            nu = cast_like(mean_update(squares, nu, b2), nu)
            return one_more(refreshes), nu, inner

        due = is_due(state.count, update_interval, extra)
        operand = (state.refreshes, state.nu, state.estimator)
        refreshes, nu, inner = when(due, refresh, lambda operand: operand, operand)
        count = one_more(state.count)
        mu = mean_update(updates, state.mu, b1)
        scales = correction(b1, count), correction(b2, jnp.maximum(refreshes, 1))
        step = lambda m, v: _step(m, v, scales, hessian_power, eps, refreshes > 0)
        steps = jax.tree.map(lambda m, v: by_parts(step, m, v), mu, nu)
        mu = cast_like(mu, state.mu)
        state = AdaHessianState(count, refreshes, mu, nu, inner)
        return cast_like(steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _step(
    m: Array,
    v: Array,
    scales: tuple[Array, Array],
    power: Scalar,
    eps: Scalar,
    known: Array,
) -> Array:
    first, second = (scalar(s, m) for s in scales)
    root = jnp.sqrt(v.astype(m.dtype) / second)
    if not (isinstance(power, int | float) and power == 1):
        root = root ** scalar(power, m)
    out = m / first / (root + scalar(eps, m))
    return jnp.where(known, out, jnp.zeros_like(out))


@static_args(*_STATIC, "mask")
def adahessian(
    learning_rate: Scalar | Callable[[Any], Any],
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    hessian_power: Scalar = 1.0,
    update_interval: int | Array = 1,
    *,
    weight_decay: Scalar = 0.0,
    mask: Any = None,
    block_average: Any = "auto",
    average: str = "abs",
    layout: str = "out_in",
    num_samples: int = 1,
    hvp_mode: str = "fwd_over_rev",
    hessian_diagonal_fn: optax.GradientTransformation | None = None,
    key: int | Array = 0,
    axis_name: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian with decoupled weight decay.

    **Arguments:**

    - `learning_rate`: a number or a schedule; the authors take 0.15 for images and
      0.047 for translation, with warm-up.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - the others: see [`pathax.optimizers.scale_by_adahessian`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes the
    loss as `obj_fn`, or a diagonal as `hessian_diag`.

    **Reference:** Yao et al., "AdaHessian: an adaptive second order optimizer for
    machine learning", arXiv:2006.00719.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(jnp.array([1.0, 100.0]) * (p - 1) ** 2)
    >>> tx = px.optimizers.adahessian(0.5, b1=0.0, b2=0.9)
    >>> params = jnp.array([3.0, 4.0])
    >>> @jax.jit
    ... def step(params, state):
    ...     value, grads, diag = px.curvature.value_grad_and_hutchinson(
    ...         loss, params, jax.random.key(0)
    ...     )
    ...     updates, state = tx.update(grads, state, params, hessian_diag=diag)
    ...     return optax.apply_updates(params, updates), state
    >>> state = tx.init(params)
    >>> for _ in range(20):
    ...     params, state = step(params, state)
    >>> params
    Array([1., 1.], dtype=float32)

    ```
    """
    scale = scale_by_adahessian(
        b1,
        b2,
        eps,
        hessian_power,
        update_interval,
        block_average=block_average,
        average=average,
        layout=layout,
        num_samples=num_samples,
        hvp_mode=hvp_mode,
        hessian_diagonal_fn=hessian_diagonal_fn,
        key=key,
        axis_name=axis_name,
        mu_dtype=mu_dtype,
    )
    return with_decay_and_rate(scale, learning_rate, weight_decay, mask)


def with_decay_and_rate(
    scale: optax.GradientTransformation,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transformation, then decoupled decay if there is any, then the rate."""
    decays = not isinstance(weight_decay, int | float) or weight_decay != 0
    decay = [optax.add_decayed_weights(weight_decay, mask)] if decays else []
    return optax.chain(scale, *decay, optax.scale_by_learning_rate(learning_rate))
