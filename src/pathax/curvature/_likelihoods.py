"""What a network's outputs mean: the distribution of labels that they stand for.

Sampled labels (Gauss-Newton-Bartlett), and the Hessian of a loss in the outputs (GGN),
both come from here, so that the two agree about what is averaged over.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._tree import wide_dtype


@dataclass(frozen=True)
class Likelihood:
    """A distribution of labels given a network's outputs.

    The training loss is the mean of `loss` over all its entries.

    **Attributes:**

    - `sample`: `sample(key, outputs)`, labels drawn from the distribution.
    - `loss`: `loss(outputs, labels)`, the negative log-likelihoods up to a constant, as
      an array with one entry a term of the mean.
    - `hessian`: `hessian(outputs, v)`, the Hessian in the outputs of the *sum* of
      losses, times `v`; or `None`, if only sampled labels are needed.

    By name there are `"categorical"` (logits in the last axis; one term for each
    position of the other axes), `"bernoulli"` (logits; every entry is a term) and
    `"gaussian"` (`|f - y|^2 / 2` summed over the last axis, one term for each position
    of the other axes; outputs with one axis are a batch of scalars).
    """

    sample: Callable[[Array, Array], Array]
    loss: Callable[[Array, Array], Array]
    hessian: Callable[[Array, Array], Array] | None = None


# Named distributions ----------------------------------------------------------------


def _categorical_loss(logits: Array, labels: Array) -> Array:
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _categorical_hessian(logits: Array, v: Array) -> Array:
    p = jax.nn.softmax(logits, axis=-1)
    return p * v - p * jnp.sum(p * v, axis=-1, keepdims=True)


def _bernoulli_sample(key: Array, logits: Array) -> Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


def _bernoulli_hessian(logits: Array, v: Array) -> Array:
    return jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits) * v


def _gaussian_loss(outputs: Array, labels: Array) -> Array:
    squares = (outputs - labels) ** 2 / 2
    return jnp.sum(squares, axis=-1) if outputs.ndim >= 2 else squares


_NAMED: dict[str, Likelihood] = {
    "categorical": Likelihood(
        sample=lambda key, logits: jax.random.categorical(key, logits, axis=-1),
        loss=_categorical_loss,
        hessian=_categorical_hessian,
    ),
    "bernoulli": Likelihood(
        sample=_bernoulli_sample,
        loss=lambda logits, labels: jax.nn.softplus(logits) - labels * logits,
        hessian=_bernoulli_hessian,
    ),
    "gaussian": Likelihood(
        sample=lambda key, mean: mean + jax.random.normal(key, mean.shape, mean.dtype),
        loss=_gaussian_loss,
        hessian=lambda mean, v: v,
    ),
}


def find_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The record of that name, or the record itself."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in _NAMED:
        names = ", ".join(map(repr, _NAMED))
        raise ValueError(
            f"there is no likelihood {likelihood!r}; write one of {names}, or a "
            "pathax.curvature.Likelihood"
        )
    return _NAMED[likelihood]


# Means ------------------------------------------------------------------------------


def check_outputs(outputs: Any) -> Array:
    """The outputs as one real array, which a named distribution is about."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1 or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        found = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
        raise TypeError(
            "a likelihood needs outputs that are one real floating-point array; "
            f"`predict` returned {', '.join(found) or 'no array'}"
        )
    return leaves[0]


def _loss_shape(likelihood: Likelihood, outputs: Array) -> tuple[int, ...]:
    def losses(key, outputs):
        return likelihood.loss(outputs, likelihood.sample(key, outputs))

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(losses, key, outputs).shape


def _check_mask(mask: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    mask = jnp.asarray(mask)
    if mask.shape != shape:
        raise ValueError(
            f"`mask` must have one entry a term of the mean, shape {shape}; "
            f"got {mask.shape}"
        )
    return mask.astype(dtype)


def mean_weights(
    likelihood: Likelihood, outputs: Array, count: Any, mask: Any
) -> tuple[Array | None, Array]:
    """The mask, and the number of terms of the mean, in single precision at least."""
    shape, dtype = _loss_shape(likelihood, outputs), wide_dtype(outputs.dtype)
    if mask is not None:
        mask = _check_mask(mask, shape, dtype)
    if count is None:
        count = math.prod(shape) if mask is None else jnp.sum(mask)
    return mask, jnp.asarray(count, dtype)


def output_hessian(
    likelihood: Likelihood, outputs: Array, count: Any, mask: Any
) -> Callable[[Array], Array]:
    """`v -> H v`, `H` the Hessian of the mean loss in the outputs."""
    product = likelihood.hessian
    if product is None:
        raise ValueError(
            "this likelihood has no `hessian`; write Likelihood(sample, loss, "
            "hessian=lambda outputs, v: ...)"
        )
    mask, count = mean_weights(likelihood, outputs, count, mask)

    def apply(v: Array) -> Array:
        out = product(outputs, v).astype(count.dtype)
        if mask is not None:
            events = out.ndim - mask.ndim
            out = out * mask.reshape(mask.shape + (1,) * events)
        return (out / count).astype(v.dtype)

    return apply
