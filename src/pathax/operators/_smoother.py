"""Least squares for a chain of states that may jump, by elimination in turn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Chain(NamedTuple):
    r"""Linear models of states $x_0, x_1, \dots$ and parameters $\theta$.

    $x_0 = C \theta$; what is seen of $x_i$ leaves $r_i + O_i x_i + P_i \theta$, each
    entry of unit variance; and $x_{i + 1} = T_i x_i + G_i \theta + h_i$ but for a jump.
    """

    start: Float[Array, "n p"]
    seen: Float[Array, "slabs data n"]
    seen_theta: Float[Array, "slabs data p"]
    left: Float[Array, "slabs data"]
    move: Float[Array, "slabs n n"]
    move_theta: Float[Array, "slabs n p"]
    moved: Float[Array, "slabs n"]


class Smoothed(NamedTuple):
    """The most likely states and parameters, and the covariance of the latter."""

    theta: Float[Array, " p"]
    covariance: Float[Array, "p p"]
    states: Float[Array, "slabs n"]


def smooth(
    chain: Chain, prior: tuple[Array, Array], jump: Float[Array, ""]
) -> Smoothed:
    """Jumps of standard deviation `jump` are allowed between states.

    A prior is a matrix and what it leaves at zero, in units of its deviations. States
    are eliminated one after another by orthogonal factors, then found backwards.

    **Reference:** Bierman, Factorization methods for discrete sequential estimation,
    Academic Press 1977, chapter 6 (square root information).
    """
    n, p = chain.start.shape
    beside = jnp.concatenate
    column = lambda x: x[:, None]

    def joins(i: Array) -> tuple[Array, ...]:
        """Rows for a jump: of this state, the next, parameters and the constant."""
        eye = jnp.eye(n, dtype=chain.move.dtype)
        rows = -chain.move[i], eye, -chain.move_theta[i], column(chain.moved[i])
        return tuple(x / jump for x in rows)

    matrix, left = prior
    of, to, on, constant = joins(jnp.zeros((), int))
    known = beside([matrix, chain.seen[0] @ chain.start + chain.seen_theta[0]])
    without = jnp.zeros((len(known), n), known.dtype)
    rows = beside(
        [
            beside([without, known, -column(beside([left, chain.left[0]]))], axis=1),
            beside([to, of @ chain.start + on, constant], axis=1),
        ]
    )
    first = _triangle(rows)[: n + p]

    def eliminate(factor: Array, i: Array) -> tuple[Array, Array]:
        of, to, on, constant = joins(i)
        blank = lambda rows: jnp.zeros((len(rows), n), rows.dtype)
        data = beside([chain.seen[i], blank(chain.seen[i]), chain.seen_theta[i]], 1)
        rows = [
            beside([factor[:, :n], blank(factor), factor[:, n:]], axis=1),
            beside([data, -column(chain.left[i])], axis=1),
            beside([of, to, on, constant], axis=1),
        ]
        found = _triangle(beside(rows))
        return found[n : 2 * n + p, n:], found[:n]

    slabs = len(chain.move)
    factor, kept = jax.lax.scan(eliminate, first, jnp.arange(1, slabs - 1))
    data = [chain.seen[-1], chain.seen_theta[-1], -column(chain.left[-1])]
    last = _triangle(beside([factor, beside(data, axis=1)]))
    solve = jax.scipy.linalg.solve_triangular
    triangle = last[n : n + p, n : n + p]
    inverse = solve(triangle, jnp.eye(p, dtype=triangle.dtype))
    theta = inverse @ last[n : n + p, -1]
    state = solve(last[:n, :n], last[:n, -1] - last[:n, n:-1] @ theta)

    def back(after: Array, row: Array) -> tuple[Array, Array]:
        known = row[:, n : 2 * n] @ after + row[:, 2 * n : -1] @ theta
        found = solve(row[:, :n], row[:, -1] - known)
        return found, found

    _, states = jax.lax.scan(back, state, kept, reverse=True)
    states = beside([(chain.start @ theta)[None], states, state[None]])
    return Smoothed(theta, inverse @ inverse.T, states)


def _triangle(rows: Array) -> Array:
    """Of an orthogonal factorization; zero rows are added if there are too few."""
    short = max(rows.shape[1] - rows.shape[0], 0)
    return jnp.linalg.qr(jnp.pad(rows, ((0, short), (0, 0))), mode="r")
