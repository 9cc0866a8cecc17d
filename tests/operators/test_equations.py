"""Equations and steppers: closed forms, orders, and another library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ops = px.operators
TWO_PI = 2 * np.pi


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.fixture(scope="module")
def flow():
    """A forced flow, an initial field, and a fine solution at time one."""
    with jax.enable_x64(True):
        grid = ops.Grid((24, 24), (1.0, 1.0))
        equation = ops.NavierStokes(
            5e-3, drag=0.1, source=ops.diagonal_forcing(grid, 1.0)
        )
        initial = 3.0 * ops.gaussian_field(jax.random.key(1), grid)
        end = ops.integrate(equation, grid, initial, [1.0], dt=1 / 512)[0]
        return grid, equation, initial, end


def test_taylor_green_decays(precision):
    grid = ops.Grid((16, 16), (1.0, 1.0))
    x, y = grid.points()
    swirl = jnp.cos(TWO_PI * x) * jnp.cos(TWO_PI * y)
    times = [0.5, 1.0]
    found = ops.integrate(ops.NavierStokes(0.02), grid, swirl, times, dt=0.05)
    decay = np.exp(-2 * 0.02 * TWO_PI**2 * np.array(times))
    for field, factor in zip(found, decay, strict=True):
        np.testing.assert_allclose(field, factor * swirl, atol=precision.tolerance(50))


ORDERS = {"etdrk4": 4, "ifrk4": 4, "imex_rk4_cn": 2, "heun_cn": 2}


@pytest.mark.parametrize("method", ORDERS)
def test_orders(method, flow):
    grid, equation, initial, end = flow
    with jax.enable_x64(True):
        errors = [
            relative(
                ops.integrate(equation, grid, initial, [1.0], dt=dt, method=method)[0],
                end,
            )
            for dt in (1 / 16, 1 / 32)
        ]
    order = np.log2(errors[0] / errors[1])
    assert abs(order - ORDERS[method]) < 0.35, (order, errors)


def test_all_methods_agree_on_stiff_waves():
    """Of a linear part whose fastest mode decays within a hundredth of a step."""
    with jax.enable_x64(True):
        grid = ops.Grid((64,), (32 * np.pi,))
        (x,) = grid.points()
        initial = jnp.cos(x / 16) * (1 + jnp.sin(x / 16))
        equation = ops.KuramotoSivashinsky()
        ends = {
            (method, dt): ops.integrate(
                equation, grid, initial, [20.0], dt=dt, method=method
            )[0]
            for method, dt in (("etdrk4", 0.05), ("etdrk4", 0.1), ("ifrk4", 0.02))
        }
        fine = ends["etdrk4", 0.05]
        assert relative(ends["etdrk4", 0.1], fine) < 1e-4
        assert relative(ends["ifrk4", 0.02], fine) < 1e-4


def test_energy_and_mean_are_conserved_by_transport(key):
    with jax.enable_x64(True):
        grid = ops.Grid((32, 32), (TWO_PI, TWO_PI))
        w = grid.rfft(ops.mcwilliams_vorticity(key, grid))
        rate = ops.NavierStokes(0.0).nonlinear(grid, w)
        size = ops.sobolev_norm(grid, rate, 0.0) * ops.sobolev_norm(grid, w, 0.0)
        for s in (0.0, -1.0):  # enstrophy and energy
            assert abs(ops.sobolev_inner(grid, rate, w, s)) < 1e-13 * size
        assert abs(rate[0, 0]) < 1e-15


def test_allen_cahn_front():
    """`tanh` is at rest, up to the images of a periodic box."""
    with jax.enable_x64(True):
        grid = ops.Grid((128,), (8.0,))
        (x,) = grid.points()
        eps = 0.25
        front = jnp.tanh((2 - jnp.abs(x - 4)) / (np.sqrt(2) * eps))
        rate = grid.irfft(ops.AllenCahn(eps).rhs(grid, grid.rfft(front)))
        assert jnp.abs(rate).max() < 1e-3  # of terms of size one


def test_forcing_is_the_same_on_all_grids():
    coarse = ops.Grid((16, 16), (1.0, 1.0))
    fine = coarse.refined(2)
    equation = ops.NavierStokes(1.0, source=ops.diagonal_forcing(coarse))
    np.testing.assert_allclose(
        fine.irfft(equation.forcing(fine)), ops.diagonal_forcing(fine), atol=1e-6
    )
    kolmogorov = ops.kolmogorov_forcing(coarse, 2, 0.5)
    _, y = coarse.points()
    wanted = -0.5 * 2 * TWO_PI * np.cos(2 * TWO_PI * y)
    np.testing.assert_allclose(kolmogorov, wanted, atol=1e-5)


def test_same_as_exponax():
    """To rounding, as both have the same order; its vorticity has the other sign."""
    exponax = pytest.importorskip("exponax", reason="pip install exponax")
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        grid = ops.Grid((64, 64), (TWO_PI, TWO_PI))
        x, y = grid.points()
        swirls = jnp.sin(x) * jnp.cos(2 * y) + 0.3 * jnp.cos(x + y)
        line = ops.Grid((96,), (TWO_PI,))
        waves = jnp.sin(line.points()[0])
        make = exponax.stepper
        options = {"diffusivity": 0.05, "order": 4}
        pairs = [
            (
                ops.NavierStokes(0.05),
                grid,
                swirls,
                make.NavierStokesVorticity(
                    2, TWO_PI, 64, 0.01, vorticity_convection_scale=-1.0, **options
                ),
            ),
            (
                ops.Burgers(0.05),
                line,
                waves,
                make.Burgers(1, TWO_PI, 96, 0.01, **options),
            ),
        ]
        for equation, grid, initial, theirs in pairs:
            wanted = exponax.repeat(theirs, 50)(initial[None])[0]
            ours = ops.integrate(equation, grid, initial, [0.5], dt=0.01)[0]
            assert relative(ours, wanted) < 1e-8


def test_frames_at_any_times(flow):
    grid, equation, initial, end = flow
    with jax.enable_x64(True):
        frames = ops.integrate(equation, grid, initial, [0.0, 0.3, 1.0], dt=0.01)
        even = ops.integrate(equation, grid, initial, [0.5, 1.0], dt=0.01)
        assert relative(frames[2], end) < 1e-6
        assert relative(even[1], end) < 1e-6
        band = grid.irfft(grid.rfft(initial) * grid.mask("2/3", complex))
    np.testing.assert_allclose(frames[0], band, atol=1e-12)


def test_gradients_reach_parameters(flow):
    grid, _, initial, _ = flow
    with jax.enable_x64(True):

        def energy(viscosity):
            equation = ops.NavierStokes(viscosity)
            end = ops.integrate(equation, grid, initial, [0.1], dt=0.02)[0]
            return jnp.mean(end**2)

        slope = jax.grad(energy)(5e-3)
        gap = (energy(5e-3 + 1e-6) - energy(5e-3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, gap, rtol=1e-6)


def test_bad_calls(flow):
    grid, equation, initial, _ = flow
    with pytest.raises(ValueError, match="increasing"):
        ops.integrate(equation, grid, initial, [1.0, 0.5], dt=0.1)
    with pytest.raises(ValueError, match="etdrk4"):
        ops.stepper(equation, grid, 0.1, "rk4")
    with pytest.raises(ValueError, match="shape"):
        ops.integrate(equation, grid, initial[:3], [1.0], dt=0.1)
