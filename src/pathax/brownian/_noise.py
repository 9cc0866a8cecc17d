"""Counter-based standard normals: `(key, node, element) -> N(0, 1)`.

Every normal is a pure function of two key words and two counter words through the
Threefry-2x32 block cipher with 20 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011). Nothing is split sequentially, so the normals of
all nodes that a query needs are one wide, fusible elementwise operation.

Two things differ from `jax.random.normal`, both for speed and precision in float32:

- All 32 bits of a word enter the normal: one sign bit, and 31 bits for the tail
  probability, which is held as a *distance from one*. The tails reach 6.3 standard
  deviations (5.4 for a uniform number on a grid of spacing 2^-23).

The cipher is written out here, unrolled, because the public one is lowered to a loop on
CPU, which costs a loop a query; it gives the same words as `jax.random` does.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32


_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_ROUNDS = 20

# sqrt(2) erfinv(x) = x p(w), w = -log(1 - x^2): least-maximum-error fits, relative
# error 3e-7 for w < 5 (in w - 2.5) and 4e-7 for 5 <= w < 21.7 (in sqrt(w) - centre).
_CENTRAL = (
    4.0354585e-08,
    4.8610212e-07,
    -4.9905648e-06,
    -6.2179747e-06,
    3.0915020e-04,
    -1.7730102e-03,
    -5.9081712e-03,
    3.4880266e-01,
    2.1233137,
)
_TAIL = (
    -2.5678992e-05,
    -2.6019051e-04,
    9.5191319e-04,
    -1.3089989e-03,
    1.6804894e-03,
    -3.2088580e-03,
    5.1484657e-03,
    1.4241223,
    4.6430683,
)
_TAIL_CENTRE = 3.4480339


def _rotate(x: Array, distance: int) -> Array:
    return (x << np.uint32(distance)) | (x >> np.uint32(32 - distance))


def threefry(
    key: tuple[Array, Array], counter: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Threefry-2x32-20 of broadcastable uint32 arrays: two words for two words."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(_ROUNDS):
        x = x + y
        y = _rotate(y, _ROTATIONS[i % 8]) ^ x
        if i % 4 == 3:
            j = i // 4 + 1
            x = x + schedule[j % 3]
            y = y + schedule[(j + 1) % 3] + np.uint32(j)
    return x, y


@jax.jit
def key_words(key: PRNGKeyArray | Array, stream: int | Array) -> UInt32[Array, "2"]:
    """Two key words for stream number `stream` of a JAX key of any implementation.

    The words of the key are absorbed two at a time through the cipher, so that keys
    which differ in a single bit give unrelated streams.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = key.astype(jnp.uint32).reshape(-1)
    if words.shape[0] % 2 == 1:
        words = jnp.concatenate([words, jnp.zeros((1,), jnp.uint32)])
    state = (words[0], words[1])
    for i in range(2, words.shape[0], 2):
        state = threefry(state, (words[i], words[i + 1]))
    return jnp.stack(threefry(state, (jnp.uint32(stream), jnp.uint32(0xB7E15162))))


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    out = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        out = out * x + np.float32(c)
    return out


def _normal32(word: UInt32[Array, "*n"]) -> Float[Array, "*n"]:
    """N(0, 1) in float32 from all 32 bits of a word."""
    magnitude = (word & np.uint32(0x7FFFFFFF)).astype(jnp.float32)
    tail = (magnitude + np.float32(0.5)) * np.float32(2.0**-31)  # 1 - |x|, in (0, 1]
    w = -jnp.log(tail * (2 - tail))
    central = _horner(_CENTRAL, w - np.float32(2.5))
    extreme = _horner(_TAIL, jnp.sqrt(w) - np.float32(_TAIL_CENTRE))
    z = (1 - tail) * jnp.where(w < 5, central, extreme)
    sign = word & np.uint32(0x80000000)
    bits = jax.lax.bitcast_convert_type(z, jnp.uint32) ^ sign
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _normal64(words: tuple[Array, Array]) -> Float[Array, "*n"]:
    """N(0, 1) in float64 from 52 of the 64 bits of a block."""
    high = words[0].astype(jnp.float64) * 2.0**-31
    low = ((words[1] >> np.uint32(12)).astype(jnp.float64) + 0.5) * 2.0**-51
    uniform = (high - 1) + low  # exact: an odd multiple of 2^-52 inside (-1, 1)
    return np.sqrt(2.0) * jax.lax.erf_inv(uniform)


def normals(
    words: UInt32[Array, "2"],
    nodes: tuple[UInt32[Array, "..."], UInt32[Array, "..."] | None],
    element: UInt32[Array, "..."],
    dtype: np.dtype,
) -> Float[Array, "..."]:
    """Standard normals, each a function of the key, a node label and an element number.

    **Arguments:**

    - `words`: two key words, as from `key_words`.
    - `nodes`: low and high words of the labels; the high ones are `None` if all zero.
    - `element`: counts the normals of one node; broadcasts against the labels.
    - `dtype`: float32 (32 random bits a normal) or float64 (52 bits).
    """
    low, high = nodes
    key = (words[0], words[1])
    if high is not None:
        deep = threefry(key, (high, jnp.full_like(high, 0x5EED0001)))
        key = (
            jnp.where(high == 0, key[0], deep[0]),
            jnp.where(high == 0, key[1], deep[1]),
        )
    block = threefry(key, (element, low))
    return _normal64(block) if dtype == jnp.float64 else _normal32(block[0])
