"""The steps of MKOR: inverse factors, preconditioning, and when to give both up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature import kron
from .._extras import is_due, require, when
from ._layer_blocks import Block, Blocks, check_shape, read_stats, trim
from ._moments import check_choice, check_range, one_more, scalar


_VARIANTS = ("exact", "leaky", "paper")
_HIGHEST = jax.lax.Precision.HIGHEST


class MKORState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_mkor`][].

    **Attributes:**

    - `count`: steps taken.
    - `inv_left`: for each layer the inverse factor of its outputs.
    - `inv_right`: for each layer the inverse factor of its inputs.
    - `max_abs`: the largest absolute entry of all inverse factors that the last refresh
      found, before its update. Rescaling hides factors that grow, so watch it.
    - `first_order`: whether MKOR-H has switched to plain gradients.
    - `loss_ema`: MKOR-H's running mean of the loss; infinite before the first.
    - `loss_checked`: what it was at the last check.
    - `best_rate`: the largest rate of decrease so far, slowly forgotten.
    - `bad_checks`: how many checks in a row fell short.
    """

    count: Array
    inv_left: tuple
    inv_right: tuple
    max_abs: Array
    first_order: Array
    loss_ema: Array
    loss_checked: Array
    best_rate: Array
    bad_checks: Array


class Rule(NamedTuple):
    """How inverse factors are kept."""

    gamma: Any
    zeta: Any
    threshold: Any
    variant: str
    leak: Any
    rescale: bool | str
    clip_stats: Any


class Switch(NamedTuple):
    """When MKOR-H gives up its factors."""

    check_every: Any
    ema_decay: Any
    ratio: Any
    best_decay: Any
    patience: Any


def check_rule(rule: Rule, update_interval: Any, warmup: Any) -> None:
    check_choice("variant", rule.variant, _VARIANTS)
    check_choice("rescale", rule.rescale, (True, False, "sum"))
    check_range("gamma", rule.gamma, 0, 1, closed=(False, False))
    check_range("zeta", rule.zeta, 0, 1, closed=(True, True))
    check_range("leak", rule.leak, 0, 1, closed=(True, True))
    check_range("threshold", rule.threshold, 0)
    check_range("clip_stats", rule.clip_stats, 0, closed=(False, False))
    check_range("update_interval", update_interval, 1)
    check_range("warmup", warmup, 0)
    numbers = all(isinstance(x, int | float) for x in (rule.zeta, rule.gamma))
    if numbers and rule.zeta >= rule.gamma:
        raise ValueError(
            "`zeta` must be less than `gamma`, or inverse factors grow without bound "
            f"where no statistic reaches; got zeta={rule.zeta}, gamma={rule.gamma}"
        )


# Inverse factors --------------------------------------------------------------------


class Blend(NamedTuple):
    """`keep M + add I`, what an inverse factor `M` becomes before its update."""

    keep: Any
    add: Any


def stabilizer(largest: Array, threshold: Any, zeta: Any) -> Blend:
    """A blend with the identity where the largest entry is above the threshold."""
    over = largest > scalar(threshold, largest)
    one, zero = jnp.ones((), largest.dtype), jnp.zeros((), largest.dtype)
    keep = jnp.where(over, scalar(zeta, largest), one)
    return Blend(keep, jnp.where(over, scalar(1 - zeta, largest), zero))


def _identity(m: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)


def rank_one(
    m: Array, u: Array, variant: str, gamma: Any, leak: Any, blend: Blend
) -> Array:
    """The blend of an inverse factor after a statistic `u`; leading axes are factors.

    The blend is never written down by itself: a pass over a factor takes as long as its
    product with a vector.
    """
    keep, add = blend
    if variant == "leaky":
        rest = scalar(1 - leak, m)
        keep, add = rest * keep, rest * add + scalar(leak, m)
    mu = jnp.einsum("...ij,...j->...i", m, u, precision=_HIGHEST)
    mu = keep[..., 0] * mu + add[..., 0] * u
    square = jnp.sum(u * mu, axis=-1)[..., None, None]
    outer = mu[..., :, None] * mu[..., None, :]
    m = keep * m + add * _identity(m)
    if variant == "leaky":
        return m - outer / (1 + square)
    g, rest = scalar(gamma, m), scalar(1 - gamma, m)
    if variant == "paper":
        return g * m + rest / (g**2 * (1 + g * rest * square)) * outer
    m = m - rest / (g + rest * square) * outer
    # Not divided by gamma: of a number that is close to one float32 knows less than of
    # its distance from one, and forty refreshes would multiply the difference.
    return m + scalar((1 - gamma) / gamma, m) * m


