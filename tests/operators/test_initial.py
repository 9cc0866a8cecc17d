"""Random initial fields: the laws that they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ops = px.operators
TWO_PI = 2 * np.pi


def test_variances_of_a_gaussian_field(key):
    """Of each mode, over many samples; two of a half spectrum's are real."""
    grid = ops.Grid((12, 12), (1.0, 1.0))
    count = 4000
    draw = jax.jit(jax.vmap(lambda k: grid.rfft(ops.gaussian_field(k, grid))))
    modes = np.asarray(draw(jax.random.split(key, count)))
    k2 = grid.square_wavenumbers()
    wanted = 2 * 7.0**3 * (k2 + 49) ** -2.5
    kept = grid.mask("nyquist") == 1
    kept[0, 0] = False
    ratios = np.mean(np.abs(modes) ** 2, axis=0)[kept] / wanted[kept]
    # At most a chi-square of one degree of freedom each: variance 2.
    assert np.abs(ratios - 1).max() < 5 * np.sqrt(2 / count)
    assert np.abs(modes[:, ~kept]).max() < 1e-7
    wrong = 2 * 7.0**3 * (k2 / TWO_PI**2 + 49) ** -2.5  # integers for wavenumbers
    assert np.abs(ratios * wanted[kept] / wrong[kept] - 1).max() > 0.5


def test_energy_and_peak_of_eddies(key):
    grid = ops.Grid((48, 48), (TWO_PI, TWO_PI))

    @jax.jit
    @jax.vmap
    def draw(k):
        w = grid.rfft(ops.mcwilliams_vorticity(k, grid, energy=0.5))
        flow = grid.velocity(w)
        return sum(ops.energy_spectrum(grid, u) for u in flow), w[0, 0]

    spectra, means = draw(jax.random.split(key, 64))
    np.testing.assert_allclose(spectra.sum(axis=1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(means, 0, atol=1e-7)
    shells = np.asarray(spectra.mean(axis=0))
    m = np.arange(1, 12)
    wanted = m / (1 + (m / 4.0) ** 4) ** 2  # squares of velocities, times a circle
    ratio = shells[1:12] / wanted
    assert ratio.max() / ratio.min() < 2  # shells have few modes of varying length
    assert np.abs(shells[23:]).max() < 1e-12  # past the corners


def test_speed_and_peak_of_a_filtered_flow(key):
    grid = ops.Grid((48, 48), (TWO_PI, TWO_PI))

    @jax.jit
    @jax.vmap
    def draw(k):
        flow = grid.velocity(grid.rfft(ops.filtered_vorticity(k, grid, peak=6.0)))
        speed = jnp.sqrt(sum(grid.irfft(u) ** 2 for u in flow))
        return speed.max(), sum(jnp.abs(u) ** 2 for u in flow)

    speeds, squares = draw(jax.random.split(key, 64))
    np.testing.assert_allclose(speeds, 5, rtol=1e-4)
    size = np.sqrt(grid.square_wavenumbers())
    mean = np.asarray(squares.mean(axis=0)) * grid.mask("2/3")
    radii = [np.mean(mean[np.round(size) == m]) for m in range(1, 14)]
    assert 1 + np.argmax(radii) in (5, 6, 7)


@pytest.mark.parametrize(
    "draw", [ops.gaussian_field, ops.mcwilliams_vorticity, ops.filtered_vorticity]
)
def test_same_key_same_field(draw, key):
    grid = ops.Grid((12, 12), (1.0, 1.0))
    one, other = draw(key, grid), draw(jax.random.fold_in(key, 1), grid)
    np.testing.assert_array_equal(one, draw(key, grid))
    assert jnp.abs(one - other).max() > 0
