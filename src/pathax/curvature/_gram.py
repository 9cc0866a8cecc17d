"""Systems with inner products of gradients, of which single precision rounds some off.

Gradients differ in length by orders of magnitude, and an inner product is rounded
relative to both lengths. So what is known is seen after each row and column is scaled
to a unit diagonal, where entries are uncertain by the rounding unit times a small
factor: the number of rows, as here, is on the safe side.
"""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float


def shifted(
    gram: Float[Array, "rows rows"], shift: Float[Array, ""]
) -> tuple[Float[Array, "rows rows"], Float[Array, " rows"]]:
    """`gram + shift I` scaled to a unit diagonal, and what each row was scaled by."""
    size = jnp.diagonal(gram) + shift
    positive = size > 0
    one = jnp.ones_like(size)
    scale = jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, size, one)), one)
    full = gram + shift * jnp.eye(len(size), dtype=gram.dtype)
    return scale[:, None] * full * scale[None, :], scale


def noise(matrix: Float[Array, "rows rows"]) -> float:
    """What eigenvalues of a matrix with a unit diagonal are uncertain by."""
    return matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)


def resolved(root: Float[Array, "rows rows"]) -> Bool[Array, ""]:
    """Whether a Cholesky factor is of numbers, not of rounding."""
    return jnp.all(jnp.diagonal(root) ** 2 > noise(root))  # False for NaN


def whiten(
    rows: Float[Array, "rows size"], shift: Float[Array, ""]
) -> tuple[Float[Array, "rows size"], Float[Array, "rows rows"]]:
    """`K^(-1/2) R` and `K^(-1/2)`, for `K = R R^T + shift I` and a triangular root.

    If rows are parallel to rounding, as much as that is added to the scaled matrix.
    """
    gram = jnp.matmul(rows, rows.T, precision="highest")
    unit, scale = shifted(gram, shift)
    known = resolved(jnp.linalg.cholesky(jax.lax.stop_gradient(unit)))
    more = jnp.where(known, 0.0, noise(unit)).astype(unit.dtype)
    root = jnp.linalg.cholesky(unit + more * jnp.eye(len(unit), dtype=unit.dtype))
    both = jnp.concatenate([scale[:, None] * rows, jnp.diag(scale)], axis=1)
    white = jsl.solve_triangular(root, both, lower=True)
    return white[:, : rows.shape[1]], white[:, rows.shape[1] :]
