"""MKOR: Kronecker factors of layers, kept as inverses by rank-one updates."""

from collections.abc import Callable, Sequence
from typing import Any

import optax
from jaxtyping import Array

from ...curvature import kron
from .._inject import static_args
from ._adahessian import with_decay_and_rate
from ._mkor_rule import Rule, transform
from ._moments import Scalar


STATIC = ("layers", "variant", "rescale", "factor_dtype")


@static_args(*STATIC)
def scale_by_mkor(
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
) -> optax.GradientTransformationExtraArgs:
    """Precondition layers by inverse factors that rank-one updates keep.

    For a layer with the gradient `W` (of its bias as last column), mean input `a` (with
    a trailing one) and mean output cotangent `g`, every `update_interval` steps and for
    `M` the inverse factors `L` with `u = g` and `R` with `u = a`,

        M <- zeta M + (1 - zeta) I      if an entry of M exceeds `threshold`
        M <- (M - (1 - gamma) (M u) (M u)^T / (gamma + (1 - gamma) u^T M u)) / gamma

    and at every step `D = L W R`, scaled to the norm of `W`. The second line inverts
    `gamma M^-1 + (1 - gamma) u u^T` exactly. Everything else passes unchanged: chain
    with a first-order rule such as `optax.trace` or `optax.scale_by_adam`, which sees
    `D` of the layers and gradients of the rest. To treat the rest differently, put this
    into `optax.masked` or `optax.multi_transform`.

    **Arguments:**

    - `layers`: a tuple of [`pathax.curvature.kron.LayerSpec`][]; by default those of an
      instrumented model.
    - `gamma`: decay of the factors.
    - `zeta`: how much of a factor stays when it is blended with the identity. Less than
      `gamma`: where no statistic reaches, a factor grows by `1 / gamma` an update, and
      so stays below about `(1 - zeta) / (gamma - zeta)` or `threshold / gamma`.
    - `threshold`: the largest absolute entry that a factor may have.
    - `update_interval`: refresh the factors at every so many steps.
    - `variant`: `"exact"` is the rule above. `"leaky"` is that of the authors' package,
      `M <- T - (T u) (T u)^T / (1 + u^T T u)` with `T = (1 - leak) M + leak I`, which
      does not forget what it has seen and keeps eigenvalues below one. `"paper"` is the
      rule as printed, with a plus sign and `gamma` for `1 / gamma`: it *amplifies* what
      an inverse must damp. It is there to be compared with; do not train with it.
    - `rescale`: whether `D` gets the norm of `W`. The authors' package takes the sum of
      the norms of weight and bias for it: `"sum"`.
    - `clip_stats`: entries of `a` and `g` are clipped to it. (The authors clip those of
      single examples.)
    - `factor_dtype`: dtype of the factors; that of the parameters, float32 at least, by
      default. Updates are computed in the latter.
    - `warmup`: refresh at each of the first so many steps.
    - `leak`: see `variant`.

    **Returns:** an `optax.GradientTransformationExtraArgs`. Its `update` takes `kron`,
    statistics from [`pathax.curvature.kron.value_and_grad`][] or a function that
    returns them, which is called by steps that refresh alone; and `update_curvature`,
    which overrides the interval. With the Python value `False` it needs no `kron`.

    **Raises:** `ValueError` if `zeta >= gamma`, if there are no layers, and for
    statistics that are not theirs; [`pathax.optimizers.MissingExtraError`][] without
    `kron`.

    **Cost:** two matrices a layer, of inputs and of outputs; `O(in^2 + out^2)` at a
    refresh, and `in out (in + out)` at *every* step, relative to the training step
    about `(in + out) / (3 B)` with `B` examples.

    **Precision.** Rank-one updates are in float32 at least; `M` stays symmetric
    exactly.

    **Reference:** Mozaffari et al., "MKOR: momentum-enabled Kronecker-factor-based
    optimizer using rank-1 updates", arXiv:2306.01685, Algorithm 1. The rule for `M` is
    the correct inverse, see `variant`. Unlike in the authors' package the first refresh
    updates the factors too, and `gamma`, `zeta` and `threshold` have an effect.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> def loss(params, x, y):
    ...     return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)
    >>> tx = optax.chain(px.optimizers.scale_by_mkor(), optax.sgd(0.1))
    >>> state = tx.init(params)
    >>> @jax.jit
    ... def step(params, state, x, y):
    ...     f = px.curvature.kron.value_and_grad(loss)
    ...     (value, stats), grads = f(params, x, y)
    ...     updates, state = tx.update(grads, state, params, kron=stats)
    ...     return optax.apply_updates(params, updates), state, value
    >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
    >>> for _ in range(30):
    ...     params, state, value = step(params, state, x, y)
    >>> bool(value < 0.1)
    True

    ```
    """
    rule = Rule(gamma, zeta, threshold, variant, leak, rescale, clip_stats)
    return transform(
        "scale_by_mkor", rule, None, layers, update_interval, factor_dtype, warmup
    )


def complete(
    scale: optax.GradientTransformation,
    learning_rate: Any,
    base: optax.GradientTransformation | None,
    weight_decay: Any,
    mask: Any,
) -> optax.GradientTransformationExtraArgs:
    base = optax.trace(decay=0.9) if base is None else base
    chained = optax.chain(scale, base)
    return with_decay_and_rate(chained, learning_rate, weight_decay, mask)


@static_args(*STATIC, "base", "mask")
def mkor(
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
) -> optax.GradientTransformationExtraArgs:
    """MKOR with a first-order rule behind it.

    **Arguments:**

    - `learning_rate`: a number or a schedule; about that of the first-order rule, since
      preconditioned gradients keep their norms.
    - `base`: the rule, such as `optax.scale_by_adam()`; by default momentum,
      `optax.trace(0.9)`.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - the others: see [`pathax.optimizers.scale_by_mkor`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes
    statistics of the layers as `kron`.

    **Reference:** Mozaffari et al., arXiv:2306.01685, Algorithm 1.

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
    >>> tx = px.optimizers.mkor(0.1)
    >>> f = px.curvature.kron.value_and_grad(loss)
    >>> (value, stats), grads = f(params, jnp.eye(2))
    >>> updates, state = tx.update(grads, tx.init(params), params, kron=stats)
    >>> updates.weight.shape
    (1, 2)

    ```
    """
    scale = scale_by_mkor(
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
    )
    return complete(scale, learning_rate, base, weight_decay, mask)
