"""MKOR-H: MKOR that falls back to first order when the loss flattens."""

from collections.abc import Callable, Sequence
from typing import Any

import optax
from jaxtyping import Array

from ...curvature import kron
from .._inject import static_args
from ._mkor import STATIC, complete
from ._mkor_rule import Rule, Switch, transform
from ._moments import Scalar, check_range


@static_args(*STATIC)
def scale_by_mkor_h(
    layers: Sequence[kron.LayerSpec] | None = None,
    gamma: Scalar = 0.95,
    zeta: Scalar = 0.9,
    threshold: Scalar = 2.0,
    update_interval: int | Array = 10,
    *,
    variant: str = "exact",
    rescale: bool | str = True,
    clip_stats: Scalar = 100.0,
    factor_dtype: Any = None,
    warmup: int | Array = 0,
    leak: Scalar = 0.05,
    check_every: int | Array = 50,
    ema_decay: Scalar = 0.98,
    ratio: Scalar = 0.1,
    best_decay: Scalar = 0.999,
    patience: int | Array = 3,
) -> optax.GradientTransformationExtraArgs:
    """MKOR that gives up its factors when the loss does not fall fast any more.

    The paper describes the switch and states no rule. Here, with `l` the running mean
    of the loss and `l_old` what it was at the check before, every `check_every` steps

        r = (l_old - l) / |l_old|,    r_best <- max(best_decay r_best, r)

    and `patience` checks in a row with `r < ratio r_best` switch to first order, for
    good: gradients then pass unchanged, and neither factors nor products are computed.
    The statistics still are, by the backward pass; a loop may look at
    `state.first_order` and go on with `jax.value_and_grad` and without `kron`, which
    needs a step compiled anew (`update_curvature=False` then stands for it).

    **Arguments:**

    - `check_every`, `ema_decay`, `ratio`, `best_decay`, `patience`: see above;
      `ema_decay` is that of the running mean.
    - the others: see [`pathax.optimizers.scale_by_mkor`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`. Its `update` takes the loss
    as `value` beside what MKOR takes. Values that are not finite are not counted.

    **Reference:** Mozaffari et al., arXiv:2306.01685, Section 3.3; the rule is ours.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> tx = px.optimizers.scale_by_mkor_h(check_every=1)
    >>> stats = (px.curvature.kron.LayerStats(jnp.ones(3), jnp.ones(1)),)
    >>> state = tx.init(params)
    >>> for _ in range(4):  # a loss that stays where it is
    ...     _, state = tx.update(params, state, value=1.0, kron=stats)
    >>> bool(state.first_order)
    False

    ```
    """
    rule = Rule(gamma, zeta, threshold, variant, leak, rescale, clip_stats)
    switch = Switch(check_every, ema_decay, ratio, best_decay, patience)
    check_range("check_every", check_every, 1)
    check_range("ema_decay", ema_decay, 0, 1)
    check_range("ratio", ratio, 0)
    check_range("best_decay", best_decay, 0, 1, closed=(True, True))
    check_range("patience", patience, 1)
    return transform(
        "scale_by_mkor_h", rule, switch, layers, update_interval, factor_dtype, warmup
    )


@static_args(*STATIC, "base", "mask")
def mkor_h(
    learning_rate: Scalar | Callable[[Array], Any],
    layers: Sequence[kron.LayerSpec] | None = None,
    gamma: Scalar = 0.95,
    zeta: Scalar = 0.9,
    threshold: Scalar = 2.0,
    update_interval: int | Array = 10,
    *,
    base: optax.GradientTransformation | None = None,
    weight_decay: Scalar = 0.0,
    mask: Any = None,
    variant: str = "exact",
    rescale: bool | str = True,
    clip_stats: Scalar = 100.0,
    factor_dtype: Any = None,
    warmup: int | Array = 0,
    leak: Scalar = 0.05,
    check_every: int | Array = 50,
    ema_decay: Scalar = 0.98,
    ratio: Scalar = 0.1,
    best_decay: Scalar = 0.999,
    patience: int | Array = 3,
) -> optax.GradientTransformationExtraArgs:
    """MKOR-H, with a first-order rule behind it that goes on alone in the end.

    **Arguments:**

    - `learning_rate`, `base`, `weight_decay`, `mask`: see [`pathax.optimizers.mkor`][].
    - the others: see [`pathax.optimizers.scale_by_mkor_h`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes
    statistics of the layers as `kron` and the loss as `value`.

    **Reference:** Mozaffari et al., arXiv:2306.01685, Section 3.3.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> loss = lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    >>> tx = px.optimizers.mkor_h(0.1)
    >>> f = px.curvature.kron.value_and_grad(loss)
    >>> (value, stats), grads = f(params, jnp.eye(2))
    >>> updates, state = tx.update(
    ...     grads, tx.init(params), params, kron=stats, value=value
    ... )
    >>> updates.weight.shape
    (1, 2)

    ```
    """
    scale = scale_by_mkor_h(
        layers,
        gamma,
        zeta,
        threshold,
        update_interval,
        variant=variant,
        rescale=rescale,
        clip_stats=clip_stats,
        factor_dtype=factor_dtype,
        warmup=warmup,
        leak=leak,
        check_every=check_every,
        ema_decay=ema_decay,
        ratio=ratio,
        best_decay=best_decay,
        patience=patience,
    )
    return complete(scale, learning_rate, base, weight_decay, mask)
