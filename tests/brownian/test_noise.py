"""The cipher, the key words and the normal transform, against other implementations."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from pathax.brownian._noise import key_words, normals, threefry


PAIRS = 4096  # of random words at a time


# The cipher ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # known answers that come with Random123
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_known_answers(key, counter, expected):
    words = [tuple(jnp.uint32(x) for x in pair) for pair in (key, counter)]
    assert tuple(int(x) for x in threefry(*words)) == expected


def test_cipher_is_the_one_of_jax(rng):
    key, low, high = (jnp.asarray(x) for x in _words(rng, 3))
    ours = jnp.concatenate(jax.jit(threefry)((key[0], key[1]), (low, high)))
    theirs = jax.extend.random.threefry_2x32(key[:2], jnp.concatenate([low, high]))
    assert jnp.array_equal(ours, theirs)


def test_cipher_folds_in_like_jax(rng):
    """`fold_in` is one block; its counter is the seed key of the folded number."""
    data = jnp.asarray(_words(rng, 1)[0][:2])
    key = jax.random.wrap_key_data(data, impl="threefry2x32")
    folded = jax.random.key_data(jax.random.fold_in(key, 123456789))
    zero = jnp.uint32(0)
    ours = threefry((data[0], data[1]), (zero, jnp.uint32(123456789)))
    assert jnp.array_equal(jnp.stack(ours), folded)


def _words(rng, count):
    return rng.integers(0, 2**32, (count, PAIRS), dtype=np.uint32)


# Keys ---------------------------------------------------------------------------------


def test_key_styles(seed):
    """A legacy key and a typed one of the same bits are the same key."""
    new, legacy = jax.random.key(seed), jax.random.PRNGKey(seed)
    assert jnp.array_equal(key_words(new, 3), key_words(legacy, 3))
    assert key_words(new, 3).dtype == jnp.uint32


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_bit_of_a_key_counts(impl, rng):
    size = 2 if impl == "threefry2x32" else 4
    data = rng.integers(0, 2**32, size, dtype=np.uint32)
    flips = np.zeros((32 * size + 1, size), np.uint32)
    for i in range(32 * size):
        flips[i + 1, i // 32] = 1 << (i % 32)
    keys = jax.random.wrap_key_data(jnp.asarray(data ^ flips), impl=impl)
    words = np.asarray(jax.vmap(lambda key: key_words(key, 0))(keys))
    changed = np.unpackbits((words[0] ^ words[1:]).view(np.uint8), axis=1).sum(axis=1)
    # Binomial(64, 1/2): outside with probability 1e-10 for one of these.
    assert changed.min() > 6
    assert changed.max() < 58
    assert len(np.unique(words, axis=0)) == len(words)


def test_streams_of_one_key_differ(key):
    words = jax.vmap(lambda i: key_words(key, i))(jnp.arange(256))
    assert len(np.unique(np.asarray(words).reshape(-1))) == 512


def test_numbers_depend_on_every_label(key):
    words = key_words(key, 0)
    node = jnp.repeat(jnp.arange(16, dtype=jnp.uint32), 16)
    element = jnp.tile(jnp.arange(16, dtype=jnp.uint32), 16)
    zero, one = jnp.zeros_like(node), jnp.ones_like(node)
    draw = lambda high: normals(words, (node, high), element, np.dtype(np.float32))
    shallow, deep, deeper = draw(None), draw(zero), draw(one)
    assert jnp.array_equal(shallow, deep)  # labels of few bits are the same in both
    assert len(np.unique(np.concatenate([shallow, deeper]))) == 512


# The normal transform -----------------------------------------------------------------


def _extreme_words():
    powers = 2 ** np.arange(32, dtype=np.uint64)
    edges = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint64)
    near = np.concatenate([powers, powers - 1, powers + 1, 2**31 + powers // 2])
    return np.concatenate([edges, near]).astype(np.uint32)


def _from_words(first, second=None):
    """The transform alone: `normals` with its cipher replaced by given words."""
    from pathax.brownian import _noise

    if second is None:
        return np.asarray(_noise._normal32(jnp.asarray(first)))
    return np.asarray(_noise._normal64((jnp.asarray(first), jnp.asarray(second))))


def test_float32_normals_are_accurate(rng):
    words = np.concatenate([_extreme_words(), *_words(rng, 8)])
    z = _from_words(words)
    assert z.dtype == np.float32
    assert np.all(np.isfinite(z))
    # Of the probability that float32 holds, exactly rounded or not.
    magnitude = (words & 0x7FFFFFFF).astype(np.float32)
    tail = (magnitude + np.float32(0.5)) * np.float32(2.0**-31)
    sign = np.where(words >> 31, -1.0, 1.0)
    exact = -sign * scipy.special.ndtri(tail.astype(np.float64) / 2)
    assert np.abs(z - exact).max() < 1e-6 * np.abs(exact).max()
    relative = np.abs(z - exact)[exact != 0] / np.abs(exact)[exact != 0]
    assert relative.max() < 1.2e-6
    # And of the word itself, as all 31 bits count in the tails.
    fine = ((words & 0x7FFFFFFF).astype(np.float64) + 0.5) * 2.0**-31
    whole = -sign * scipy.special.ndtri(fine / 2)
    slope = np.sqrt(np.pi / 2) * np.exp(whole**2 / 2)  # dz / dtail
    assert np.all(np.abs(z - whole) < 1.2e-6 * np.abs(whole) + slope * fine * 2.0**-23)
    assert np.abs(z).max() > 6.2


@pytest.mark.usefixtures("x64")
def test_float64_normals_are_accurate(rng):
    edges = _extreme_words()
    high, low = (x.ravel() for x in np.meshgrid(edges, edges))
    first, second = (np.concatenate([x, *_words(rng, 8)]) for x in (high, low))
    z = _from_words(first, second)
    assert z.dtype == np.float64
    assert np.all(np.isfinite(z))
    whole = first.astype(object) * 2**21 + (second >> 12).astype(object) * 2 + 1
    uniform = np.array([float(n - 2**52) for n in whole]) / 2.0**52  # exact
    tail = np.array([float(min(n, 2**53 - n)) for n in whole]) / 2.0**53
    outer = np.sign(uniform) * -scipy.special.ndtri(tail)
    exact = np.where(
        np.abs(uniform) < 0.5, np.sqrt(2) * scipy.special.erfinv(uniform), outer
    )
    # The inverse error function rounds 1 - x^2 once, which far tails magnify (their
    # probability is 1e-8 beyond the 5.7 standard deviations where that takes over).
    slope = np.sqrt(np.pi / 2) * np.exp(exact**2 / 2)  # dz / duniform
    assert np.all(np.abs(z - exact) < 1e-13 * np.abs(exact) + 2.0**-53 * slope)
    assert np.abs(z).max() > 8


def test_float32_normals_are_symmetric(rng):
    words = np.concatenate([_extreme_words(), *_words(rng, 2)])
    z, flipped = _from_words(words), _from_words(words ^ np.uint32(1 << 31))
    assert np.array_equal(z, -flipped)


@pytest.mark.usefixtures("x64")
def test_float64_normals_are_symmetric(rng):
    first, second = _words(rng, 2)
    z = _from_words(first, second)
    flipped = _from_words(~first, second ^ np.uint32(0xFFFFF000))
    assert np.array_equal(z, -flipped)


def test_moments_and_distribution(precision, key):
    """Each check has a false-alarm rate below 1e-8."""
    count = 1_000_000
    nodes = jnp.arange(count // 10, dtype=jnp.uint32)[:, None]
    element = jnp.arange(10, dtype=jnp.uint32)
    draw = jax.jit(
        lambda words: normals(words, (nodes, None), element[None], precision.dtype)
    )
    z = np.asarray(draw(key_words(key, 0)), np.float64)
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = np.mean(z**power) - mean
        assert abs(error) < 6 * np.sqrt(variance / count), power
    for shift in (1, 3):  # neighbours among nodes, and among elements
        for axis in (0, 1):
            other = np.roll(z, shift, axis)
            assert abs(np.mean(z * other)) < 6 / np.sqrt(count)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-9
