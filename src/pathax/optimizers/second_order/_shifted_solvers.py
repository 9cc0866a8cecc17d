"""Solvers of `(C + lambda I) d = -g` for many shifts `lambda` of one matrix.

What is costly (a factorization, a Krylov basis) is done once for all shifts. Vectors
are real and flat. A solver says of each answer whether `C + lambda I` was positive
definite as far as it can see; without that, a step need not go downhill.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


# Tensor cores would round the products to ten bits.
_HIGHEST = jax.lax.Precision.HIGHEST


def dot(a: Array, b: Array) -> Array:
    """A product of matrices or vectors in full precision."""
    return jnp.matmul(a, b, precision=_HIGHEST)


class Shifted(NamedTuple):
    """A solver: what it carries from one shift to the next, and how it answers.

    `solve(carry, shift)` returns the new carry, the step and whether it can be trusted.
    """

    carry: Any
    solve: Callable[[Any, Array], tuple[Any, Array, Array]]


def _stateless(solve: Callable[[Array], tuple[Array, Array]]) -> Shifted:
    return Shifted((), lambda carry, shift: (carry, *solve(shift)))


def _all_finite(vector: Array) -> Array:
    return jnp.all(jnp.isfinite(vector))


# Dense ------------------------------------------------------------------------------


def eigh(matrix: Float[Array, "p p"], g: Float[Array, " p"]) -> Shifted:
    """One eigendecomposition, `O(p^3)`; a shift is two products, `O(p^2)`."""
    values, vectors = jnp.linalg.eigh(matrix)
    rotated = dot(vectors.T, g)

    def solve(shift):
        shifted = values + shift
        return -dot(vectors, rotated / shifted), shifted[0] > 0

    return _stateless(solve)


def cholesky(matrix: Float[Array, "p p"], g: Float[Array, " p"]) -> Shifted:
    """One Cholesky factorization a shift, `O(p^3 / 3)`; fails if not positive."""
    identity = jnp.eye(g.size, dtype=g.dtype)

    def solve(shift):
        factor = jnp.linalg.cholesky(matrix + shift * identity)
        step = -jax.scipy.linalg.cho_solve((factor, True), g)
        return step, _all_finite(step)

    return _stateless(solve)


# Low rank ---------------------------------------------------------------------------


def least_squares(rows: Float[Array, "n p"], residuals: Float[Array, " n"]) -> Shifted:
    """For `C = J^T J / n` and `g = J^T r / n`, in the space of rows.

    `d = -J^T (J J^T + n lambda I)^-1 r`: nothing of size `p^2` is formed, and no two
    vectors that nearly cancel are subtracted, as they are in Woodbury's formula.
    """
    count = rows.shape[0]
    values, vectors = jnp.linalg.eigh(dot(rows, rows.T))
    # Rounding makes eigenvalues of a Gram matrix slightly negative.
    values, rotated = jnp.maximum(values, 0), dot(vectors.T, residuals)

    def solve(shift):
        step = -dot(dot(vectors, rotated / (values + count * shift)), rows)
        return step, shift > 0

    return _stateless(solve)


def row_span(rows: Float[Array, "n p"], g: Float[Array, " p"]) -> Shifted:
    """For `C = J^T J / n` with at most `p` rows, and any `g`.

    The gradient is split into a part in the span of the rows and one orthogonal to it,
    which `C` does not see. What rounding leaves of the second one is set to zero: the
    shift may be tiny, and would blow it up.
    """
    basis, triangle = jnp.linalg.qr(rows.T)
    values, vectors = jnp.linalg.eigh(dot(triangle, triangle.T) / rows.shape[0])
    values, basis = jnp.maximum(values, 0), dot(basis, vectors)
    inside = dot(basis.T, g)
    outside = g - dot(basis, inside)
    rest = dot(basis.T, outside)
    inside, outside = inside + rest, outside - dot(basis, rest)
    noise = 8 * jnp.finfo(g.dtype).eps * g.size**0.5 * jnp.linalg.norm(g)
    outside = jnp.where(jnp.linalg.norm(outside) > noise, outside, 0)

    def solve(shift):
        step = -dot(basis, inside / (values + shift)) - outside / shift
        return step, shift > 0

    return _stateless(solve)


def rank_one(factor: Float[Array, ""], g: Float[Array, " p"]) -> Shifted:
    """For `C = c g g^T`: `d = -g / (lambda + c |g|^2)`."""
    curvature = factor * dot(g, g)

    def solve(shift):
        return -g / (shift + curvature), shift + curvature > 0

    return _stateless(solve)


def diagonal(entries: Float[Array, " p"], g: Float[Array, " p"]) -> Shifted:
    """For a diagonal matrix."""

    def solve(shift):
        shifted = entries + shift
        return -g / shifted, jnp.all(shifted > 0)

    return _stateless(solve)


# Krylov -----------------------------------------------------------------------------


class _Basis(NamedTuple):
    """`C Q_j = Q_j T_j + b_j q_{j+1} e_j^T`, filled up to `size = j`, zero beyond.

    `vectors` has a row more than `T`, for the start of the next extension.
    """

    size: Array
    closed: Array  # the space is invariant: no direction is left to add
    vectors: Array
    diagonal: Array
    off_diagonal: Array


def _start(g: Array, norm: Array, most: int) -> _Basis:
    vectors = jnp.zeros((most + 1, g.size), g.dtype).at[0].set(g / norm)
    return _Basis(
        size=jnp.zeros((), jnp.int32),
        closed=jnp.zeros((), bool),
        vectors=vectors,
        diagonal=jnp.zeros(most, g.dtype),
        off_diagonal=jnp.zeros(most, g.dtype),
    )


def _extend(product: Callable[[Array], Array], basis: _Basis) -> _Basis:
    """One product more. Every new vector is made orthogonal to all others, twice."""
    j = basis.size
    q = basis.vectors[j]
    image = product(q)
    alpha = dot(q, image)
    rest = image
    for _ in range(2):
        rest = rest - dot(dot(basis.vectors, rest), basis.vectors)
    beta = jnp.linalg.norm(rest)
    scale = jnp.linalg.norm(image)
    closed = beta <= 8 * jnp.finfo(q.dtype).eps * scale
    unit = jnp.where(closed, 0, rest / jnp.where(closed, 1, beta))
    return _Basis(
        size=j + 1,
        closed=closed,
        vectors=basis.vectors.at[j + 1].set(unit),
        diagonal=basis.diagonal.at[j].set(alpha),
        off_diagonal=basis.off_diagonal.at[j].set(jnp.where(closed, 0, beta)),
    )


def _tridiagonal(basis: _Basis, shift: Array) -> tuple[Array, Bool[Array, ""]]:
    """`(T_j + lambda I)^-1 e_1` by elimination; whether all pivots are positive."""
    most = basis.diagonal.size
    index = jnp.arange(most, dtype=jnp.int32)
    used = index < basis.size
    diagonal = jnp.where(used, basis.diagonal + shift, 1)
    # Beyond `size` the matrix is the identity, so its last coupling is cut.
    coupling = jnp.where(index + 1 < basis.size, basis.off_diagonal, 0)
    above = jnp.concatenate([jnp.zeros(1, coupling.dtype), coupling[:-1]])

    def down(carry, row):
        pivot, right = carry
        diagonal, above, start = row
        ratio = above / pivot
        pivot = diagonal - ratio * above
        right = start - ratio * right
        return (pivot, right), (pivot, right)

    start = (index == 0).astype(diagonal.dtype)
    first = (jnp.ones((), diagonal.dtype), jnp.zeros((), diagonal.dtype))
    _, (pivots, rights) = jax.lax.scan(down, first, (diagonal, above, start))

    def up(below, row):
        pivot, right, coupling = row
        x = (right - coupling * below) / pivot
        return x, x

    zero = jnp.zeros((), diagonal.dtype)
    _, x = jax.lax.scan(up, zero, (pivots, rights, coupling), reverse=True)
    return x, jnp.all(pivots > 0)


def lanczos(
    product: Callable[[Array], Array], g: Float[Array, " p"], most: int, tol: Any
) -> Shifted:
    """One Krylov basis for all shifts, grown by need up to `most` vectors.

    The space spanned by `g, C g, C^2 g, ...` is the same for every shift of `C`. The
    basis is extended until the residual is at most `tol lambda |d|`; an eigenvalue of
    `T_j + lambda I` that is not positive shows a direction of negative curvature.
    """
    most = min(most, g.size)
    norm = jnp.linalg.norm(g)
    safe = jnp.where(norm > 0, norm, 1)

    def decided(basis: _Basis, shift: Array) -> Array:
        x, positive = _tridiagonal(basis, shift)
        last = jnp.maximum(basis.size - 1, 0)
        residual = basis.off_diagonal[last] * jnp.abs(x[last])
        small = residual <= jnp.asarray(tol, g.dtype) * shift * jnp.linalg.norm(x)
        # Once there is a negative direction, more vectors don't take it away.
        return (basis.size > 0) & (small | ~positive)

    def solve(basis: _Basis, shift: Array):
        more = lambda b: (b.size < most) & ~b.closed & ~decided(b, shift)
        basis = jax.lax.while_loop(more, lambda b: _extend(product, b), basis)
        x, positive = _tridiagonal(basis, shift)
        return basis, -norm * dot(x, basis.vectors[:-1]), positive

    return Shifted(_start(g, safe, most), solve)
