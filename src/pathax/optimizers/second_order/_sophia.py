"""Sophia: momentum divided by curvature, and clipped coordinate by coordinate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature import Likelihood
from .._extras import is_due, when
from .._inject import static_args
from ._adahessian import with_decay_and_rate
from ._estimators import bartlett_estimator, curvature_diagonal, hutchinson_estimator
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
    zeros_wide,
)


class SophiaState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_sophia`][].

    **Attributes:**

    - `count`: steps taken.
    - `refreshes`: how often curvature was estimated.
    - `mu`: running mean of gradients.
    - `h`: running mean of curvature diagonals.
    - `win_rate`: the fraction of coordinates that the last step did not clip. The
      authors advise to keep it between 0.1 and 0.5 with `gamma`: more of it raises it.
    - `estimator`: the state of the estimator of curvature.
    """

    count: Array
    refreshes: Array
    mu: PyTree
    h: PyTree
    win_rate: Array
    estimator: Any


def _estimator(
    estimator: str | optax.GradientTransformation, compat: str | None
) -> optax.GradientTransformationExtraArgs:
    if not isinstance(estimator, str):
        return optax.with_extra_args_support(estimator)
    check_choice("estimator", estimator, ("hutchinson", "gnb"))
    if estimator == "gnb":
        return bartlett_estimator()
    if compat == "optax":
        return optax.contrib.hutchinson_estimator_diag_hessian()
    return hutchinson_estimator(distribution="normal")


