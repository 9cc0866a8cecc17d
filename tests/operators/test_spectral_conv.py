"""The spectral convolution against dense Fourier sums, on many grids."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.operators._spectral_conv import retained


GRIDS = [((5,), (16,)), ((3, 4), (8, 9)), ((2, 2, 3), (5, 4, 6))]


def wavenumbers(modes):
    """Of the retained amplitudes, in their order, `(count, d)`."""
    axes = [[*range(m), *range(-m, 0)] for m in modes[:-1]] + [list(range(modes[-1]))]
    return np.array(list(itertools.product(*axes)))


def points(shape):
    axes = [np.arange(n) / n for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


def dense(layer, x, out_shape):
    """The layer as sums over all points and wavenumbers, in double precision."""
    k = wavenumbers(layer.modes)
    x = np.asarray(x, np.float64)
    shape = x.shape[1:]
    forward = np.exp(-2j * np.pi * k @ points(shape).T) / np.prod(shape)
    pairs = np.asarray(layer.weight, np.float64)
    weight = (pairs[..., 0] + 1j * pairs[..., 1]).reshape(*pairs.shape[:2], -1)
    y = np.einsum("im,iom->om", x.reshape(len(x), -1) @ forward.T, weight)
    if layer.bias is not None:
        pairs = np.asarray(layer.bias, np.float64)
        y = y + (pairs[..., 0] + 1j * pairs[..., 1]).reshape(len(pairs), -1)
    twice = (k[:, -1] > 0) & (2 * k[:, -1] != out_shape[-1])
    back = np.exp(2j * np.pi * points(out_shape) @ k.T) * np.where(twice, 2, 1)
    return (y @ back.T).real.reshape(-1, *out_shape)


def with_bias(layer, key):
    bias = jax.random.normal(key, layer.bias.shape, layer.bias.dtype)
    return eqx.tree_at(lambda layer: layer.bias, layer, bias)


@pytest.mark.parametrize(("modes", "shape"), GRIDS)
def test_dense_sums(modes, shape, precision, getkey):
    layer = px.operators.SpectralConv(2, 3, modes, use_bias=True, key=getkey())
    layer = with_bias(layer, getkey())
    x = jax.random.normal(getkey(), (2, *shape), precision.dtype)
    for out_shape in (shape, tuple(n + 3 for n in shape)):
        got = eqx.filter_jit(layer)(x, out_shape)
        want = dense(layer, x, out_shape)
        assert got.dtype == precision.dtype
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        assert error < precision.tolerance(32)


def test_dense_sums_reject_other_conventions(getkey):
    """A wrong order of wavenumbers, or sums instead of amplitudes, is seen."""
    layer = px.operators.SpectralConv(1, 1, (3, 3), key=getkey())
    x = jax.random.normal(getkey(), (1, 8, 8))
    want = dense(layer, x, (8, 8))
    swapped = eqx.tree_at(lambda n: n.weight, layer, jnp.roll(layer.weight, 3, axis=2))
    run = eqx.filter_jit(lambda layer: layer(x))
    for wrong in (run(swapped), 64 * run(layer)):
        assert np.abs(np.asarray(wrong) - want).max() > 0.1 * np.abs(want).max()


def band_limited(key, modes, shape, dtype):
    """A random real field without amplitudes at or beyond `modes`, at any grid."""
    k = wavenumbers(modes)
    k = k[(np.abs(k) < np.array(modes)).all(1)]
    c = np.asarray(jax.random.normal(key, (2, len(k))), np.float64)
    back = np.exp(2j * np.pi * points(shape) @ k.T)
    return jnp.asarray((back @ (c[0] + 1j * c[1])).real.reshape(1, *shape), dtype)


def test_the_grid_does_not_matter(precision, getkey):
    """Input, weight and bias mean the same on any grid that resolves them."""
    modes, key = (4, 3), getkey()
    layer = px.operators.SpectralConv(1, 2, modes, use_bias=True, key=getkey())
    layer = with_bias(layer, getkey())
    coarse = band_limited(key, modes, (9, 8), precision.dtype)
    fine = band_limited(key, modes, (18, 24), precision.dtype)
    run = eqx.filter_jit(layer)
    expected = np.asarray(run(coarse))
    scale = np.abs(expected).max()
    for x, out in ((fine, None), (coarse, (18, 24)), (fine, (9, 8))):
        got = run(x, out)
        got = got if got.shape[1] == 9 else got[:, ::2, ::3]
        assert np.abs(np.asarray(got) - expected).max() < scale * precision.tolerance(
            64
        )
    sums = np.asarray(retained(fine, modes)) * 18 * 24  # what a backward norm gives
    other = np.asarray(retained(coarse, modes)) * 9 * 8
    assert np.abs(sums - other).max() > np.abs(other).max()


def test_constants(getkey):
    """The kernel of wavenumber zero alone acts on a constant."""
    layer = px.operators.SpectralConv(1, 1, (3, 3), key=getkey())
    y = layer(jnp.full((1, 8, 8), 2.0))
    np.testing.assert_allclose(y, 2 * layer.weight[0, 0, 0, 0, 0], rtol=1e-5)


def test_transforms(getkey, no_retrace):
    layer = px.operators.SpectralConv(2, 1, (3, 3), key=getkey())
    xs = jax.random.normal(getkey(), (3, 2, 8, 8))
    batch, _ = no_retrace(jax.vmap(layer), (xs,), (2 * xs,))
    for x, y in zip(xs, batch, strict=True):
        np.testing.assert_allclose(layer(x), y, atol=1e-6)


def test_gradient(getkey):
    """The layer is linear in its weights, so a difference of values is a derivative."""
    with jax.enable_x64(True):
        layer = px.operators.SpectralConv(1, 2, (3, 2), use_bias=True, key=getkey())
        x = jax.random.normal(getkey(), (1, 7, 6))
        params, static = eqx.partition(layer, eqx.is_array)
        f = jax.jit(lambda p: jnp.sum(jnp.sin(eqx.combine(p, static)(x))))
        step = jax.tree.map(lambda p: jax.random.normal(getkey(), p.shape), params)
        h = 1e-6
        at = lambda s: f(jax.tree.map(lambda p, d: p + s * d, params, step))
        want = (at(h) - at(-h)) / (2 * h)
        grads = jax.tree.leaves(jax.grad(f)(params))
        got = sum(
            jnp.vdot(g, d) for g, d in zip(grads, jax.tree.leaves(step), strict=True)
        )
        np.testing.assert_allclose(got, want, rtol=1e-7)


def test_grids_that_are_too_coarse(getkey):
    layer = px.operators.SpectralConv(1, 1, (4, 3), key=getkey())
    with pytest.raises(ValueError, match=r"at least \(8, 4\) points; the input"):
        layer(jnp.zeros((1, 7, 8)))
    with pytest.raises(ValueError, match="the output"):
        layer(jnp.zeros((1, 8, 8)), (8, 3))
    with pytest.raises(ValueError, match="2 axes"):
        layer(jnp.zeros((1, 8)))
    with pytest.raises(ValueError, match="one positive number an axis"):
        px.operators.SpectralConv(1, 1, (), key=getkey())
