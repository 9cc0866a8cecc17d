"""Legendre algebra on `[0, 1]`: polynomials, quadrature and re-expansion matrices.

`p_n(x) = sqrt(2n+1) P_n(2x-1)` are orthonormal on `[0, 1]`. Everything that a Brownian
path of order `N` needs to know about polynomials of degree up to `N` is in this file.
"""

import functools as ft
import math

import numpy as np


@ft.cache
def gauss(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre quadrature on `[0, 1]`, in float64."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


def _legendre64(x: np.ndarray, order: int) -> np.ndarray:
    basis = np.polynomial.legendre.legvander(2 * x - 1, order)
    return basis * np.sqrt(2 * np.arange(order + 1) + 1)


@ft.cache
def split_matrices(order: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """`(Q_A, Q_B)` in float64 with `Z = Q_A Z' + Q_B Z''` for a split at `theta`.

    `Z`, `Z'`, `Z''` are the normalised Legendre moments of an interval, of its first
    part (a fraction `theta`) and of its second part; `[Q_A Q_B]` has orthonormal rows.
    """
    return piece_matrix(order, 0.0, theta), piece_matrix(order, theta, 1 - theta)


def piece_matrix(order: int, offset: float, fraction: float) -> np.ndarray:
    """What a piece of an interval adds to the moments: `Z = sum_pieces C Z_piece`.

    The piece begins at `offset` and is `fraction` long, both as fractions of the
    interval; in float64.
    """
    y, w = gauss(order + 1)
    inner = _legendre64(y, order) * w[:, None]
    outer = _legendre64(offset + fraction * y, order)
    return math.sqrt(fraction) * outer.T @ inner


@ft.cache
def midpoint_filters(order: int) -> tuple[np.ndarray, np.ndarray]:
    """`(G_A, G_B)`: the innovation of a midpoint split, `(Z'; Z'') = Q^T Z + G^T xi`.

    The rows of `[G_A G_B]` are an orthonormal basis of the null space of `[Q_A Q_B]`,
    in other words Alpert's multiwavelets of degree `order` on the two halves. Another
    basis would be as correct in law but give another path for the same key, so the
    choice is pinned down: the rows come from Gram-Schmidt applied to `p_order, ...,
    p_0` on the left half, so `G_A` is lower triangular with a positive diagonal.
    """
    q_left, q_right = split_matrices(order, 0.5)
    q = np.concatenate([q_left, q_right], axis=1)
    rows: list[np.ndarray] = []
    for n in range(order, -1, -1):
        row = np.zeros(2 * order + 2)
        row[n] = 1.0
        for _ in range(3):  # repeated, for orthogonality to the last bit
            row = row - q.T @ (q @ row)
            for other in rows:
                row = row - other * (other @ row)
            row = row / np.linalg.norm(row)
        rows.append(row)
    filters = np.stack(rows[::-1])
    return filters[:, : order + 1], filters[:, order + 1 :]


@ft.cache
def power_coefficients(order: int) -> np.ndarray:
    """`c[k, m]` with `p_m(x) = sum_k c[k, m] (2x - 1)^k`, in float64."""
    table = np.zeros((order + 1, order + 1))
    for m in range(order + 1):
        unit = np.zeros(m + 1)
        unit[m] = math.sqrt(2 * m + 1)
        table[: m + 1, m] = np.polynomial.legendre.leg2poly(unit)
    return table


@ft.cache
def wavelet_coefficients(order: int) -> np.ndarray:
    """`c[side, k, n]`: wavelet `n` of a node on each half, in powers of `2y - 1`.

    `y` runs from 0 to 1 on the half, and the functions are normalised for length one.
    """
    powers = power_coefficients(order)
    return np.stack([powers @ half.T for half in midpoint_filters(order)])


@ft.cache
def split_coefficients(order: int) -> np.ndarray:
    """`c[j, k, q]` with `Q_A[k, q] = sqrt(theta) sum_j c[j, k, q] (2 theta - 1)^j`.

    `Q_B[k, q](theta) = (-1)^(k + q) Q_A[k, q](1 - theta)`.
    """
    y, w = gauss(order + 1)
    theta = gauss(order + 1)[0]
    values = _legendre64(theta[:, None] * y, order)  # (theta, y, k)
    moments = np.einsum("tyk,y,yq->tkq", values, w, _legendre64(y, order))
    vandermonde = np.vander(2 * theta - 1, order + 1, increasing=True)
    flat = np.linalg.solve(vandermonde, moments.reshape(order + 1, -1))
    return flat.reshape(order + 1, order + 1, order + 1)


@ft.cache
def integral_coefficients(order: int) -> np.ndarray:
    """`c[k, n]` with `J_k = h^k sum_n c[k, n] L_n`, in float64; zero for `n > k`.

    The expansion of `(1 - x)^k / k!` in `P_n(2x - 1)`.
    """
    x, w = gauss(order + 1)
    basis = np.polynomial.legendre.legvander(2 * x - 1, order)
    table = np.zeros((order + 1, order + 1))
    for k in range(order + 1):
        values = (1 - x) ** k / math.factorial(k)
        table[k] = (2 * np.arange(order + 1) + 1) * (basis.T @ (w * values))
        table[k, k + 1 :] = 0
    return table
