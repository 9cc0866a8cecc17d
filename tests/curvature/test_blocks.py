"""Averages over blocks of parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import curvature


def test_axes_by_shape_and_layout():
    shapes = {"0": (), "1": (3,), "2": (3, 4), "3": (3, 4, 5), "4": (3, 4, 5, 6)}
    tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    out_in = curvature.block_axes(tree)
    assert out_in == {"0": (), "1": (), "2": (1,), "3": (2,), "4": (2, 3)}
    in_out = curvature.block_axes(tree, "in_out")
    assert in_out == {"0": (), "1": (), "2": (0,), "3": (0,), "4": (0, 1)}


def test_layers_of_equinox_are_out_in(key):
    conv = eqx.nn.Conv2d(3, 4, 5, key=key)
    axes = curvature.block_axes(eqx.filter(conv, eqx.is_array))
    assert axes.weight == (2, 3)
    assert conv.bias.shape == (4, 1, 1)  # averaging over axes of length one is nothing
    linear = curvature.block_axes(
        eqx.filter(eqx.nn.Linear(3, 4, key=key), eqx.is_array)
    )
    assert (linear.weight, linear.bias) == ((1,), ())


def test_averages_are_means_over_the_axes(rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    tree = {"a": jnp.asarray(x), "b": jnp.asarray(x)}
    out = curvature.block_average(tree, {"a": (0, -1), "b": None})
    mean = x.mean(axis=(0, 2), keepdims=True)
    wanted = np.broadcast_to(mean, x.shape)
    np.testing.assert_allclose(out["a"], wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out["b"], x)
    kept = curvature.block_average(tree, {"a": (0, -1), "b": None}, broadcast=False)
    assert kept["a"].shape == (1, 4, 1)


@pytest.mark.parametrize("length", [1, 4, 5, 24, 100])
def test_runs(length, rng):
    """In the order of entries; the last run is shorter if it must be."""
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    out = curvature.block_average({"x": jnp.asarray(x), "bias": jnp.ones(3)}, length)
    flat = x.ravel()
    runs = [flat[i : i + length] for i in range(0, flat.size, length)]
    expected = np.concatenate([np.full(r.size, r.mean()) for r in runs])
    np.testing.assert_allclose(out["x"].ravel(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["bias"], 1)


@pytest.mark.parametrize("blocks", ["auto", 3, 7])
def test_layouts_give_transposed_results(blocks, rng):
    """And the wrong layout gives something else."""
    matrix = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 3, 2, 5)), jnp.float32)
    moves = {"m": (1, 0), "k": (2, 3, 1, 0)}
    tree = {"m": matrix, "k": kernel}
    turned = {name: jnp.transpose(x, moves[name]) for name, x in tree.items()}
    out = curvature.block_average(tree, blocks)
    other = curvature.block_average(turned, blocks, layout="in_out")
    wrong = curvature.block_average(turned, blocks)
    for name, move in moves.items():
        expected = jnp.transpose(out[name], move)
        np.testing.assert_allclose(other[name], expected, rtol=1e-5, atol=1e-6)
        assert np.max(np.abs(wrong[name] - expected)) > 1e-2


def test_gaps_and_empty_leaves_pass():
    tree = {
        "empty": jnp.zeros((3, 0)),
        "none": None,
        "masked": optax.MaskedNode(),
        "x": jnp.asarray([[1.0, 3.0]]),
    }
    out = curvature.block_average(tree)
    assert out["empty"].shape == (3, 0)
    assert out["none"] is None
    np.testing.assert_array_equal(out["x"], [[2.0, 2.0]])
    given = {"empty": (1,), "none": None, "masked": {"deep": (0,)}, "x": (1,)}
    np.testing.assert_array_equal(curvature.block_average(tree, given)["x"], out["x"])


def test_wrong_blocks_are_errors():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"'out_in'.*'in_out'"):
        curvature.block_axes(x, "oi")
    with pytest.raises(ValueError, match="'auto', None"):
        curvature.block_average(x, "rows")
    with pytest.raises(ValueError, match=r"\(2,\) for an array with 2 axes"):
        curvature.block_average([x], [(2,)])
    with pytest.raises(ValueError, match="at least one entry; got 0"):
        curvature.block_average(x, 0)


def test_averages_compile_once(no_retrace):
    average = lambda x: curvature.block_average(x, 4)
    compiled, eager = no_retrace(average, (jnp.ones((3, 3)),), (2 * jnp.ones((3, 3)),))
    np.testing.assert_array_equal(2 * compiled, eager)
    jax.eval_shape(average, jnp.ones((3, 3)))
