"""Inner products of polynomials on overlapping intervals, by exact quadrature."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from . import _legendre as lg


# Tables are NumPy arrays until they meet a time.
AnyArray = Array | np.ndarray


class Overlap(NamedTuple):
    """`[a, b]` intersected with pieces: quadrature points in both coordinates."""

    outer: list[Array]  # positions in [a, b], scaled to [-1, 1], one entry a point
    inner: list[Array]  # positions in the piece, likewise
    mass: list[Array]  # weights, normalised so that |p_m| and |p_q| are orthonormal


class Length(NamedTuple):
    """A length (or several) with `1 / length` and its root, 0 where the length is 0."""

    value: Array
    inverse: Array
    root: Array


def inverse(x: AnyArray) -> Array:
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


def lengths(x: AnyArray) -> Length:
    per = inverse(x)
    return Length(jnp.asarray(x), per, jnp.sqrt(per))


class Pieces(NamedTuple):
    """Intervals on which functions are polynomials, by their distances in leaves.

    Each distance is computed from integers where it may be short: taking one as the
    difference of two long ones would lose it.
    """

    start: Array  # from a to the start of the piece, signed
    to_end: Array  # from a to its end
    from_start: Array  # from its start to b
    length: Length


def overlap(pieces: Pieces, span: Length, points: int) -> Overlap:
    """Quadrature over the overlap of `[a, b]`, of length `span`, with each piece.

    Sums over the points are exact inner products for polynomials whose degrees add up
    to at most `2 points - 1`.
    """
    length = pieces.length
    shorter = jnp.minimum(length.value, span.value)
    common = jnp.minimum(pieces.to_end, pieces.from_start)
    common = jnp.maximum(jnp.minimum(common, shorter), 0)
    # Kept in range where nothing overlaps: powers of far positions would overflow.
    begin = jnp.clip(pieces.start, 0, span.value)
    inside = jnp.clip(-pieces.start, 0, length.value)
    mass = common * (span.root * length.root)
    nodes, weights = lg.gauss(points)
    dtype = span.value.dtype.type
    return Overlap(
        [2 * ((begin + dtype(y) * common) * span.inverse) - 1 for y in nodes],
        [2 * ((inside + dtype(y) * common) * length.inverse) - 1 for y in nodes],
        [dtype(w) * mass for w in weights],
    )


def horner(coefficients: Sequence[ArrayLike], y: Array) -> Array:
    """`sum_k coefficients[k] y^k`; the coefficients broadcast against `y`."""
    out = jnp.zeros_like(y) + coefficients[-1]
    for c in coefficients[-2::-1]:
        out = out * y + c
    return out


def padded(x: np.ndarray, width: int) -> np.ndarray:
    """Repeat the last entry of the last axis up to a multiple of `width`."""
    extra = -x.shape[-1] % width
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)], mode="edge")


def basis(order: int, dtype: np.dtype) -> list[np.ndarray]:
    """Power coefficients of `p_0, ..., p_order`, each of shape `(order + 1, 1)`."""
    return [c[:, None] for c in lg.power_coefficients(order).astype(dtype)]
