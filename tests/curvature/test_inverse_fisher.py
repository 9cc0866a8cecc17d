"""The inverse empirical Fisher matrix against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ROWS, SIZE, DAMPING = 5, 9, 0.3


def _rows(rng, dtype, scale=1.0):
    return jnp.asarray((scale * rng.normal(size=(ROWS, SIZE))).astype(dtype))


def _dense(rows, damping, block=None):
    rows = np.asarray(rows, np.float64)
    fisher = damping * np.eye(rows.shape[1]) + rows.T @ rows / len(rows)
    if block is not None:
        place = np.arange(rows.shape[1]) // block
        fisher = np.where(place[:, None] == place[None, :], fisher, 0.0)
    return np.linalg.inv(fisher)


def _error(found, exact):
    found, exact = np.asarray(found, np.float64), np.asarray(exact)
    return np.abs(found - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("block", [None, 4, 1])
def test_it_is_the_dense_inverse(rng, precision, block):
    """Products, the diagonal and entries, of the whole matrix or of its blocks."""
    rows = _rows(rng, precision.dtype)
    inverse = px.curvature.mfac_ihvp(rows, DAMPING, blocks=block)
    exact = _dense(rows, DAMPING, block)
    x = jnp.asarray(rng.normal(size=SIZE).astype(precision.dtype))
    limit = precision.tolerance(2000)
    assert _error(inverse.mul(x), exact @ np.asarray(x)) < limit
    assert _error(inverse.diag(), np.diag(exact)) < limit
    assert _error(inverse.entries(jnp.arange(SIZE)), exact) < limit


def test_blocks_are_not_the_whole(rng):
    rows = _rows(rng, np.float32)
    inverse = px.curvature.mfac_ihvp(rows, DAMPING, blocks=4)
    assert _error(inverse.diag(), np.diag(_dense(rows, DAMPING))) > 1e-3


def test_the_authors_recursion(rng, precision):
    """`v_i = g_i / d - sum v_l (v_l . g_i) / q_l`, `q_i = N + g_i . v_i`."""
    rows = np.asarray(_rows(rng, precision.dtype), np.float64)
    vectors, scales = [], []
    for g in rows:
        v = g / DAMPING
        for before, q in zip(vectors, scales, strict=True):
            v = v - before * (before @ g) / q
        vectors.append(v)
        scales.append(len(rows) + g @ v)
    x = rng.normal(size=SIZE)
    exact = x / DAMPING
    for v, q in zip(vectors, scales, strict=True):
        exact = exact - v * (v @ x) / q
    rows = jnp.asarray(rows.astype(precision.dtype))
    inverse = px.curvature.mfac_ihvp(rows, DAMPING)
    found = inverse.mul(jnp.asarray(x.astype(precision.dtype)))
    assert _error(found, exact) < precision.tolerance(2000)


def test_combinations_of_rows_lose_no_digits(rng):
    """In float32, where a difference of two long vectors has no digit left."""
    scale = 1e3
    rows = _rows(rng, np.float32, scale)
    damping = 1e-6 * scale**2 / ROWS
    inverse = px.curvature.mfac_ihvp(rows, damping)
    pick = jnp.zeros(ROWS).at[2].set(1.0)
    exact = _dense(rows, damping) @ np.asarray(rows[2], np.float64)
    assert _error(inverse.of_rows(pick), exact) < 1e-5
    assert _error(inverse.mul(rows[2]), exact) > 1e-2  # the other way


def test_the_diagonal_stays_above_its_bound(rng):
    """Rounding must not make a variance negative, nor infinite a score."""
    rows = _rows(rng, np.float32, 1e4)
    inverse = px.curvature.mfac_ihvp(rows, 1e-4)
    fisher = 1e-4 + np.mean(np.asarray(rows, np.float64) ** 2, axis=0)
    diag = np.asarray(inverse.diag())
    assert np.all(diag >= (1 - 1e-5) / fisher)


def test_trees_with_complex_leaves(rng):
    """In real coordinates: real and imaginary parts are numbers of their own."""
    shape = (ROWS, 2)
    parts = rng.normal(size=(3, *shape)).astype(np.float32)
    rows = {"a": jnp.asarray(parts[0]), "b": jnp.asarray(parts[1] + 1j * parts[2])}
    inverse = px.curvature.mfac_ihvp(rows, DAMPING)
    flat = np.stack([parts[1], parts[2]], axis=-1).reshape(ROWS, -1)
    exact = _dense(np.concatenate([parts[0], flat], axis=1), DAMPING)
    x = jax.tree.map(lambda r: r[0], rows)
    want = exact @ np.concatenate([parts[0][0], flat[0]])
    found = inverse.mul(x)
    assert found["b"].dtype == jnp.complex64
    b = np.asarray(found["b"])
    got = np.concatenate([found["a"], np.stack([b.real, b.imag], -1).ravel()])
    assert _error(got, want) < 1e-5


def test_compiled_and_differentiated(rng):
    """Through the damping, against a difference."""
    rows = _rows(rng, np.float32)
    value = jax.jit(lambda d: jnp.sum(px.curvature.mfac_ihvp(rows, d).diag()))
    slope = jax.grad(value)(0.5)
    step = 1e-2
    assert float(slope) == pytest.approx(
        float((value(0.5 + step) - value(0.5 - step)) / (2 * step)), rel=1e-2
    )


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        ({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, {}, "one leading axis"),
        (jnp.ones(()), {}, "one leading axis"),
        (jnp.ones((2, 3)), {"damping": 0.0}, "`damping` must be positive; got 0.0"),
        (jnp.ones((2, 3)), {"blocks": 0}, "`blocks` must be at least 1"),
    ],
)
def test_bad_input(rows, kwargs, message):
    with pytest.raises(ValueError, match=message):
        px.curvature.mfac_ihvp(rows, **({"damping": 1.0} | kwargs))


def test_a_vector_of_another_shape():
    inverse = px.curvature.mfac_ihvp(jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match="structure and the shapes of one row"):
        inverse.mul(jnp.ones(4))
