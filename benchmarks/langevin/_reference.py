"""Independent draws of a posterior, by neither of the samplers that are compared.

Importance sampling from a multivariate t distribution with the mode and the curvature
there, then from one fitted to the weighted draws, then resampling. Its effective
number of draws is reported. Where it is too small, as for a set with few rows and many
columns, a long run of NUTS by chains of its own stands in.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

import pathax as px

from ._samplers import nuts, thinned
from ._targets import TARGETS, Target


POINTS = 8192  # for a distance
_DEGREES, _DRAWS, _ROUNDS = 12.0, 40_000, 3
_ENOUGH = 10_000  # effective draws


class Reference(NamedTuple):
    """Draws, and how many independent ones they are worth."""

    x: np.ndarray
    effective: float


def _mode(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """The least potential, and the inverse of its curvature, by Newton's method."""
    gradient = jax.jit(jax.grad(target.potential))
    hessian = jax.jit(jax.hessian(target.potential))
    x = np.zeros(target.dimension, np.float32)
    for _ in range(25):
        x = x - np.linalg.solve(hessian(x), gradient(x))
    return np.asarray(x, np.float64), np.linalg.inv(np.asarray(hessian(x), np.float64))


def _weighted(target: Target, mean, covariance, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the t distribution, and their normalized weights."""
    d, n = target.dimension, _DEGREES
    factor = np.linalg.cholesky(covariance)
    z = rng.normal(size=(_DRAWS, d)) / np.sqrt(rng.chisquare(n, (_DRAWS, 1)) / n)
    x = (mean + z @ factor.T).astype(np.float32)
    log_t = (
        gammaln((n + d) / 2)
        - gammaln(n / 2)
        - (n + d) / 2 * np.log1p(np.sum(z**2, 1) / n)
    )
    batches = jnp.asarray(x.reshape(-1, 1000, d))
    value = jax.jit(lambda x: jax.lax.map(jax.vmap(target.potential), x))(batches)
    log = -np.asarray(value, np.float64).reshape(-1) - log_t
    weight = np.exp(log - log.max())
    return x, weight / weight.sum()


@functools.cache
def reference(name: str) -> Reference:
    """Exact draws where they are known, else resampled ones."""
    target = TARGETS[name]()
    if target.exact is not None:
        return Reference(target.exact, float(len(target.exact)))
    rng = np.random.default_rng(0)
    mean, covariance = _mode(target)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(_ROUNDS):
        parts.append(_weighted(target, mean, covariance, rng))
        x, weight = parts[-1]
        mean = weight @ x
        covariance = (x - mean).T @ ((x - mean) * weight[:, None])
        if i == 0:
            parts.clear()  # a mode may be far from the mean
    x = np.concatenate([x for x, _ in parts])
    weight = np.concatenate([w for _, w in parts]) / len(parts)
    effective = float(1 / np.sum(weight**2))
    if effective < _ENOUGH:
        return _by_nuts(target)
    rows = rng.choice(len(x), POINTS, p=weight)
    return Reference(x[rows], effective)


def _by_nuts(target: Target) -> Reference:
    keys = jax.random.split(jax.random.key(2), 2)
    initial = jax.random.normal(keys[0], (64, target.dimension))
    draws = nuts(target, keys[1], initial, 512, 500)
    ess = px.simulation.diagnose(draws.kept).ess_bulk.min()
    return Reference(thinned(draws.kept, POINTS), float(ess))
