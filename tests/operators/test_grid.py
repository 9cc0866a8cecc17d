"""Periodic grids: transforms, calculus, masks, changes of grid."""

import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


BOXES = {
    1: px.operators.Grid((12,), (3.0,)),
    2: px.operators.Grid((12, 9), (3.0, 2.0)),
    3: px.operators.Grid((8, 9, 10), (3.0, 2.0, 1.0)),
}


def wave(grid, index):
    """A product of cosines, and the wavenumbers."""
    k = [2 * np.pi * m / length for m, length in zip(index, grid.lengths, strict=True)]
    factors = [jnp.cos(a * x + 0.3) for a, x in zip(k, grid.points(), strict=True)]
    field = factors[0]
    for factor in factors[1:]:
        field = field * factor
    return field, k


@pytest.mark.parametrize("dimension", BOXES)
def test_derivatives_and_laplacian(dimension, precision):
    grid = BOXES[dimension]
    field, k = wave(grid, (2, 1, 3)[:dimension])
    spectrum = grid.rfft(field)
    assert spectrum.shape == grid.spectrum_shape
    near = {"atol": precision.tolerance(1000)}
    np.testing.assert_allclose(grid.irfft(spectrum), field, **near)
    square = sum(a**2 for a in k)
    np.testing.assert_allclose(
        grid.irfft(grid.laplacian(spectrum)) / square, -field, **near
    )
    np.testing.assert_allclose(
        square * grid.irfft(grid.inverse_laplacian(spectrum)), -field, **near
    )
    for axis in range(dimension):
        twice = grid.derivative(grid.derivative(spectrum, axis), axis)
        np.testing.assert_allclose(grid.irfft(twice) / k[axis] ** 2, -field, **near)
        np.testing.assert_allclose(
            grid.derivative(spectrum, axis, order=2), twice, atol=1e3 * near["atol"]
        )


def test_parseval_counts_every_mode(rng):
    for grid in BOXES.values():
        u = rng.normal(size=grid.shape)
        spectrum = np.fft.rfftn(u, norm="forward")
        total = np.sum(np.abs(spectrum) ** 2 * grid.multiplicity())
        np.testing.assert_allclose(total, np.mean(u**2), rtol=1e-12)


@pytest.mark.parametrize("dimension", BOXES)
def test_resampling_keeps_fields_and_drops_what_does_not_fit(dimension, precision):
    grid = BOXES[dimension]
    fine = grid.refined(2)
    near = {"atol": precision.tolerance(100)}
    field, _ = wave(grid, (2, 1, 3)[:dimension])
    finer, _ = wave(fine, (2, 1, 3)[:dimension])
    up = grid.resample(grid.rfft(field), fine)
    np.testing.assert_allclose(fine.irfft(up), finer, **near)
    np.testing.assert_allclose(fine.resample(up, grid), grid.rfft(field), **near)
    fast, _ = wave(fine, tuple(n // 2 + 1 for n in grid.shape))
    assert np.abs(fine.resample(fine.rfft(fast), grid)).max() < near["atol"]
    highest = grid.rfft(wave(grid, (grid.shape[0] // 2, 0, 0)[:dimension])[0])
    assert np.abs(grid.resample(highest, fine)).max() < near["atol"]


def test_masks():
    grid = BOXES[2]
    m, n = grid.frequencies()
    two_thirds = grid.mask("2/3")
    np.testing.assert_array_equal(two_thirds == 1, (np.abs(m) < 4) & (np.abs(n) < 3))
    assert grid.mask("nyquist").sum() == two_thirds.size - two_thirds.shape[1]
    assert grid.mask("none").all()
    with pytest.raises(ValueError, match="2/3"):
        grid.mask("half")


def test_no_aliases_in_the_band_that_two_thirds_keeps(rng):
    """And there are some in a wider band."""
    grid = px.operators.Grid((18,), (1.0,))
    fine = grid.refined(3)

    def product(kept):
        spectrum = np.fft.rfft(rng.normal(size=18), norm="forward") * kept
        exact = np.fft.irfft(
            np.pad(spectrum, (0, fine.spectrum_shape[0] - 10)), 54, norm="forward"
        )
        coarse = np.fft.irfft(spectrum, 18, norm="forward")
        seen = np.fft.rfft(coarse**2, norm="forward") * kept
        true = np.fft.rfft(exact**2, norm="forward")[:10] * kept
        return np.abs(seen - true).max()

    (m,) = grid.frequencies()
    assert product(grid.mask("2/3")) < 1e-14
    assert product(np.abs(m) <= 7) > 1e-3


def kind(precision):
    return np.result_type(precision.dtype, np.complex64)


def test_leray_curl_and_velocity(precision, rng):
    near = {"atol": precision.tolerance(1000)}
    for dimension in (2, 3):
        grid = BOXES[dimension]
        keep = grid.mask("nyquist")
        flow = tuple(
            grid.rfft(jnp.asarray(rng.normal(size=grid.shape), precision.dtype))
            * keep.astype(kind(precision))
            for _ in range(dimension)
        )
        solenoidal = grid.leray(flow)
        divergence = sum(grid.derivative(u, i) for i, u in enumerate(solenoidal))
        assert np.abs(divergence).max() < near["atol"]
        again = grid.leray(solenoidal)
        np.testing.assert_allclose(again, solenoidal, **near)
        curl, same = (np.asarray(grid.curl(u)) for u in (flow, solenoidal))
        np.testing.assert_allclose(same, curl, **near)  # gradients have none
    grid = BOXES[2]
    vorticity = solenoidal_vorticity(grid, precision, rng)
    np.testing.assert_allclose(grid.curl(grid.velocity(vorticity)), vorticity, **near)


def solenoidal_vorticity(grid, precision, rng):
    field = jnp.asarray(rng.normal(size=grid.shape), precision.dtype)
    w = grid.rfft(field) * grid.mask("nyquist", kind(precision))
    return w.at[0, 0].set(0)


def test_bad_grids():
    with pytest.raises(ValueError, match="one to three"):
        px.operators.Grid((8, 8), (1.0,))
    with pytest.raises(ValueError, match="four points"):
        px.operators.Grid((2,), (1.0,))
    with pytest.raises(ValueError, match="same box"):
        BOXES[1].resample(jnp.zeros(7, complex), px.operators.Grid((8,), (1.0,)))
    with pytest.raises(ValueError, match="two dimensions"):
        BOXES[1].velocity(jnp.zeros(7, complex))
