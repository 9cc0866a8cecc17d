"""Running means of gradients and curvatures, leaf by leaf, in real coordinates."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature._tree import wide_dtype


Scalar = float | int | Array


def by_parts(fn: Callable[..., Array], *leaves: Array) -> Array:
    """`fn` of real arrays, on the real and imaginary parts of complex ones."""
    if not jnp.iscomplexobj(leaves[0]):
        return fn(*leaves)
    real = fn(*(jnp.real(x) for x in leaves))
    return jax.lax.complex(real, fn(*(jnp.imag(x) for x in leaves)))


def scalar(value: Any, like: Array) -> Array:
    """A hyperparameter, given or traced, in the dtype of a leaf."""
    if isinstance(value, int | float):
        return jnp.asarray(value, like.dtype)
    return jnp.asarray(value).astype(like.dtype)


def wide(leaf: Array) -> Array:
    """The leaf in single precision at least."""
    return leaf.astype(wide_dtype(leaf.dtype))


def mean_update(new: PyTree, old: PyTree, decay: Any) -> PyTree:
    """`decay old + (1 - decay) new`, in single precision at least."""
    rest = 1 - decay  # before rounding to the dtype of a leaf

    def one(x: Array, mean: Array) -> Array:
        x = wide(x)
        mean = mean.astype(x.dtype)
        return scalar(rest, x) * x + scalar(decay, x) * mean

    return jax.tree.map(one, new, old)


def one_more(count: Array) -> Array:
    """The next count, which stops at the largest that its dtype holds."""
    return jnp.asarray(optax.safe_increment(count))


def correction(decay: Any, count: Array) -> Array:
    """`1 - decay^count`, which the first terms of a running mean weigh together.

    As `-expm1(count log(decay))`: in float32 the plain formula loses half of its digits
    for a decay close to one.
    """
    if isinstance(decay, int | float):
        log = jnp.asarray(math.log(decay) if decay else -math.inf)
    else:
        log = jnp.log(decay)
    return -jnp.expm1(count.astype(log.dtype) * log)


def adam(b1: Any, b2: Any, eps: Any) -> optax.GradientTransformation:
    """`optax.scale_by_adam` and its state, with corrections that keep their digits.

    Its own lose half of them in the first steps in float32.
    """

    def step(m: Array, v: Array, scales: tuple[Array, Array]) -> Array:
        first, second = (scalar(s, v) for s in scales)
        root = jnp.sqrt(v / second) + scalar(eps, v)
        return m / (first * root).astype(m.dtype)

    def update(updates, state, params=None):
        del params
        count = one_more(state.count)
        squares = jax.tree.map(lambda g: jnp.abs(wide(g)) ** 2, updates)
        real = jax.tree.map(jnp.real, state.nu)
        mu, nu = mean_update(updates, state.mu, b1), mean_update(squares, real, b2)
        scales = correction(b1, count), correction(b2, count)
        steps = jax.tree.map(lambda m, v: step(m, v, scales), mu, nu)
        mu, nu = cast_like(mu, state.mu), cast_like(nu, state.nu)
        return steps, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def zeros_moment(params: PyTree, dtype: Any = None) -> PyTree:
    """Zeros like the parameters, in that dtype if they are real."""

    def zeros(p: Array) -> Array:
        keep = dtype is None or jnp.iscomplexobj(p)
        return jnp.zeros_like(p, dtype=None if keep else dtype)

    return jax.tree.map(zeros, params)


def zeros_wide(params: PyTree) -> PyTree:
    """Zeros like the parameters, in single precision at least."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p.dtype)), params)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


# Hyperparameters --------------------------------------------------------------------


def check_range(
    name: str,
    value: Any,
    low: float | int,
    high: float | int = math.inf,
    *,
    closed: tuple[bool, bool] = (True, False),
) -> None:
    """An error if a given number is out of range; traced ones pass."""
    if not isinstance(value, int | float):
        return
    above = value >= low if closed[0] else value > low
    below = value <= high if closed[1] else value < high
    if not (above and below):
        left, right = "[("[not closed[0]], "])"[not closed[1]]
        raise ValueError(f"`{name}` must be in {left}{low}, {high}{right}; got {value}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """An error if a choice is none of those that there are."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be one of {listed}; got {value!r}")
