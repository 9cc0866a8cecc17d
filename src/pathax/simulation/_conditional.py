"""Coordinates with conditional scales, fitted to positions and gradients of chains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ._coordinates import ConditionalScale
from ._mass import adapted


# Steps of the fit, and its pull of the rates to zero, for as many points as dimensions.
_STEPS, _PULL = 150, 0.01


class _Points:
    """Positions and gradients, in units of a scale each, to fit a map to."""

    def __init__(self, x: np.ndarray, g: np.ndarray, capacity: int):
        spare = (0, max(capacity - len(x), 0)), (0, 0)
        factor = adapted(np.ones(x.shape[1]), x, g, "dense")
        self.scale = np.sqrt(np.sum(factor**2, axis=1))
        self.padded = np.pad(x / self.scale, spare), np.pad(g * self.scale, spare)
        self.weights = np.pad(np.full(len(x), 1 / len(x)), spare[0])
        self.pull = _PULL * x.shape[1] / len(x)

    def fit(self, start: ConditionalScale) -> tuple[float, ConditionalScale]:
        """The loss, infinite if it is no number, and the map where it is least."""
        order = np.asarray(start.order)
        scale = self.scale[order]
        points = [part[:, order] for part in self.padded]
        begin = (
            start.centre / scale,
            start.shift / scale[:, None],
            start.log_scale - np.log(scale),
            start.rates,
        )
        dtype = jnp.result_type(float)
        begin, points, weights, pull = jax.tree.map(
            lambda part: jnp.asarray(part, dtype),
            (begin, points, self.weights, self.pull),
        )
        found, loss = _fit(begin, *points, weights, pull)
        parts = (np.asarray(part, np.float64) for part in found)
        centre, shift, log_scale, rates = parts
        found = ConditionalScale(
            order,
            centre * scale,
            np.tril(shift, -1) * scale[:, None],
            log_scale + np.log(scale),
            np.tril(rates, -1),
        )
        return (float(loss) if np.isfinite(loss) else np.inf), found


def conditional(
    x: np.ndarray,
    g: np.ndarray,
    capacity: int,
    before: ConditionalScale | None = None,
) -> ConditionalScale:
    """The map that makes gradients at `x`, `(n, d)`, those of a normal density.

    In the map's coordinates a normal density has `g = z`. What is left of `g - z` is
    the Fisher divergence's integrand; here it is counted by pseudo-Huber losses, so
    that few points where the map is far off don't decide alone.

    One fit begins with the Cholesky factor of the linear estimate; another one where
    an earlier one, of other points, ended. The better one counts.

    `capacity` is the largest number of points there will be, for one compilation.
    """
    points = _Points(x, g, capacity)
    order = _ordered(x, g)
    factor = adapted(np.ones(x.shape[1]), x[:, order], g[:, order], "dense")
    linear = ConditionalScale(
        order,
        np.median(x[:, order], axis=0),
        np.tril(factor, -1),
        np.log(np.diag(factor)),
        np.zeros_like(factor),
    )
    starts = [linear] if before is None else [linear, before]
    loss, found = min((points.fit(start) for start in starts), key=lambda fit: fit[0])
    return found if np.isfinite(loss) else starts[-1]


def _ordered(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Entries by how much more they say of others' gradients than others of theirs.

    Where a scale depends on an entry, so does the size of the gradient there; a rank
    correlation sees it without knowing how.
    """
    ranks = lambda values: np.argsort(np.argsort(values, axis=0), axis=0)
    size = x.shape[1]
    both = np.concatenate([ranks(np.abs(g)), ranks(x)], axis=1)
    rho = np.asarray(np.corrcoef(both.T))[:size, size:]
    np.fill_diagonal(rho, 0)
    said = (rho**2).sum(0) - (rho**2).sum(1)
    return np.argsort(-said, kind="stable")


_Parameters = tuple[Array, Array, Array, Array]


def _residual(
    parameters: _Parameters, u: Float[Array, " d"], g: Float[Array, " d"]
) -> Float[Array, " d"]:
    """`g - z` of one point, in the coordinates of the map."""
    centre, shift, log_scale, rates = parameters

    def solve(z, row):
        i, u, centre, shift, log_scale, rates = row
        entry = (u - centre - shift @ z) * jnp.exp(-log_scale - rates @ z)
        return z.at[i].set(entry), None

    rows = jnp.arange(len(u)), u, centre, shift, log_scale, rates
    z = jax.lax.scan(solve, jnp.zeros_like(u), rows)[0]
    scale = jnp.exp(log_scale + rates @ z)
    return shift.T @ g + scale * g + rates.T @ (g * scale * z - 1) - z


@jax.jit
def _fit(start, u, g, weights, pull) -> tuple[Any, Array]:
    lower = jnp.tril(jnp.ones_like(pull, shape=(u.shape[1], u.shape[1])), -1)

    def loss(parameters):
        centre, shift, log_scale, rates = parameters
        parameters = centre, lower * shift, log_scale, lower * rates
        left = jax.vmap(lambda u, g: _residual(parameters, u, g))(u, g)
        huber = jnp.sum(jnp.sqrt(1 + left**2) - 1, axis=1)
        return weights @ huber + pull * jnp.sum((lower * rates) ** 2)

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        parameters, state = carry
        value, grad = value_and_grad(parameters, state=state)
        updates, state = tx.update(
            grad, state, parameters, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(parameters, updates), state), None

    carry = start, tx.init(start)
    (found, _), _ = jax.lax.scan(step, carry, length=_STEPS)
    return found, loss(found)
