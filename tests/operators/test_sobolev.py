"""Sobolev norms against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


norm, inner = px.operators.sobolev_norm, px.operators.sobolev_inner
GRID = px.operators.Grid((12, 15), (2.0, 3.0))
ORDERS = (-2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 2.0)


def mode(m, n, phase=0.4):
    x, y = GRID.points()
    return jnp.cos(2 * jnp.pi * (m * x / 2 + n * y / 3) + phase)


def square(m, n):
    return (2 * np.pi) ** 2 * ((m / 2) ** 2 + (n / 3) ** 2)


@pytest.mark.parametrize("s", ORDERS)
def test_single_modes(s, precision):
    """A wave of amplitude one has the mean square 1/2; modes add up."""
    rtol = max(precision.tolerance(100), 1e-12)
    for m, n in ((1, 0), (0, 2), (3, -2)):
        u = mode(m, n)
        wanted = np.sqrt(6.0 * 0.5 * square(m, n) ** s)
        np.testing.assert_allclose(norm(GRID, u, s), wanted, rtol=rtol)
        np.testing.assert_allclose(norm(GRID, GRID.rfft(u), s), wanted, rtol=rtol)
        mean = norm(GRID, u, s, normalization="mean", shift=2.0)
        wanted = np.sqrt(0.5 * (2 + square(m, n)) ** s)
        np.testing.assert_allclose(mean, wanted, rtol=rtol)
    both = norm(GRID, mode(1, 0) + mode(3, -2), s) ** 2
    np.testing.assert_allclose(
        both, 3.0 * (square(1, 0) ** s + square(3, -2) ** s), rtol=rtol
    )


def test_closed_forms_in_double_precision_to_1e_12():
    with jax.enable_x64(True):
        for s in ORDERS:
            u = mode(2, 1)
            wanted = np.sqrt(3.0 * square(2, 1) ** s)
            assert abs(float(norm(GRID, u, s)) / wanted - 1) < 1e-12


def test_order_zero_is_the_mean_square_and_one_the_gradients(rng):
    with jax.enable_x64(True):
        u = jnp.asarray(rng.normal(size=GRID.shape))
        kept = norm(GRID, u, 0.0, zero_mode="keep", normalization="mean")
        np.testing.assert_allclose(kept, np.sqrt(np.mean(u**2)), rtol=1e-12)
        w = GRID.rfft(u) * GRID.mask("2/3", complex)
        slopes = [GRID.irfft(GRID.derivative(w, axis)) for axis in range(2)]
        wanted = 6.0 * np.mean(slopes[0] ** 2 + slopes[1] ** 2)
        np.testing.assert_allclose(norm(GRID, w, 1.0) ** 2, wanted, rtol=1e-12)
        wrong = norm(GRID, w, 0.5) ** 2  # as a published class weights order one
        assert abs(wrong / wanted - 1) > 0.1


def test_powers_of_the_laplacian_move_the_order(rng):
    with jax.enable_x64(True):
        u = GRID.rfft(jnp.asarray(rng.normal(size=GRID.shape)))
        for s, power in ((0.7, 0.4), (-1.0, 0.5)):
            np.testing.assert_allclose(
                norm(GRID, GRID.laplacian(u, power), s),
                norm(GRID, u, s + 2 * power),
                rtol=1e-12,
            )
        v = GRID.rfft(jnp.asarray(rng.normal(size=GRID.shape)))
        pairing = inner(GRID, GRID.laplacian(u, -0.5), GRID.laplacian(v, 0.5), 0.0)
        np.testing.assert_allclose(pairing, inner(GRID, u, v, 0.0), rtol=1e-11)


def test_velocity_and_vorticity(key):
    """One derivative apart."""
    with jax.enable_x64(True):
        grid = px.operators.Grid((16, 16), (2.0, 2.0))
        w = grid.rfft(px.operators.mcwilliams_vorticity(key, grid))
        for s in (-1.0, 0.0, 0.5):
            flow = sum(norm(grid, u, s) ** 2 for u in grid.velocity(w))
            np.testing.assert_allclose(flow, norm(grid, w, s - 1) ** 2, rtol=1e-12)


def test_means():
    u = mode(1, 0) + 2.0
    drop = norm(GRID, u, 0.0)
    np.testing.assert_allclose(drop, np.sqrt(3.0), rtol=1e-5)
    kept = norm(GRID, u, 0.0, zero_mode="keep")
    np.testing.assert_allclose(kept, np.sqrt(3.0 + 24.0), rtol=1e-5)
    shifted = norm(GRID, u, -1.0, shift=1.0, zero_mode="keep")
    wanted = 3.0 / (1 + square(1, 0)) + 24.0
    np.testing.assert_allclose(shifted, np.sqrt(wanted), rtol=1e-5)
    with pytest.raises(ValueError, match="no weight for the mean"):
        norm(GRID, u, -1.0, zero_mode="keep")
    with pytest.raises(Exception, match="has a mean"):
        norm(GRID, u, 0.0, zero_mode="raise")
    norm(GRID, mode(1, 0), 0.0, zero_mode="raise")


def test_over_time_and_losses():
    frames = jnp.stack([mode(1, 0), 2 * mode(1, 0)])
    found = px.operators.bochner_norm(GRID, frames, 0.0, jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(found, np.sqrt(3 * 0.5 + 12 * 0.25), rtol=1e-5)
    batch = jnp.stack([frames, 3 * frames])
    loss = px.operators.sobolev_loss(GRID, 1.1 * batch, batch, -1.0)
    np.testing.assert_allclose(loss, [0.1, 0.1], rtol=1e-4)
    absolute = px.operators.sobolev_loss(GRID, 2 * batch, batch, relative=False)
    np.testing.assert_allclose(absolute[1], 3 * absolute[0], rtol=1e-5)


def test_gradient_at_zero_is_zero():
    slope = jax.grad(lambda u: norm(GRID, u, -1.0))(jnp.zeros(GRID.shape))
    np.testing.assert_array_equal(slope, 0)


def test_spectrum_adds_up(rng):
    u = jnp.asarray(rng.normal(size=(3, *GRID.shape)), jnp.float32)
    shells = px.operators.energy_spectrum(GRID, u)
    np.testing.assert_allclose(
        shells.sum(axis=1), 0.5 * np.mean(u**2, axis=(1, 2)), rtol=1e-5
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"fields of shape \(..., 12, 15\)"):
        norm(GRID, jnp.zeros((12, 14)), 0.0)
    with pytest.raises(ValueError, match="zero_mode"):
        norm(GRID, jnp.zeros((12, 15)), 0.0, zero_mode="zero")
    with pytest.raises(ValueError, match="normalization"):
        norm(GRID, jnp.zeros((12, 15)), 0.0, normalization="l2")
