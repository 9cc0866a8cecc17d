"""The diagonal of a Gauss-Newton matrix from labels that the model draws itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._likelihoods import (
    Likelihood,
    check_outputs,
    find_likelihood,
    mean_weights,
)
from ._real import from_real
from ._tree import in_real, local, norm, split_key, widen


def gauss_newton_bartlett_diagonal(
    predict: Callable[[PyTree], Array],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    likelihood: str | Likelihood = "categorical",
    num_samples: int = 1,
    count: int | Array | None = None,
    mask: Array | None = None,
    clip_norm: float | int | None = None,
    axis_name: Any = None,
) -> PyTree:
    """Estimate the diagonal of the Gauss-Newton matrix from a gradient at drawn labels.

    Labels are drawn from the model's own distribution, one a term of the mean loss.
    With `g` the gradient of the mean of `B` losses at these labels, `B g^2` has the
    diagonal of the Gauss-Newton matrix of the mean loss as its mean: products of
    different terms vanish, for scores have mean zero. It is never negative, and needs
    no second derivative.

    **Arguments:**

    - `predict`: the network's outputs as a function of the parameters, the inputs
      closed over. Any leading axes (batch, sequence).
    - `params`: where the matrix is taken. A complex leaf counts as its real and
      imaginary parts.
    - `key`: a random key.
    - `likelihood`: `"categorical"`, `"bernoulli"`, `"gaussian"`, or a
      [`pathax.curvature.Likelihood`][].
    - `num_samples`: how many sets of labels are averaged over; each takes a backward
      pass, the forward pass is shared.
    - `count`: `B`, how many terms the mean loss has, if it is not their number in the
      outputs (over all shards).
    - `mask`: 1 for terms that count and 0 for those that don't (padding), one entry a
      term; `B` is then their number.
    - `clip_norm`: scale `g` to this norm if it is longer, before squaring. The authors'
      training code does so by clipping gradients. It makes the estimate too small
      whenever it acts, so it is off unless asked for.
    - `axis_name`: the mapped axis over which the batch is split. Shards draw labels of
      their own, and gradients are averaged before they are squared.

    **Returns:** a tree like `params`, in float32 at least; a complex leaf holds the
    entries of its two real coordinates as real and imaginary part.

    **Reference:** Liu et al., "Sophia: a scalable stochastic second-order optimizer for
    language model pre-training", arXiv:2305.14342, Algorithm 2.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> x = jnp.array([1.0, 3.0])
    >>> diag = px.curvature.gauss_newton_bartlett_diagonal(
    ...     lambda w: x * w, jnp.array(1.0), jax.random.key(0),
    ...     likelihood="gaussian", num_samples=10_000,
    ... )
    >>> round(float(diag), 0)  # the mean of x^2
    5.0

    ```
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1; got {num_samples}")
    model = find_likelihood(likelihood)
    f, x = in_real(predict, params)
    outputs, pull = jax.vjp(lambda x: check_outputs(f(x)), local(x, axis_name))
    mask, terms = mean_weights(model, outputs, count, mask)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        terms = terms if count is not None else jax.lax.psum(terms, axis_name)

    def total(outputs: Array, labels: Array) -> Array:
        losses = model.loss(outputs, labels)
        return jnp.sum(losses if mask is None else losses * mask.astype(losses.dtype))

    def squares(key: Array) -> PyTree:
        labels = model.sample(key, outputs)
        (summed,) = pull(jax.grad(total)(outputs, labels))
        summed = widen(summed)
        if axis_name is not None:
            summed = jax.lax.psum(summed, axis_name)
        mean = jax.tree.map(lambda g: g / terms.astype(g.dtype), summed)
        if clip_norm is not None:
            mean = _clip(mean, clip_norm)
        return jax.tree.map(lambda g: terms.astype(g.dtype) * g**2, mean)

    keys = split_key(key, num_samples)
    diag = squares(keys[0])
    if num_samples > 1:
        add = lambda sum_, key: (jax.tree.map(jnp.add, sum_, squares(key)), None)
        diag, _ = jax.lax.scan(add, diag, keys[1:])
        diag = jax.tree.map(lambda d: d / num_samples, diag)
    wide = jax.eval_shape(lambda p: widen(jax.tree.map(jnp.asarray, p)), params)
    return from_real(diag, wide)


def _clip(grads: PyTree, limit: float | int) -> PyTree:
    length = norm(grads)
    scale = jnp.minimum(1.0, limit / jnp.maximum(length, limit))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
