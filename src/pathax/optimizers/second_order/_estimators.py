"""Estimates of curvature as transformations, with a random key for a state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature import (
    Likelihood,
    gauss_newton_bartlett_diagonal,
    hutchinson_diagonal,
)
from ...curvature._binding import is_masked
from ...curvature._tree import wide_dtype
from .._extras import objective, require, require_params


class EstimatorState(NamedTuple):
    """The state of an estimator of curvature.

    **Attributes:**

    - `key`: the data of a random key, as plain integers.
    """

    key: Array


def key_words(key: int | Array) -> Array:
    """The data of a key of JAX's default kind, made from a key of any kind."""
    if isinstance(key, int):
        key = jax.random.key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    words = jax.random.key_data(key)
    usual = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if words.shape != usual.shape:
        return jax.random.bits(key, usual.shape, jnp.uint32)
    return words


_OR_DIAGONAL = "hessian_diag=, the diagonal or a function that returns it"


def _from_key(
    estimate: Callable[[Array, Any, Mapping[str, Any]], PyTree], key: int | Array
) -> optax.GradientTransformationExtraArgs:
    """A transformation around `estimate(key, params, extra)`."""

    def init(params: PyTree) -> EstimatorState:
        del params
        return EstimatorState(key_words(key))

    def update(updates, state, params=None, **extra):
        del updates
        given = extra.get("key")
        if given is not None:
            return _explained(estimate, given, params, extra), state
        following, now = jax.random.split(state.key)
        return _explained(estimate, now, params, extra), EstimatorState(following)

    return optax.GradientTransformationExtraArgs(init, update)


def _explained(
    estimate: Callable, key: Array, params: PyTree, extra: Mapping
) -> PyTree:
    try:
        return estimate(key, params, extra)
    except Exception as error:
        parts = jax.tree.leaves(params, is_leaf=is_masked)
        if any(map(is_masked, parts)):
            error.add_note(
                "Some parameters are masked. If the function of the parameters needs "
                "them all, write pathax.curvature.bind(fn, params) instead of fn."
            )
        raise


def hutchinson_estimator(
    key: int | Array = 0,
    *,
    num_samples: int = 1,
    distribution: str = "rademacher",
    hvp_mode: str = "fwd_over_rev",
    absolute: bool = False,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Hutchinson's estimate of a Hessian diagonal, as a transformation.

    Its updates are the estimate, not a step. It takes the place of
    `optax.contrib.hutchinson_estimator_diag_hessian`, and needs the extra argument
    `obj_fn` (or `value_fn`).

    **Arguments:**

    - `key`: where the random vectors come from: a seed or a key. The extra argument
      `key` of `update` replaces the state's key in that call.
    - `num_samples`, `distribution`, `hvp_mode`, `absolute`, `axis_name`: see
      [`pathax.curvature.hutchinson_diagonal`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> estimator = px.optimizers.hutchinson_estimator()
    >>> params = jnp.array([1.0, 2.0])
    >>> state = estimator.init(params)
    >>> diag, state = estimator.update(
    ...     params, state, params, obj_fn=lambda p: jnp.sum(p**4)
    ... )
    >>> diag
    Array([12., 48.], dtype=float32)

    ```
    """

    def estimate(key: Array, params: PyTree, extra: Mapping[str, Any]) -> PyTree:
        return hutchinson_diagonal(
            objective(extra, "hutchinson_estimator", _OR_DIAGONAL),
            require_params(params, "hutchinson_estimator"),
            key,
            num_samples=num_samples,
            distribution=distribution,
            hvp_mode=hvp_mode,
            absolute=absolute,
            axis_name=axis_name,
        )

    return _from_key(estimate, key)


def bartlett_estimator(
    key: int | Array = 0,
    *,
    likelihood: str | Likelihood = "categorical",
    num_samples: int = 1,
    count: int | None = None,
    clip_norm: float | int | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The Gauss-Newton-Bartlett estimate of a diagonal, as a transformation.

    Its updates are the estimate, not a step. It needs the extra argument `predict_fn`,
    the network's outputs as a function of the parameters.

    **Arguments:**

    - `key`: where the labels come from: a seed or a key. The extra argument `key` of
      `update` replaces the state's key in that call.
    - `likelihood`, `num_samples`, `count`, `clip_norm`, `axis_name`: see
      [`pathax.curvature.gauss_newton_bartlett_diagonal`][]. For a batch with a mask,
      call that function and give its result as `hessian_diag`.

    **Returns:** an `optax.GradientTransformationExtraArgs`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> estimator = px.optimizers.bartlett_estimator(likelihood="bernoulli")
    >>> params = jnp.array([0.0, 0.0])
    >>> state = estimator.init(params)
    >>> x = jnp.array([[2.0, 0.0]])
    >>> predict = lambda p: x @ p
    >>> diag, state = estimator.update(params, state, params, predict_fn=predict)
    >>> diag  # x^2 / 4, for one example whatever its label
    Array([1., 0.], dtype=float32)

    ```
    """

    def estimate(key: Array, params: PyTree, extra: Mapping[str, Any]) -> PyTree:
        return gauss_newton_bartlett_diagonal(
            require(extra, "predict_fn", "bartlett_estimator", _OR_DIAGONAL),
            require_params(params, "bartlett_estimator"),
            key,
            likelihood=likelihood,
            num_samples=num_samples,
            count=count,
            clip_norm=clip_norm,
            axis_name=axis_name,
        )

    return _from_key(estimate, key)


# What a transformation asks ---------------------------------------------------------


def _is_thunk(given: Any, updates: PyTree) -> bool:
    """Whether this is a function and not a tree; a model is a tree, and callable."""
    same = jax.tree.structure(given) == jax.tree.structure(updates)
    arrays = all(map(eqx.is_array_like, jax.tree.leaves(given)))
    return callable(given) and not (same and arrays)


def curvature_diagonal(
    estimator: optax.GradientTransformationExtraArgs,
    state: Any,
    updates: PyTree,
    params: PyTree,
    extra: Mapping[str, Any],
) -> tuple[PyTree, Any]:
    """A diagonal like the updates, in single precision at least, and the next state.

    The extra `hessian_diag` comes first, then the estimator.
    """
    diag = extra.get("hessian_diag")
    if diag is None:
        diag, state = estimator.update(updates, state, params, **extra)
    elif _is_thunk(diag, updates):
        diag = diag()
    if jax.tree.structure(diag) != jax.tree.structure(updates):
        raise ValueError(
            "the curvature must be a tree like the gradient, "
            f"{jax.tree.structure(updates)}; got {jax.tree.structure(diag)}. Under "
            "optax.masked a tree `hessian_diag` needs mask_compatible_extra_args=True"
        )
    return jax.tree.map(lambda d: jnp.asarray(d, wide_dtype(d.dtype)), diag), state
