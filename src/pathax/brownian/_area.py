"""Space-space Lévy area from the Legendre moments of a path.

On an interval of length `h`, with normalised moments `Z^i_n` of component `i`,

    A_ij = (h / 2) sum_{n >= 1} (Z^i_{n-1} Z^j_n - Z^i_n Z^j_{n-1}) / sqrt(4 n^2 - 1),

and the part after `n = N` has mean zero and, given `Z_0, ..., Z_N`, variance

    (h^2 / 4) (Z^i_N^2 + Z^j_N^2) / (4 (N+1)^2 - 1) + h^2 / (4 (2N + 3)).

Areas of adjacent intervals join by Chen's relation,
`A = A' + A'' + (W' x W'' - W'' x W') / 2`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._inputs import as_time, compute_dtype
from ._noise import key_words, normals


@eqx.filter_jit
def polynomial_area(path, t0, t1, terms: int, pieces: int, key):
    """`AbstractMomentPath.space_space_area`, after its checks."""
    dtype = path.time_dtype()
    t0, t1 = as_time(t0, dtype), as_time(t1, dtype)
    steps = (t1 - t0) * np.linspace(0, 1, pieces + 1).astype(dtype)
    # Rounded before the sum everywhere, as another time is another value of the path.
    grid = t0 + jax.lax.optimization_barrier(steps)
    grid = grid.at[0].set(t0).at[-1].set(t1)
    moments = jax.vmap(path.moments)(grid[:-1], grid[1:])  # (pieces, N+1, ..., d)
    backward = t1 < t0

    def area(m):
        return _antisymmetric(_join(_within(m, terms), m[:, 0]))

    areas = jax.tree.map(area, moments)
    if key is None:
        return areas
    length = jnp.abs(t1 - t0) / pieces
    leaves, treedef = jax.tree.flatten(areas)
    tails = [
        _tail(key, i, jnp.minimum(t0, t1), jnp.maximum(t0, t1), m, length, terms)
        for i, m in enumerate(jax.tree.leaves(moments))
    ]
    tails = [jnp.where(backward, -tail, tail) for tail in tails]
    totals = [area + tail for area, tail in zip(leaves, tails, strict=True)]
    return jax.tree.unflatten(treedef, totals)


def _antisymmetric(x):
    """The part above the diagonal, and its negative below it.

    What is antisymmetric in real numbers is not once a compiler fuses products with
    sums.
    """
    d = x.shape[-1]
    upper = jnp.broadcast_to(np.triu(np.ones((d, d), bool), 1), x.shape)
    half = jnp.where(upper, x, 0)
    return half - jnp.swapaxes(half, -1, -2)


def _wedge(x, y):
    """`x^i y^j - y^i x^j` over the last axis."""
    product = x[..., :, None] * y[..., None, :]
    return product - jnp.swapaxes(product, -1, -2)


def _within(moments, terms: int):
    """Areas inside each piece. `L_{n-1} wedge L_n` carries its own normalisation."""
    out = jnp.zeros((moments.shape[0], *moments.shape[2:], moments.shape[-1]))
    out = out.astype(moments.dtype)
    for n in range(1, terms + 1):
        # (h/2) Z_{n-1} Z_n / sqrt(4n^2 - 1) = L_{n-1} L_n / 2
        out = out + _wedge(moments[:, n - 1], moments[:, n]) / 2
    return out


def _join(areas, increments):
    """Chen's relation over the leading axis."""
    before = jnp.cumsum(increments, axis=0) - increments
    return jnp.sum(areas + _wedge(before, increments) / 2, axis=0)


def _tail(key, stream: int, s, u, moments, length, terms: int):
    """A normal variable with the conditional variance of the neglected terms."""
    dtype = moments.dtype
    length = length.astype(dtype)
    last = moments[:, terms] ** 2 * (2 * terms + 1) * length  # Z_N^2 length^2
    pair = last[..., :, None] + last[..., None, :]
    variance = jnp.sum(
        (pair / (4 * (terms + 1) ** 2 - 1) + length**2 / (2 * terms + 3)) / 4, axis=0
    )
    words = key_words(key, stream)
    for time in (s, u):
        bits = jax.lax.bitcast_convert_type(time, jnp.uint32).reshape(-1)
        for i in range(bits.shape[0]):
            words = words ^ jnp.stack([bits[i], jnp.uint32(0)])
            words = key_words(words, 1)
    element = np.arange(variance.size, dtype=np.uint32).reshape(variance.shape)
    zero = jnp.zeros(variance.shape, jnp.uint32)
    z = normals(words, (zero, None), jnp.asarray(element), compute_dtype(dtype))
    return _antisymmetric(z.astype(dtype) * jnp.sqrt(variance))
