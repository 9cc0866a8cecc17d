"""What KFAC and EKFAC share: running factors, their bases, and a limit of the step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ...curvature import kron
from .._extras import is_due, when
from ._layer_blocks import Block, Blocks, check_shape, read_stats, trim
from ._moments import Scalar, check_range, correction, mean_update, one_more, scalar


def check_settings(
    damping: Any,
    decay: Any,
    intervals: tuple[Any, Any],
    kl_clip: Any,
    learning_rate: Any,
) -> None:
    """Errors for hyperparameters out of range."""
    check_range("damping", damping, 0, closed=(False, False))
    check_range("decay", decay, 0, 1)
    check_range("update_interval", intervals[0], 1)
    check_range("inverse_interval", intervals[1], 1)
    check_range("kl_clip", kl_clip, 0, closed=(False, False))
    if kl_clip is not None and learning_rate is None:
        raise ValueError(
            "`kl_clip` limits the step as it will be taken, so it needs the "
            "`learning_rate` that is applied later"
        )


# Factors ----------------------------------------------------------------------------


def zero_factors(blocks: Blocks) -> tuple[tuple, tuple]:
    """Factors of outputs and of inputs before the first statistics."""

    def zeros(side: int) -> tuple:
        one = lambda block: jnp.zeros_like(block.identity(side, block.dtype))
        return tuple(blocks.map(one))

    return zeros(-2), zeros(-1)


def identities(blocks: Blocks) -> tuple[tuple, tuple]:
    """Identities of the sizes of outputs and of inputs."""

    def one(side: int) -> tuple:
        return tuple(blocks.map(lambda block: block.identity(side, block.dtype)))

    return one(-2), one(-1)


def _symmetric(x: Array) -> Array:
    return (x + x.swapaxes(-1, -2)) / 2


def _statistics(block: Block, stat: kron.LayerStats) -> tuple[Array, Array]:
    if stat.a_factor is None or stat.g_factor is None:
        raise ValueError(
            "KFAC needs second moments of the layers; write "
            'pathax.curvature.kron.value_and_grad(loss, stats="factors")'
        )
    g = jnp.asarray(stat.g_factor).astype(block.dtype)
    size = block.shape[-2]
    check_shape(block, g, (*block.lead, size, size), "outputs")
    return _symmetric(g), _symmetric(trim(block, stat.a_factor, axes=2))


def running_factors(
    blocks: Blocks,
    stats: Sequence[kron.LayerStats],
    left: tuple,
    right: tuple,
    decay: Any,
) -> tuple[tuple, tuple]:
    """Running means of the factors with new statistics."""
    new = blocks.map(_statistics, stats)
    lefts, rights = (
        tuple(None if pair is None else pair[side] for pair in new) for side in (0, 1)
    )
    return mean_update(lefts, left, decay), mean_update(rights, right, decay)


def unbiased(factors: tuple, decay: Any, refreshes: Array) -> list[Any]:
    """Running means that started from zero, divided by the sum of their weights."""
    total = correction(decay, jnp.maximum(refreshes, 1))
    return [None if f is None else f / scalar(total, f) for f in factors]


def eigenbasis(factor: Array) -> tuple[Array, Array]:
    """Eigenvalues, not below zero, and eigenvectors."""
    values, vectors = jnp.linalg.eigh(factor)
    return jnp.maximum(values, 0), vectors


def rotate(left: Array, matrix: Array, right: Array) -> Array:
    """`Q_S^T W Q_A`."""
    return left.swapaxes(-1, -2) @ matrix @ right


def rotate_back(left: Array, matrix: Array, right: Array) -> Array:
    """`Q_S W Q_A^T`."""
    return left @ matrix @ right.swapaxes(-1, -2)


def refresh_factors(
    name: str,
    blocks: Blocks,
    state: Any,
    extra: Mapping[str, Any],
    decay: Any,
    interval: Any,
) -> Any:
    """The state with new factors, if they are due."""

    def renew(state: Any) -> Any:
        stats = read_stats(extra, blocks, name)
        left, right = running_factors(blocks, stats, state.left, state.right, decay)
        count = one_more(state.refreshes)
        return state._replace(left=left, right=right, refreshes=count)

    due = is_due(state.count, interval, extra)
    return when(due, renew, lambda state: state, state)


# Limit ------------------------------------------------------------------------------


def kl_limited(
    blocks: Blocks,
    matrices: Sequence[Any],
    steps: Sequence[Any],
    kl_clip: Scalar | None,
    learning_rate: Any,
    count: Array,
) -> list[Any]:
    """Steps scaled down where their squared length in the Fisher metric is too long."""
    if kl_clip is None:
        return list(steps)
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    products = blocks.map(lambda _, w, d: jnp.sum(w * d), matrices, steps)
    found = [p for p in products if p is not None]
    if not found:
        return list(steps)
    dtype = max((p.dtype for p in found), key=lambda d: jnp.finfo(d).bits)
    total = sum((p.astype(dtype) for p in found), jnp.zeros((), dtype))
    total = jnp.abs(total) * scalar(rate, total) ** 2
    safe = jnp.where(total > 0, total, 1)
    factor = jnp.sqrt(jnp.where(total > 0, scalar(kl_clip, total) / safe, 1))
    factor = jnp.minimum(1, factor)
    return blocks.map(lambda _, d: d * factor.astype(d.dtype), steps)