def _refreshed(m: Array, u: Array, rule: Rule, dtype: Any) -> tuple[Array, Array]:
    """The inverse factor after a statistic, and the largest entry it had before."""
    limit = scalar(rule.clip_stats, u)
    u = jnp.clip(u, -limit, limit)
    wide = m.astype(dtype)
    # Of a positive definite matrix the largest entry is on the diagonal.
    diagonal = jnp.diagonal(wide, axis1=-2, axis2=-1)
    largest = jnp.max(jnp.abs(diagonal), axis=-1)[..., None, None]
    blend = stabilizer(largest, rule.threshold, rule.zeta)
    new = rank_one(wide, u, rule.variant, rule.gamma, rule.leak, blend)
    return new.astype(m.dtype), jnp.max(largest).astype(jnp.float32)


def _means(block: Block, stat: kron.LayerStats, matrix: Array) -> tuple[Array, Array]:
    """Means of inputs and of output cotangents; the latter are the bias gradient if
    not given."""
    a = trim(block, stat.a_mean, axes=1)
    if stat.g_mean is not None:
        g = jnp.asarray(stat.g_mean).astype(block.dtype)
    elif block.bias is not None:
        g = matrix[..., -1]
    else:
        raise ValueError(
            f"the layer {block.spec.weight_path} has no bias gradient, so its "
            "statistics need `g_mean`"
        )
    check_shape(block, g, block.shape[:-1], "outputs")
    return a, g


def refresh(
    rule: Rule, blocks: Blocks, matrices: list, stats: Any, state: MKORState
) -> tuple[tuple, tuple, Array]:
    means = blocks.map(_means, stats, matrices)

    def one(side: int) -> tuple[tuple, list[Array]]:
        factors = state.inv_left if side else state.inv_right
        new = lambda block, m, mean: _refreshed(m, mean[side], rule, block.dtype)
        pairs = blocks.map(new, factors, means)
        found = [pair for pair in pairs if pair is not None]
        return tuple(pair and pair[0] for pair in pairs), [top for _, top in found]

    (inv_right, tops), (inv_left, more) = one(0), one(1)
    largest = jnp.zeros((), jnp.float32)
    for top in (*tops, *more):
        largest = jnp.maximum(largest, top)
    return inv_left, inv_right, largest


def _length(block: Block, matrix: Array, rescale: bool | str) -> Array:
    """The norm of a layer's matrix, as the authors' package takes it for `"sum"`."""
    axes = block.axes()
    if rescale != "sum" or block.bias is None:
        return jnp.sqrt(jnp.sum(matrix**2, axis=axes, keepdims=True))
    parts = (matrix[..., :-1], matrix[..., -1:])
    weight, bias = (jnp.sum(part**2, axis=axes, keepdims=True) for part in parts)
    return jnp.sqrt(weight) + jnp.sqrt(bias)


def precondition(
    rule: Rule, blocks: Blocks, matrices: list, inv_left: tuple, inv_right: tuple
) -> PyTree:
    def one(block: Block, matrix: Array, left: Array, right: Array) -> Array:
        left, right = left.astype(block.dtype), right.astype(block.dtype)
        step = left @ matrix @ right
        if rule.rescale is False:
            return step
        before, after = (_length(block, x, rule.rescale) for x in (matrix, step))
        known = after > 0
        return step * jnp.where(known, before / jnp.where(known, after, 1), 1)

    return blocks.replaced(blocks.map(one, matrices, inv_left, inv_right))


# Switch -----------------------------------------------------------------------------


