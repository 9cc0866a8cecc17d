"""The mass matrix of Langevin chains, from positions and gradients of all of them."""

import math

import numpy as np
from jax.scipy.special import ndtri


def adapted(scale: np.ndarray, x: np.ndarray, g: np.ndarray, mass: str) -> np.ndarray:
    """A better square root of the inverse mass, of positions and gradients `(n, d)`.

    For a Gaussian of covariance `S`, `cov(g) = S^-1 cov(x) S^-1` wherever the points
    are; so `S` is the geometric mean of `cov(x)` and `cov(g)^-1`, long before the
    chains have its law. Both are taken in the coordinates of the present `scale` and
    mixed with as many points of unit covariance as there are dimensions, so that few
    points change little.

    A vector is stretched by the largest standard deviation that is left, which makes
    that direction the one of frequency one.
    """
    if mass == "identity" or len(x) < 2:
        return scale
    factor = np.diag(scale) if scale.ndim == 1 else scale
    z = np.linalg.solve(factor, x.T).T
    mean = _geometric_mean(_covariance(z), _covariance(g @ factor))
    found = factor @ mean @ factor.T
    if mass == "dense":
        return np.linalg.cholesky(found)
    deviation = np.sqrt(np.diag(found))
    rho = found / deviation[:, None] / deviation[None]
    return deviation * math.sqrt(float(np.linalg.eigvalsh(rho)[-1]))


def _covariance(x: np.ndarray) -> np.ndarray:
    """By half the distances of the 16% and the 84% quantile, and correlations of
    ranks: moments of a heavy tail would be those of a few samples.
    """
    count, size = x.shape
    low, high = np.quantile(x, [0.16, 0.84], axis=0)
    spread = np.maximum((high - low) / 2, 1e-12 * np.abs(x).max() + 1e-30)
    ranks = np.argsort(np.argsort(x, axis=0), axis=0)
    scores = np.asarray(ndtri((ranks + 0.5) / count), np.float64)
    rho = np.corrcoef(scores.T).reshape(size, size)
    rho = (count * rho + size * np.eye(size)) / (count + size)
    # How far a spread is known, on a logarithmic scale, as for the correlations.
    spread = spread ** (count / (count + 1.0))
    return rho * spread[:, None] * spread[None]


def _geometric_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The positive solution of `s b s = a`."""
    values, vectors = np.linalg.eigh(b)
    root = vectors * np.sqrt(values)
    half = root @ vectors.T
    back = vectors / np.sqrt(values) @ vectors.T
    values, vectors = np.linalg.eigh(half @ a @ half)
    return back @ (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T @ back
