"""Statistics of many paths, part by part: what a device counts, what the host adds up.

A part's mean and second moments are taken on the device about the part's own mean;
parts are added on the host, in double precision and in the order of their numbers, so
that the result doesn't depend on which device took which part. Counts are integers,
whose order doesn't matter.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


# The sketch of a distribution: bins that are even in asinh(z / CORE), where z is in
# units of the spread that a first part had. They are narrow in the middle and grow with
# the distance from it, up to REACH.
BINS = 8192
CORE = 0.05
REACH = 1e6
_WIDTH = 2 * math.asinh(REACH / CORE) / BINS


class Part(NamedTuple):
    """What is known of one part of a chunk."""

    count: Any
    mean: Any
    moments: Any  # second central moments times count: of each output, or of pairs
    low: Any
    high: Any
    bad: Any
    first_bad: Any


def summarize(x: Array, numbers: Array, wanted: Array, covariance: bool) -> Part:
    """One part, from outputs `(paths, d)` and the numbers of their paths.

    Paths that are not `wanted` (beyond the last) or not finite have weight zero.
    """
    finite = jnp.all(jnp.isfinite(x), axis=1)
    use = wanted & finite
    bad = wanted & ~finite
    weight = use.astype(x.dtype)[:, None]
    count = jnp.sum(use.astype(jnp.int32))
    total = jnp.maximum(count, 1).astype(x.dtype)
    clean = jnp.where(use[:, None], x, 0)
    mean = jnp.sum(clean, axis=0) / total
    # Once more about the mean, which removes the rounding of the first sum.
    mean = mean + jnp.sum((clean - mean[None]) * weight, axis=0) / total
    centered = (clean - mean[None]) * weight
    moments = centered.T @ centered if covariance else jnp.sum(centered**2, axis=0)
    none = jnp.asarray(2**32 - 1, jnp.uint32)
    return Part(
        count,
        mean,
        moments,
        jnp.min(jnp.where(use[:, None], x, jnp.inf), axis=0),
        jnp.max(jnp.where(use[:, None], x, -jnp.inf), axis=0),
        jnp.sum(bad.astype(jnp.int32)),
        jnp.min(jnp.where(bad, numbers, none)),
    )


def sketch_bins(x: Array, center: Array, spread: Array) -> Array:
    """Numbers of bins of outputs `(paths, d)`, about a center and a spread of each."""
    z = (x - center[None]) / spread[None]
    place = jnp.arcsinh(z / CORE) / _WIDTH + BINS // 2
    return jnp.clip(jnp.floor(place), 0, BINS - 1).astype(jnp.int32)


def sketch_edges(center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The edges of these bins, `(d, BINS + 1)`."""
    places = (np.arange(BINS + 1) - BINS // 2) * _WIDTH
    return center[:, None] + spread[:, None] * CORE * np.sinh(places)[None]


class Totals:
    """Sums over parts, in double precision on the host."""

    def __init__(self, size: int, covariance: bool, bins: int, cells: int):
        shape = (size, size) if covariance else (size,)
        self.count = 0
        self.bad, self.first_bad = 0, -1
        self.mean, self.moments = np.zeros(size), np.zeros(shape)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.bins = np.zeros((size, bins), np.int64)  # of the sketch
        self.cells = np.zeros((size, cells), np.int64)  # of the histogram

    def add(self, parts: Part, bins: np.ndarray, cells: np.ndarray) -> None:
        """Take in the parts of a chunk, in their order."""
        fields = [np.asarray(x) for x in parts]
        for part in zip(*fields, strict=True):
            self._merge(*part)
        self.bins += np.asarray(bins, np.int64)
        self.cells += np.asarray(cells, np.int64)

    def _merge(self, count, mean, moments, low, high, bad, first_bad) -> None:
        self.bad += int(bad)
        if bad and self.first_bad < 0:
            self.first_bad = int(first_bad)
        if not count:
            return
        total = self.count + int(count)
        gap = mean.astype(np.float64) - self.mean
        square = np.outer(gap, gap) if self.moments.ndim == 2 else gap**2
        self.moments += moments + square * (self.count * int(count) / total)
        self.mean += gap * (int(count) / total)
        self.low = np.minimum(self.low, low)
        self.high = np.maximum(self.high, high)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Unbiased, of each output."""
        diagonal = self.moments if self.moments.ndim == 1 else np.diag(self.moments)
        return diagonal / max(self.count - 1, 1)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, of all pairs of outputs."""
        return self.moments / max(self.count - 1, 1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the mean."""
        return np.sqrt(self.variance / max(self.count, 1))

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` returned."""
        for name, value in vars(self).items():
            found = state[name]
            setattr(self, name, int(found) if isinstance(value, int) else found.copy())


def quantiles(
    totals: Totals, edges: np.ndarray, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles `(levels, d)` and their standard errors, from counts in bins.

    Within a bin the distribution is taken for even; the first and the last bin that
    hold anything end at the least and the largest value.
    """
    found = np.empty((len(levels), len(edges)))
    errors = np.empty_like(found)
    for j, (counts, edge) in enumerate(zip(totals.bins, edges, strict=True)):
        at = np.clip(edge, totals.low[j], totals.high[j])
        below = np.concatenate([[0], np.cumsum(counts)]) / max(totals.count, 1)
        found[:, j] = [_inverse(below, at, p) for p in levels]
        for i, p in enumerate(levels):
            # The density over as many bins as hold a twentieth of all paths.
            low, high = max(p - 0.025, 0.0), min(p + 0.025, 1.0)
            rise = _inverse(below, at, high) - _inverse(below, at, low)
            slope = rise / (high - low)
            errors[i, j] = slope * math.sqrt(p * (1 - p) / max(totals.count, 1))
    return found, errors


def _inverse(below: np.ndarray, edges: np.ndarray, level: float) -> float:
    i = int(np.clip(np.searchsorted(below, level, "right") - 1, 0, len(edges) - 2))
    while i > 0 and below[i + 1] == below[i]:  # an empty bin: back to one that isn't
        i -= 1
    share = below[i + 1] - below[i]
    inside = (level - below[i]) / share if share > 0 else 0.0
    return float(edges[i] + min(max(inside, 0.0), 1.0) * (edges[i + 1] - edges[i]))