def watch(switch: Switch, state: MKORState, value: Any, count: Array) -> MKORState:
    """Follow the loss, and switch to first order when its decrease has slowed down."""
    dtype = state.loss_ema.dtype
    value = jnp.asarray(value).astype(dtype)
    started = jnp.isfinite(state.loss_ema)
    decay = scalar(switch.ema_decay, value)
    ema = jnp.where(started, decay * state.loss_ema + (1 - decay) * value, value)
    ema = jnp.where(jnp.isfinite(value), ema, state.loss_ema)

    previous = jnp.where(jnp.isfinite(state.loss_checked), state.loss_checked, ema)
    tiny = jnp.asarray(1e-12, dtype)
    rate = (previous - ema) / jnp.maximum(jnp.abs(previous), tiny)
    best = jnp.maximum(state.best_rate * scalar(switch.best_decay, rate), rate)
    bad = jnp.where(
        rate < scalar(switch.ratio, rate) * best, one_more(state.bad_checks), 0
    )
    due = (count % switch.check_every == 0) & jnp.isfinite(rate)
    keep = lambda new, old: jnp.where(due, new, old)
    bad = keep(bad, state.bad_checks)
    first = jnp.isinf(state.loss_checked) & jnp.isfinite(ema)
    return state._replace(
        loss_ema=ema,
        loss_checked=jnp.where(first, ema, keep(ema, state.loss_checked)),
        best_rate=keep(best, state.best_rate),
        bad_checks=bad,
        first_order=state.first_order | (bad >= switch.patience),
    )


# Transformation ---------------------------------------------------------------------


def _initial(blocks: Blocks, factor_dtype: Any) -> MKORState:
    def identities(side: int) -> tuple:
        one = lambda block: block.identity(side, factor_dtype or block.dtype)
        return tuple(blocks.map(one))

    widest = [b.dtype for b in blocks.all if b is not None]
    dtype = max(widest, key=lambda d: jnp.finfo(d).bits, default=jnp.float32)
    return MKORState(
        count=jnp.zeros((), jnp.int32),
        inv_left=identities(-2),
        inv_right=identities(-1),
        max_abs=jnp.ones((), jnp.float32),
        first_order=jnp.zeros((), bool),
        loss_ema=jnp.asarray(jnp.inf, dtype),
        loss_checked=jnp.asarray(jnp.inf, dtype),
        best_rate=jnp.zeros((), dtype),
        bad_checks=jnp.zeros((), jnp.int32),
    )


def transform(
    name: str,
    rule: Rule,
    switch: Switch | None,
    layers: Sequence[kron.LayerSpec] | None,
    update_interval: Any,
    factor_dtype: Any,
    warmup: Any,
) -> optax.GradientTransformationExtraArgs:
    check_rule(rule, update_interval, warmup)

    def due_now(state: MKORState, extra: dict) -> bool | Array:
        due = is_due(state.count, update_interval, extra)
        none = isinstance(warmup, int) and warmup == 0
        if isinstance(due, bool) or extra.get("update_curvature") is not None or none:
            return due
        return due | (state.count < warmup)

    def second_order(updates: PyTree, state: MKORState, extra: dict) -> Any:
        blocks = Blocks(updates, layers, name)
        matrices = blocks.matrices()

        def renew(state: MKORState) -> Any:
            stats = read_stats(extra, blocks, name)
            return refresh(rule, blocks, matrices, stats, state)

        def keep(state: MKORState) -> Any:
            return state.inv_left, state.inv_right, state.max_abs

        factors = when(due_now(state, extra), renew, keep, state)
        inv_left, inv_right, max_abs = factors
        steps = precondition(rule, blocks, matrices, inv_left, inv_right)
        return steps, inv_left, inv_right, max_abs

    def init(params: PyTree) -> MKORState:
        return _initial(Blocks(params, layers, name), factor_dtype)

    def update(updates, state, params=None, **extra):
        del params
        count = one_more(state.count)
        if switch is None:
            steps, *factors = second_order(updates, state, extra)
        else:
            state = watch(switch, state, require(extra, "value", name), count)
            steps, *factors = jax.lax.cond(
                state.first_order,
                lambda u, s: (u, s.inv_left, s.inv_right, s.max_abs),
                lambda u, s: second_order(u, s, extra),
                updates,
                state,
            )
        left, right, largest = factors
        return steps, state._replace(
            count=count, inv_left=left, inv_right=right, max_abs=largest
        )

    return optax.GradientTransformationExtraArgs(init, update)