@static_args("estimator", "order", "bias_correction", "compat", "mu_dtype")
def scale_by_sophia(
    b1: Scalar | None = None,
    b2: Scalar = 0.99,
    eps: Scalar | None = None,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int | Array = 10,
    *,
    estimator: str | optax.GradientTransformation = "hutchinson",
    order: str = "refresh_first",
    bias_correction: bool = False,
    compat: str | None = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale gradients by a running mean of curvature, and clip each coordinate.

    `m <- b1 m + (1 - b1) g`; every `update_interval` steps
    `h <- b2 h + (1 - b2) h_new`; the update is
    `clip(m / max(gamma h, eps), -1, 1)`. Where curvature is not positive that is the
    sign of `m`.

    **Arguments:**

    - `b1`: decay of the momentum; 0.96 unless given.
    - `b2`: decay of the curvature, an estimate a time.
    - `eps`: smallest curvature to divide by; 1e-12 unless given.
    - `gamma`: more of it clips fewer coordinates; 0.01 goes with Hutchinson's estimate,
      0.05 with Gauss-Newton-Bartlett's.
    - `clip_threshold`: largest update of a coordinate, or `None`.
    - `update_interval`: estimate curvature at every so many steps.
    - `estimator`: `"hutchinson"` (with normal vectors, as in the paper), `"gnb"`, or a
      transformation whose updates are a diagonal, such as
      [`pathax.optimizers.bartlett_estimator`][] with other options.
    - `order`: `"refresh_first"` divides by the new estimate, as in the paper;
      `"step_first"` by the one before it, as Optax does. Then, until the second
      estimate, the first steps are signs.
    - `bias_correction`: divide `m` by `1 - b1^count`; the paper does not.
    - `compat`: `"optax"` makes the results those of `optax.contrib.sophia`, with its
      `b1` of 0.965, `eps` of 1e-8, bias correction, order and sign vectors.
    - `mu_dtype`: dtype of `mu`; that of the parameters by default.

    **Returns:** an `optax.GradientTransformationExtraArgs`. Its `update` takes `obj_fn`
    (or `value_fn`), the loss as a function of the parameters, or for `"gnb"`
    `predict_fn`, the outputs as a function of them; or `hessian_diag`, a diagonal or a
    function that returns it; and, if wanted, `key` and `update_curvature`.

    **Cost:** two moments of state; every `update_interval` steps a Hessian product, or
    for `"gnb"` a backward pass.

    **Reference:** Liu et al., "Sophia: a scalable stochastic second-order optimizer for
    language model pre-training", arXiv:2305.14342, Algorithm 3. The authors' code
    writes `gamma h` as `rho * bs * h`, with a mean of squared gradients for `h`.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(jnp.array([100.0, 0.0]) * p**2 + p)
    >>> tx = px.optimizers.scale_by_sophia(gamma=1.0)
    >>> params = jnp.array([0.0, 0.0])
    >>> @jax.jit
    ... def step(params, state):
    ...     grads = jax.grad(loss)(params)
    ...     return tx.update(grads, state, params, obj_fn=loss)
    >>> updates, state = step(params, tx.init(params))
    >>> bool(abs(updates[0]) < 1), float(updates[1])
    (True, 1.0)
    >>> float(state.win_rate)
    0.5

    ```
    """
    check_choice("compat", compat, (None, "optax"))
    check_choice("order", order, ("refresh_first", "step_first"))
    as_optax = compat == "optax"
    decay = b1 if b1 is not None else (0.965 if as_optax else 0.96)
    floor = eps if eps is not None else (1e-8 if as_optax else 1e-12)
    stale, debias = as_optax or order == "step_first", as_optax or bias_correction
    _check(decay, b2, floor, gamma, clip_threshold, update_interval)
    inner_tx = _estimator(estimator, compat)

    def init(params: PyTree) -> SophiaState:
        return SophiaState(
            count=jnp.zeros((), jnp.int32),
            refreshes=jnp.zeros((), jnp.int32),
            mu=zeros_moment(params, mu_dtype),
            h=zeros_wide(params),
            win_rate=jnp.zeros((), jnp.float32),
            estimator=inner_tx.init(params),
        )

    def update(updates, state, params=None, **extra):
        def refresh(operand):
            refreshes, h, inner = operand
            diag, inner = curvature_diagonal(inner_tx, inner, updates, params, extra)
            h = cast_like(mean_update(diag, h, b2), h)
            return one_more(refreshes), h, inner

        due = is_due(state.count, update_interval, extra)
        operand = (state.refreshes, state.h, state.estimator)
        refreshes, h, inner = when(due, refresh, lambda operand: operand, operand)
        count = one_more(state.count)
        mu = mean_update(updates, state.mu, decay)
        scale = correction(decay, count) if debias else None
        ratio = lambda m, h: _ratio(m, h, scale, gamma, floor)
        ratios = jax.tree.map(
            lambda m, h: by_parts(ratio, m, h), mu, state.h if stale else h
        )
        steps, win_rate = _clip(ratios, clip_threshold)
        mu = cast_like(mu, state.mu)
        state = SophiaState(count, refreshes, mu, h, win_rate, inner)
        return cast_like(steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    b1: Any, b2: Any, eps: Any, gamma: Any, clip_threshold: Any, interval: Any
) -> None:
    check_range("b1", b1, 0, 1)
    check_range("b2", b2, 0, 1)
    check_range("eps", eps, 0)
    check_range("gamma", gamma, 0, closed=(False, False))
    check_range("clip_threshold", clip_threshold, 0, closed=(False, False))
    check_range("update_interval", interval, 1)


def _ratio(
    m: Array,
    h: Array,
    scale: Array | None,
    gamma: Scalar,
    floor: Scalar,
) -> Array:
    if scale is not None:
        m = m / scalar(scale, m)
    h = h.astype(m.dtype)
    return m / jnp.maximum(scalar(gamma, m) * h, scalar(floor, m))


def _clip(ratios: PyTree, threshold: Scalar | None) -> tuple[PyTree, Array]:
    """The clipped tree, and which fraction of its real coordinates was not clipped."""
    if threshold is None:
        return ratios, jnp.ones((), jnp.float32)

    def clipped(x: Array) -> Array:
        limit = scalar(threshold, x)
        return jnp.clip(x, -limit, limit)

    inside, total = jnp.zeros((), jnp.float32), 0
    for leaf in jax.tree.leaves(ratios):
        parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
        for part in parts:
            inside = inside + jnp.sum(
                jnp.abs(part) < scalar(threshold, part), dtype=jnp.float32
            )
            total += part.size
    out = jax.tree.map(lambda x: by_parts(clipped, x), ratios)
    return out, inside / max(total, 1)


# Full optimizers --------------------------------------------------------------------


@static_args(
    "mask",
    "num_samples",
    "distribution",
    "hvp_mode",
    "order",
    "compat",
    "key",
    "axis_name",
    "mu_dtype",
)
def sophia_h(
    learning_rate: Scalar | Callable[[Any], Any],
    b1: Scalar | None = None,
    b2: Scalar = 0.99,
    eps: Scalar | None = None,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int | Array = 10,
    *,
    weight_decay: Scalar = 0.1,
    mask: Any = None,
    num_samples: int = 1,
    distribution: str = "rademacher",
    hvp_mode: str = "fwd_over_rev",
    order: str = "refresh_first",
    compat: str | None = None,
    key: int | Array = 0,
    axis_name: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia with Hutchinson's estimate of the Hessian's diagonal.

    **Arguments:**

    - `learning_rate`: a number or a schedule; about that of AdamW.
    - `weight_decay`: strength of decoupled decay; about twice that of AdamW.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - `num_samples`, `distribution`, `hvp_mode`, `key`, `axis_name`: see
      [`pathax.optimizers.hutchinson_estimator`][]. The paper draws `"normal"` vectors;
      random signs have the same mean and less variance (by `2 H_ii^2`), and drawing
      normals takes longer than a gradient of a small network. With `compat="optax"`
      Optax's own estimator is used, and these are not.
    - the others: see [`pathax.optimizers.scale_by_sophia`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes the
    loss as `obj_fn`.

    **Cost:** a Hessian product at every `update_interval` steps, of two to three
    gradients. The paper takes it of a part of the batch (32 examples of 480): write
    `hessian_diag=lambda: pathax.curvature.hutchinson_diagonal(loss_of_part, params,
    key)`, which is computed only when it is due.

    **Reference:** Liu et al., arXiv:2305.14342, Algorithms 1 and 3.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(jnp.array([1.0, 100.0]) * (p - 1) ** 2)
    >>> tx = px.optimizers.sophia_h(0.1, gamma=1.0, weight_decay=0.0)
    >>> @jax.jit
    ... def step(params, state):
    ...     grads = jax.grad(loss)(params)
    ...     updates, state = tx.update(grads, state, params, obj_fn=loss)
    ...     return optax.apply_updates(params, updates), state
    >>> params = jnp.array([3.0, 4.0])
    >>> state = tx.init(params)
    >>> for _ in range(10):
    ...     params, state = step(params, state)
    >>> params  # ten clipped steps
    Array([2., 3.], dtype=float32)

    ```
    """
    estimator = hutchinson_estimator(
        key,
        num_samples=num_samples,
        distribution=distribution,
        hvp_mode=hvp_mode,
        axis_name=axis_name,
    )
    scale = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        estimator="hutchinson" if compat == "optax" else estimator,
        order=order,
        compat=compat,
        mu_dtype=mu_dtype,
    )
    return with_decay_and_rate(scale, learning_rate, weight_decay, mask)


@static_args(
    "mask",
    "likelihood",
    "num_samples",
    "count",
    "clip_norm",
    "order",
    "key",
    "axis_name",
    "mu_dtype",
)
def sophia_g(
    learning_rate: Scalar | Callable[[Any], Any],
    b1: Scalar | None = None,
    b2: Scalar = 0.99,
    eps: Scalar | None = None,
    gamma: Scalar = 0.05,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int | Array = 10,
    *,
    weight_decay: Scalar = 0.1,
    mask: Any = None,
    likelihood: str | Likelihood = "categorical",
    num_samples: int = 1,
    count: int | None = None,
    clip_norm: float | int | None = None,
    order: str = "refresh_first",
    key: int | Array = 0,
    axis_name: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia with the Gauss-Newton-Bartlett estimate: first derivatives only.

    **Arguments:**

    - `learning_rate`: a number or a schedule; about that of AdamW.
    - `weight_decay`: strength of decoupled decay; about twice that of AdamW.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - `likelihood`, `num_samples`, `clip_norm`, `key`, `axis_name`: see
      [`pathax.optimizers.bartlett_estimator`][].
    - `count`: how many terms the mean loss has, if it is not their number in the
      outputs.
    - the others: see [`pathax.optimizers.scale_by_sophia`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes the
    network's outputs as a function of the parameters, `predict_fn`.

    **Reference:** Liu et al., arXiv:2305.14342, Algorithms 2 and 3.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> x, y = jnp.array([[1.0], [-2.0]]), jnp.array([1, 0])
    >>> predict = lambda w: x @ w
    >>> def loss(w):
    ...     logits = predict(w)
    ...     return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    >>> tx = px.optimizers.sophia_g(0.1, weight_decay=0.0)
    >>> @jax.jit
    ... def step(w, state):
    ...     grads = jax.grad(loss)(w)
    ...     updates, state = tx.update(grads, state, w, predict_fn=predict)
    ...     return optax.apply_updates(w, updates), state
    >>> w = jnp.zeros((1, 2))
    >>> w, state = step(w, tx.init(w))
    >>> w
    Array([[-0.1,  0.1]], dtype=float32)

    ```
    """
    estimator = bartlett_estimator(
        key,
        likelihood=likelihood,
        num_samples=num_samples,
        count=count,
        clip_norm=clip_norm,
        axis_name=axis_name,
    )
    scale = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        estimator=estimator,
        order=order,
        mu_dtype=mu_dtype,
    )
    return with_decay_and_rate(scale, learning_rate, weight_decay, mask)
