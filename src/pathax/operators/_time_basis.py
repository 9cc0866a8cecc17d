"""Polynomials in time that vanish at the start, and quadrature over a window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float


class Quadrature(NamedTuple):
    """Gauss nodes and weights of a window `[0, T]`; the weights add up to `T`."""

    nodes: Float[np.ndarray, " nodes"]
    weights: Float[np.ndarray, " nodes"]


def gauss(horizon: float, count: int) -> Quadrature:
    """Exact for polynomials of degree `2 count - 1`."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return Quadrature((points + 1) * horizon / 2, weights * horizon / 2)


def _legendre(x: Array, degree: int) -> list[Array]:
    """`P_0, ..., P_degree` at `x`, by the three-term recurrence."""
    out = [jnp.ones_like(x), x]
    for m in range(1, degree):
        out.append(((2 * m + 1) * x * out[m] - m * out[m - 1]) / (m + 1))
    return out[: degree + 1]


def mix(
    table: Float[Array, "out in"], x: Complex[Array, "in *half"]
) -> Complex[Array, "out *half"]:
    """A real matrix times the first axis of spectra."""
    flat = x.reshape(x.shape[0], -1)
    real = jnp.matmul(table, flat.real, precision="highest")
    imaginary = jnp.matmul(table, flat.imag, precision="highest")
    return jax.lax.complex(real, imaginary).reshape(-1, *x.shape[1:])


def values(
    t: Float[Array, "*times"], degree: int, horizon: float
) -> Float[Array, "*times degree"]:
    """The basis: integrals over `[0, t]` of Legendre polynomials `P_0, ..., P_{M-1}`.

    They vanish at the start, so an initial value holds exactly whatever the
    coefficients are, and their slopes are orthogonal.
    """
    p = _legendre(2 * t / horizon - 1, degree)
    first = horizon / 2 * (p[1] + p[0])
    rest = [horizon / 2 * (p[m + 1] - p[m - 1]) / (2 * m + 1) for m in range(1, degree)]
    return jnp.stack([first, *rest], axis=-1)


def slopes(
    t: Float[Array, "*times"], degree: int, horizon: float
) -> Float[Array, "*times degree"]:
    """Derivatives of the basis in time."""
    return jnp.stack(_legendre(2 * t / horizon - 1, degree)[:degree], axis=-1)


def fit(
    times: Float[np.ndarray, " times"], degree: int, horizon: float
) -> Float[np.ndarray, "degree times"]:
    """From samples, zero at the start, to the coefficients nearest in least squares.

    With fewer samples than functions, the smallest coefficients that meet them.
    """
    return np.linalg.pinv(np.asarray(_table(values, times, degree, horizon)))


def interpolation(
    nodes: Float[np.ndarray, " nodes"], times: Float[np.ndarray, " times"]
) -> Float[np.ndarray, "times nodes"]:
    """From samples at nodes to the polynomial through them at other times.

    By the barycentric formula, with logarithms of its weights, which would overflow.
    """
    gaps = nodes[:, None] - nodes[None] + np.eye(nodes.size)
    logs = -np.log(np.abs(gaps)).sum(axis=1)
    signs = np.prod(np.sign(gaps), axis=1)
    weights = signs * np.exp(logs - logs.max())
    away = times[:, None] - nodes[None]
    hit = np.abs(away) < 1e-14 * np.ptp(nodes)
    scaled = weights / np.where(hit, 1.0, away)
    found = scaled / scaled.sum(axis=1, keepdims=True)
    return np.where(hit.any(axis=1, keepdims=True), hit.astype(float), found)


def table(kind: str, times, degree: int, horizon: float) -> np.ndarray:
    """Values (or slopes) of the basis at fixed times, in double precision."""
    return _table({"values": values, "slopes": slopes}[kind], times, degree, horizon)


def _table(function, times, degree: int, horizon: float) -> np.ndarray:
    """In NumPy, as these tables are made when a function is traced."""
    p = np.polynomial.legendre.legvander(2 * np.asarray(times) / horizon - 1, degree)
    if function is slopes:
        return p[:, :degree]
    first = horizon / 2 * (p[:, 1] + p[:, 0])
    orders = np.arange(1, degree)
    rest = horizon / 2 * (p[:, 2:] - p[:, : degree - 1]) / (2 * orders + 1)
    return np.concatenate([first[:, None], rest], axis=1)
