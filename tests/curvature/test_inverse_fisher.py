"""The inverse empirical Fisher matrix against dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ROWS, SIZE, DAMPING = 5, 9, 0.3

# Small programs, where compilation is what takes time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _rows(rng, dtype, scale=1.0):
    return (scale * rng.normal(size=(ROWS, SIZE))).astype(dtype)


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


# One program for all tests of a type.
@functools.partial(jax.jit, static_argnames="block", compiler_options=QUICK)
def _all(rows, x, weights, damping, block=None):
    inverse = px.curvature.mfac_ihvp(rows, damping, blocks=block)
    return {
        "product": inverse.mul(x),
        "of rows": inverse.of_rows(weights),
        "diagonal": inverse.diag(),
        "entries": inverse.entries(jnp.arange(SIZE)),
        "blocks": inverse.blocks(),
    }


def _everything(rows, x, weights, damping=DAMPING, block=None):
    given = jax.tree.map(jnp.asarray, (rows, x, weights))
    found = _all(*given, jnp.asarray(damping, rows.dtype), block=block)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("block", [None, 4, 1])
def test_it_is_the_dense_inverse(rng, precision, block):
    """Products, the diagonal and entries, of the whole matrix or of its blocks."""
    rows = _rows(rng, precision.dtype)
    x, weights = (rng.normal(size=n).astype(precision.dtype) for n in (SIZE, ROWS))
    found = _everything(rows, x, weights, block=block)
    exact = _dense(rows, DAMPING, block)
    limit = precision.tolerance(2000)
    assert _error(found["product"], exact @ x) < limit
    assert _error(found["of rows"], exact @ rows.T @ weights) < limit
    assert _error(found["diagonal"], np.diag(exact)) < limit
    assert _error(found["entries"], exact) < limit
    whole = np.zeros((12, 12))
    length = block or SIZE
    for i, dense in enumerate(found["blocks"]):
        place = slice(i * length, (i + 1) * length)
        whole[place, place] = dense
    assert _error(whole[:SIZE, :SIZE], exact) < limit


def test_blocks_are_not_the_whole(rng):
    rows = _rows(rng, np.float32)
    found = _everything(rows, rows[0], rows[:, 0], block=4)
    assert _error(found["diagonal"], np.diag(_dense(rows, DAMPING))) > 1e-3


def _recursion(rows, damping):
    """The authors' static algorithm, in double precision: vectors and scales.

    `v_i = g_i / d - sum v_l (v_l . g_i) / q_l`, `q_i = N + g_i . v_i`.
    """
    vectors, scales = [], []
    for g in rows.astype(np.float64):
        v = g / damping
        for before, q in zip(vectors, scales, strict=True):
            v = v - before * (before @ g) / q
        vectors.append(v)
        scales.append(len(rows) + g @ v)
    return np.stack(vectors), np.asarray(scales)


def test_the_authors_recursion(rng, precision):
    """Of products, and of entries as a sum over vectors."""
    rows = _rows(rng, precision.dtype)
    vectors, scales = _recursion(rows, DAMPING)
    x = rng.normal(size=SIZE).astype(precision.dtype)
    found = _everything(rows, x, rows[:, 0])
    limit = precision.tolerance(2000)
    product = x / DAMPING - vectors.T @ (vectors @ x / scales)
    assert _error(found["product"], product) < limit
    entries = np.eye(SIZE) / DAMPING - vectors.T @ (vectors / scales[:, None])
    assert _error(found["entries"], entries) < limit


def test_order_of_rows_does_not_matter(rng, precision):
    rows = _rows(rng, precision.dtype)
    order = rng.permutation(ROWS)
    one = _everything(rows, rows[0], rows[:, 1])
    other = _everything(rows[order], rows[0], rows[order, 1])
    for name in one:
        assert _error(one[name], other[name]) < precision.tolerance(2000)


def test_combinations_of_rows_lose_no_digits(rng):
    """In float32, where a difference of two long vectors has no digit left."""
    rows = np.eye(ROWS, SIZE) + 0.1 * rng.normal(size=(ROWS, SIZE))
    rows = (1e3 * rows).astype(np.float32)
    damping = 1e-6 * 1e6 / ROWS
    found = _everything(rows, rows[2], np.eye(ROWS, dtype=np.float32)[2], damping)
    exact = _dense(rows, damping) @ rows[2]
    assert _error(found["of rows"], exact) < 1e-5
    assert _error(found["product"], exact) > 1e-2  # the other way


@pytest.mark.parametrize("spread", [1e-4, 0.0])
def test_parallel_rows(rng, spread):
    """Inner products are singular to rounding, and the damping is below that."""
    rows = np.ones((ROWS, 1)) + spread * rng.normal(size=(ROWS, SIZE))
    rows = (1e2 * rows).astype(np.float32)
    x = rng.normal(size=SIZE).astype(np.float32)
    found = _everything(rows, x, rows[:, 0], 1e-3)
    assert all(np.all(np.isfinite(v)) for v in found.values())
    away = x - x.mean()  # no row has this direction, but for the spread
    along = np.ones(SIZE, np.float32)
    ratio = [
        np.linalg.norm(_everything(rows, v, rows[:, 0], 1e-3)["product"])
        / np.linalg.norm(v)
        for v in (along, away)
    ]
    assert ratio[0] < 1e-2 * ratio[1] <= 1e-2 * 1e3 * (1 + 1e-4)


def test_rows_of_very_different_lengths(rng):
    """The short ones count as much as alone, in digits."""
    lengths = np.geomspace(1e4, 1, ROWS)[:, None]
    rows = np.eye(ROWS, SIZE) + 0.1 * rng.normal(size=(ROWS, SIZE))
    rows = (lengths * rows).astype(np.float32)
    last = np.eye(ROWS, dtype=np.float32)[-1]
    found = _everything(rows, rows[-1], last, 1e-3)
    exact = _dense(rows, 1e-3) @ rows[-1]
    assert _error(found["of rows"], exact) < 1e-4


def test_the_diagonal_stays_above_its_bound(rng):
    """Rounding must not make a variance negative, nor infinite a score."""
    rows = _rows(rng, np.float32, 1e4)
    found = _everything(rows, rows[0], rows[:, 0], 1e-4)
    fisher = 1e-4 + np.mean(rows.astype(np.float64) ** 2, axis=0)
    assert np.all(found["diagonal"] >= (1 - 1e-5) / fisher)


def test_masked_parameters_are_as_if_absent(rng, precision):
    rows = _rows(rng, precision.dtype)
    keep = np.arange(SIZE) % 3 != 1
    x = rng.normal(size=SIZE).astype(precision.dtype) * keep
    given = [jnp.asarray(v) for v in (rows, keep, x)]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(rows, keep, x):
        inverse = px.curvature.mfac_ihvp(rows, DAMPING, mask=keep)
        return inverse.mul(x), inverse.diag()

    product, diagonal = map(np.asarray, run(*given))
    exact = _dense(rows[:, keep], DAMPING)
    limit = precision.tolerance(2000)
    assert _error(product[keep], exact @ x[keep]) < limit
    assert _error(diagonal[keep], np.diag(exact)) < limit
    assert np.all(product[~keep] == 0)
    assert _error((_dense(rows, DAMPING) @ x)[keep], exact @ x[keep]) > 1e-3


def test_trees_with_complex_leaves(rng):
    """In real coordinates: real and imaginary parts are numbers of their own."""
    shape = (ROWS, 2)
    parts = rng.normal(size=(3, *shape)).astype(np.float32)
    rows = {"a": jnp.asarray(parts[0]), "b": jnp.asarray(parts[1] + 1j * parts[2])}
    flat = np.stack([parts[1], parts[2]], axis=-1).reshape(ROWS, -1)
    exact = _dense(np.concatenate([parts[0], flat], axis=1), DAMPING)
    x = jax.tree.map(lambda r: r[0], rows)
    want = exact @ np.concatenate([parts[0][0], flat[0]])
    run = jax.jit(lambda r, x: px.curvature.mfac_ihvp(r, DAMPING).mul(x))
    found = run(rows, x)
    assert found["b"].dtype == jnp.complex64
    b = np.asarray(found["b"])
    got = np.concatenate([found["a"], np.stack([b.real, b.imag], -1).ravel()])
    assert _error(got, want) < 1e-4


def test_differentiated_through_the_damping(rng):
    """Against a difference; also where each of a batch has its own."""
    rows = jnp.asarray(_rows(rng, np.float32))
    value = lambda d: jnp.sum(px.curvature.mfac_ihvp(rows, d).diag())
    both = jax.jit(jax.vmap(jax.value_and_grad(value)), compiler_options=QUICK)
    step = 1e-2
    values, slopes = both(jnp.asarray([0.5 - step, 0.5, 0.5 + step]))
    difference = float((values[2] - values[0]) / (2 * step))
    assert float(slopes[1]) == pytest.approx(difference, rel=1e-2)


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
    def run():
        return px.curvature.mfac_ihvp(jnp.ones((2, 3)), 1.0).mul(jnp.ones(4))

    with pytest.raises(ValueError, match="structure and the shapes of one row"):
        jax.eval_shape(run)
