"""One gradient an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathax import curvature


def _loss(params, example):
    x, y = example
    return jnp.sum((jnp.tanh(x @ params["w"]) - y) ** 2) * params["s"]


@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 8])
def test_rows_are_single_gradients(chunk, precision, rng):
    """Whole batches, chunks that divide it and chunks that don't."""
    dtype = precision.dtype
    params = {
        "w": jnp.asarray(rng.normal(size=(3, 2)), dtype),
        "s": jnp.asarray(1.5, dtype),
        "absent": None,
    }
    batch = (
        jnp.asarray(rng.normal(size=(5, 3)), dtype),
        jnp.asarray(rng.normal(size=(5, 2)), dtype),
    )

    def both(params, batch):
        rows = curvature.empirical_fisher_rows(_loss, params, batch, chunk=chunk)
        mean = lambda p: jnp.mean(jax.vmap(_loss, (None, 0))(p, batch))
        last = jax.grad(_loss)(params, jax.tree.map(lambda b: b[-1], batch))
        return rows, jax.grad(mean)(params), last

    rows, mean, last = jax.jit(both)(params, batch)
    assert rows["absent"] is None
    for name in ("w", "s"):
        assert rows[name].shape == (5, *params[name].shape)
        limit = precision.tolerance(50) * np.max(np.abs(rows[name]))
        assert np.max(np.abs(np.mean(rows[name], axis=0) - mean[name])) <= limit
        assert np.max(np.abs(rows[name][-1] - last[name])) <= limit


def test_complex_rows_are_derivatives_in_real_coordinates():
    """`Re(x z)` rises by `Re x` along the real axis and by `-Im x` along the other."""
    x = jnp.asarray([1.0 + 2j, 3.0 - 1j], jnp.complex64)
    loss = lambda z, x: jnp.real(x * z)
    z = jnp.asarray(0.5j, jnp.complex64)
    rows = curvature.empirical_fisher_rows(loss, z, x)
    np.testing.assert_array_equal(rows, jnp.conj(x))


def test_wrong_batches_and_chunks_are_errors():
    run = lambda batch, chunk=None: curvature.empirical_fisher_rows(
        lambda p, e: jnp.sum(p), jnp.ones(2), batch, chunk=chunk
    )
    with pytest.raises(ValueError, match=r"one leading axis.*\(2,\), \(3,\)"):
        run((jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match="one leading axis"):
        run(jnp.asarray(1.0))
    with pytest.raises(ValueError, match="at least 1, or None; got 0"):
        run(jnp.ones(2), 0)
