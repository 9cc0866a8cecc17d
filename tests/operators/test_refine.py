"""Refinement: exactness, convergence, every method and equation, the estimator."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.operators import _time_basis as time_basis
from pathax.operators._cost import ffts
from pathax.operators._gauss_newton import gauss_newton_step
from pathax.operators._grid import scaled
from pathax.operators._preconditioners import blocks, mean_flow, sweep


ops = px.operators
TWO_PI = 2 * np.pi


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.fixture(scope="module")
def flow():
    """A forced flow of two dimensions and its end, of which marching is a check."""
    with jax.enable_x64(True):
        grid = ops.Grid((24, 24), (1.0, 1.0))
        equation = ops.NavierStokes(4e-3, source=ops.diagonal_forcing(grid))
        initial = ops.gaussian_field(jax.random.key(3), grid)
        initial = ops.integrate(equation, grid, initial, [2.0], dt=0.05)[0]
        end = ops.integrate(equation, grid, initial, [1.0], dt=1 / 256)[0]
        return ops.SpaceTimeProblem(equation, grid, initial, 1.0, degree=8), end


def random_like(z, rng):
    return jnp.asarray(rng.normal(size=z.shape))


# Time -------------------------------------------------------------------------------


def test_basis_begins_at_zero_and_knows_its_slopes():
    times = jnp.linspace(0.0, 2.0, 9)
    values = time_basis.values(times, 6, 2.0)
    np.testing.assert_allclose(values[0], 0, atol=1e-15)
    numeric = jax.vmap(jax.jacfwd(lambda t: time_basis.values(t, 6, 2.0)))(times)
    np.testing.assert_allclose(numeric, time_basis.slopes(times, 6, 2.0), atol=1e-13)
    table = time_basis.table("values", np.asarray(times), 6, 2.0)
    np.testing.assert_allclose(table, values, atol=1e-14)


def test_interpolation_and_fit_are_exact_for_polynomials():
    nodes = time_basis.gauss(2.0, 9).nodes
    times = np.linspace(0, 2, 5)
    between = time_basis.interpolation(nodes, times)
    np.testing.assert_allclose(between @ nodes**7, times**7, atol=1e-11)
    coefficients = time_basis.fit(nodes, 5, 2.0) @ (nodes**3 - 4 * nodes)
    found = time_basis.table("values", times, 5, 2.0) @ coefficients
    np.testing.assert_allclose(found, times**3 - 4 * times, atol=1e-12)


def test_quadrature_is_exact_from_2m_plus_1_nodes_on(flow, rng):
    """For a quadratic equation; with fewer it is not."""
    problem, _ = flow
    z = 0.1 * random_like(problem.persistence(), rng)

    def eta(nodes):
        few = ops.SpaceTimeProblem(
            problem.equation,
            problem.grid,
            problem.grid.irfft(problem.initial),
            1.0,
            degree=4,
            nodes=nodes,
        )
        return float(few.norm(few.residual(z[:, :4])))

    exact = eta(40)
    np.testing.assert_allclose(eta(9), exact, rtol=1e-12)
    assert abs(eta(5) / exact - 1) > 1e-8


# The residual -----------------------------------------------------------------------


def test_jacobian_and_its_transpose_are_adjoint(flow, rng):
    problem, _ = flow
    z = random_like(problem.persistence(), rng)
    residual, jacobian = jax.linearize(problem.residual, z)
    x, y = random_like(z, rng), random_like(residual, rng)
    (across,) = jax.linear_transpose(jacobian, z)(y)
    forward = jnp.vdot(jacobian(x), y)
    np.testing.assert_allclose(forward, jnp.vdot(x, across), rtol=1e-12)


def test_a_manufactured_solution_has_no_residual():
    """A polynomial in time, with the forcing that it needs, is left as it is."""
    grid = ops.Grid((18,), (TWO_PI,))
    (x,) = grid.points()
    waves = jnp.sin(x)

    class Driven(ops.AbstractSemilinear):
        def linear(self, grid):
            return -0.3 * grid.square_wavenumbers()

        def nonlinear(self, grid, w):
            return 0 * w

        def forcing(self, grid):  # w = waves: 0 = -0.3 waves + f
            return 0.3 * grid.rfft(jnp.sin(grid.points()[0]))

    problem = ops.SpaceTimeProblem(Driven(), grid, waves, 1.0)
    assert problem.norm(problem.residual(problem.persistence())) < 1e-12
    other = ops.SpaceTimeProblem(ops.Burgers(0.3), grid, waves, 1.0)
    assert other.norm(other.residual(other.persistence())) > 0.1


def test_a_step_of_a_solver_says_nothing_about_a_field(rng):
    """Differences over one small step of the equation itself vanish for any field.

    The residual of the trajectory does not: it is what is minimized here.
    """
    grid = ops.Grid((24, 24), (1.0, 1.0))
    equation = ops.NavierStokes(1e-2)
    w = grid.rfft(jnp.asarray(rng.normal(size=grid.shape)))
    w = w * grid.mask("2/3", complex)

    def of_steps(dt):
        sides = []
        for sign in (-1.0, 1.0):
            to = ops.stepper(equation, grid, sign * dt, "ifrk4")(w)
            rate = (to - w) / (sign * dt)
            sides.append(rate - equation.rhs(grid, (to + w) / 2))
        return float(ops.sobolev_norm(grid, (sides[0] + sides[1]) / 2, -1.0))

    coarse, fine = of_steps(1e-4), of_steps(5e-5)
    assert abs(np.log2(coarse / fine) - 2) < 0.1
    honest = ops.SpaceTimeProblem(equation, grid, grid.irfft(w), 0.01)
    rate = honest.norm(honest.residual(honest.persistence())) / 0.01**0.5
    assert fine < 1e-3 * rate


# Convergence ------------------------------------------------------------------------


def test_taylor_green_takes_one_step():
    grid = ops.Grid((16, 16), (1.0, 1.0))
    x, y = grid.points()
    swirl = jnp.cos(TWO_PI * x) * jnp.cos(TWO_PI * y)
    equation = ops.NavierStokes(0.01)
    problem = ops.SpaceTimeProblem(equation, grid, swirl, 1.0, degree=12)
    found = ops.refine(problem, max_steps=1)
    exact = np.exp(-2 * 0.01 * TWO_PI**2) * swirl
    assert relative(found.trajectory(1.0), exact) < 1e-7
    twice = ops.refine(problem, max_steps=2)
    assert relative(twice.trajectory(1.0), exact) < 1e-10


@pytest.mark.parametrize("preconditioner", ["blocks", "sweep"])
def test_gauss_newton_converges_quadratically(flow, preconditioner):
    problem, end = flow
    found = ops.refine(problem, preconditioner=preconditioner)
    assert relative(found.trajectory(1.0), end) < 1e-9
    (eta,) = np.asarray(found.eta)
    assert eta[2] < 10 * eta[1] ** 2 / eta[0] + 1e-8 * eta[0]
    assert eta[3] < 1e-8 * eta[0]
    assert found.ffts > 0
    assert np.all(found.products[0, :3] > 0)


def test_preconditioners_spare_products(flow, rng):
    """Of conjugate gradients; a sweep alone is nearly an inverse."""
    problem, _ = flow
    z = problem.persistence()

    def products(change, space):
        small = jnp.asarray(1e-4)
        step = gauss_newton_step(problem.residual, z, change, space, small, 400)
        return int(step.products)

    few, fewer = products(*blocks(problem)), products(*sweep(problem, z, 40))
    assert fewer < few < products(lambda y: y, z) / 3
    _, jacobian = jax.linearize(problem.residual, z)
    to_change, _ = sweep(problem, z, 40)
    c = problem.spectra(random_like(z, rng))
    c = jax.vmap(lambda c: problem.grid.rfft(problem.grid.irfft(c)))(c)
    falling = 1 / (1 + problem.grid.square_wavenumbers()[None]) ** 2
    smooth = problem.pairs(scaled(c, falling))
    assert relative(to_change(jacobian(smooth)), smooth) < 1e-3


def test_the_mean_flow_spares_products():
    """Waves on a current: what the mean carries needs no conjugate gradients."""
    grid = ops.Grid((24,), (TWO_PI,))
    initial = 2.0 + 0.1 * jnp.sin(grid.points()[0])
    problem = ops.SpaceTimeProblem(ops.Burgers(0.1), grid, initial, 0.5, degree=6)
    symbol = mean_flow(problem)
    (k,) = grid.wavenumbers()
    np.testing.assert_allclose(symbol.imag, -2 * k * grid.mask("2/3"), atol=1e-12)
    np.testing.assert_allclose(symbol.real, -0.1 * k**2, atol=1e-12)

    def products(change, space):
        small, z = jnp.asarray(1e-4), problem.persistence()
        step = gauss_newton_step(problem.residual, z, change, space, small, 100)
        return int(step.products)

    assert 2 * products(*blocks(problem, symbol)) < products(*blocks(problem))


METHODS = {
    "gauss_newton": ({}, 1e-9),
    "picard": ({"max_steps": 12}, 1e-6),
    "lbfgs": ({}, 1e-6),
    "adam": ({"learning_rate": 3e-4, "max_steps": 200}, 3e-2),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(flow, method):
    problem, end = flow
    options, small = METHODS[method]
    with jax.numpy_dtype_promotion("standard"):  # Optax relies on it
        found = ops.refine(problem, method=method, **options)
    start = relative(problem.grid.irfft(problem.initial), end)
    assert start > 5e-2
    assert relative(found.trajectory(1.0), end) < small


def _problems():
    line = ops.Grid((32,), (TWO_PI,))
    (x,) = line.points()
    plane = ops.Grid((18, 18), (TWO_PI, TWO_PI))
    p, q = plane.points()
    long = ops.Grid((48,), (8 * np.pi,))
    return {
        "burgers": (ops.Burgers(0.1), line, jnp.sin(x), 0.5),
        "burgers 2-d": (ops.Burgers(0.2), plane, jnp.sin(p) + jnp.cos(q), 0.3),
        "kuramoto-sivashinsky": (
            ops.KuramotoSivashinsky(),
            long,
            jnp.cos(long.points()[0] / 4),
            1.0,
        ),
        "allen-cahn": (ops.AllenCahn(0.3), line, 0.5 * jnp.sin(x) + 0.1, 1.0),
        "navier-stokes": (
            ops.NavierStokes(0.05, drag=0.1),
            plane,
            jnp.sin(p) * jnp.cos(2 * q) + 0.4 * jnp.cos(p + q),
            0.5,
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["burgers", "burgers 2-d", "kuramoto-sivashinsky", "allen-cahn", "navier-stokes"],
)
def test_one_call_for_every_equation(name):
    equation, grid, initial, horizon = _problems()[name]
    problem = ops.SpaceTimeProblem(equation, grid, initial, horizon, degree=10)
    found = ops.refine(problem)
    end = ops.integrate(equation, grid, initial, [horizon], dt=horizon / 400)[0]
    assert relative(found.trajectory(horizon), end) < 1e-8


def test_a_wrong_mean_is_corrected():
    """A norm that leaves the mean out would stall at the offset of the start."""
    equation, grid, initial, horizon = _problems()["navier-stokes"]
    problem = ops.SpaceTimeProblem(equation, grid, initial, horizon)
    offset = lambda t: initial[None] + 0.1 * (t / horizon)[:, None, None]
    found = ops.refine(problem, offset)
    drift = jnp.abs(found.trajectory(horizon).mean() - initial.mean())
    assert drift < 1e-10


def test_slabs_go_on_where_the_last_one_ended(flow):
    problem, end = flow
    initial = problem.grid.irfft(problem.initial)
    cut = ops.SpaceTimeProblem(
        problem.equation, problem.grid, initial, 1.0, degree=6, slabs=3
    )
    found = ops.refine(cut)
    assert relative(found.trajectory(1.0), end) < 1e-8
    joint = 1 / 3
    before, after = found.trajectory(jnp.array([joint - 1e-9, joint + 1e-9]))
    assert relative(before, after) < 1e-7
    assert found.eta.shape[0] == 3


# Starts, batches, devices -----------------------------------------------------------


def test_starts(flow):
    """A function of time, frames, or another trajectory: all may be near."""
    problem, _ = flow
    times = np.linspace(0.1, 1.0, 10)
    frames = ops.integrate(
        problem.equation,
        problem.grid,
        problem.grid.irfft(problem.initial),
        times,
        dt=0.01,
    )
    done = ops.refine(problem).trajectory
    eta = lambda start: float(ops.refine(problem, start, max_steps=1).eta[0, 0])
    still = eta(None)
    assert eta((times, frames)) < 1e-2 * still
    assert eta(done) < 1e-8 * still
    assert eta(jax.vmap(done)) < 1e-8 * still
    with pytest.raises(ValueError, match="10 times and frames"):
        ops.refine(problem, (times, frames[:4]))
    with pytest.raises(TypeError, match="function of an array of times"):
        ops.refine(problem, frames)
    with pytest.raises(ValueError, match="must return fields"):
        ops.refine(problem, lambda t: jnp.zeros((3, 3)))


def test_an_operator_as_a_start(flow):
    problem, end = flow
    model = ops.STFNO(
        (3, 3, 2), width=6, depth=1, frames=3, horizon=1.0, key=jax.random.key(0)
    )
    frames = jnp.stack([problem.grid.irfft(problem.initial)] * 3)
    found = ops.refine(problem, model.trajectory(frames))
    assert relative(found.trajectory(1.0), end) < 1e-9


def test_batches_are_as_good_as_one_by_one(flow):
    problem, _ = flow
    grid, field = problem.grid, problem.grid.irfft(problem.initial)
    fields = jnp.stack([field, 0.1 * field])

    def solve(field):
        one = ops.SpaceTimeProblem(problem.equation, grid, field, 1.0, degree=8)
        found = ops.refine(one)
        return found.trajectory(1.0), found.eta

    together = jax.vmap(solve)(fields)
    for i in range(2):
        apart = solve(fields[i])
        assert relative(together[0][i], apart[0]) < 1e-10
    taken = np.isfinite(np.asarray(together[1])).sum(axis=(1, 2))
    assert taken[1] <= taken[0]


def test_nodes_spread_over_devices(flow, devices, rng):
    """The residual, and products with its Jacobian and the transpose."""
    problem, _ = flow
    layout = jax.sharding.NamedSharding(
        devices, jax.sharding.PartitionSpec(devices.axis_names[0])
    )

    def make(sharding):
        return ops.SpaceTimeProblem(
            problem.equation,
            problem.grid,
            problem.grid.irfft(problem.initial),
            1.0,
            degree=8,
            nodes=24,
            sharding=sharding,
        )

    z = random_like(problem.persistence(), rng)

    @eqx.filter_jit
    def products(problem, z):
        residual, jacobian = jax.linearize(problem.residual, z)
        return residual, jax.linear_transpose(jacobian, z)(jacobian(z))[0]

    apart, together = products(make(layout), z), products(make(None), z)
    for a, b in zip(apart, together, strict=True):
        assert relative(a, b) < 1e-13


_SPREAD = """
import jax
import jax.numpy as jnp
import numpy as np
import pathax as px

ops = px.operators
grid = ops.Grid((16, 16), (2 * np.pi, 2 * np.pi))
force = ops.kolmogorov_forcing(grid, 2, 1.0)
start = ops.gaussian_field(jax.random.key(0), grid, smoothness=6.0, tau=2.0)
devices = jax.make_mesh((8,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))
layout = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("t"))
found = [
    ops.refine(
        ops.SpaceTimeProblem(
            ops.NavierStokes(0.05, source=force),
            *(grid, start, 0.5),
            degree=8,
            sharding=sharding,
        ),
        max_steps=3,
        rtol=0.0,
    )
    for sharding in (layout, None)
]
assert found[0].eta[0, -1] < 1e-6
np.testing.assert_allclose(found[0].eta, found[1].eta, rtol=1e-4)
"""


@pytest.mark.slow
def test_refinement_spread_over_devices():
    """Whole, in a process of its own: simulated devices that share two cores wait for
    each other forever if XLA runs independent collectives in any order.
    """
    flags = (
        "--xla_force_host_platform_device_count=8 "
        "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    )
    given = {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", _SPREAD],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | given,
    )
    assert out.returncode == 0, out.stderr[-2000:]


# The estimator ----------------------------------------------------------------------


def test_estimate_follows_the_error(flow, rng):
    problem, _ = flow
    solved = ops.refine(problem).trajectory
    times = jnp.linspace(0.1, 1.0, 10)
    etas, errors = [], []
    for size in (1e-1, 1e-3, 1e-5):
        noise = random_like(problem.persistence(), rng)
        falling = 1 / (1 + problem.grid.square_wavenumbers()[None, None])
        noise = problem.spectra(noise * falling)
        rough = eqx.tree_at(
            lambda p: p.coefficients, solved, solved.coefficients + size * noise[None]
        )
        found = ops.estimate(problem.equation, rough)
        etas.append(float(found.eta))
        errors.append(relative(rough(times), solved(times)))
    ratio = np.array(etas) / np.array(errors)
    assert ratio.max() < 10 * ratio.min()
    assert bool(ops.estimate(problem.equation, solved).resolved)


def test_what_the_grid_does_not_resolve_is_said():
    """A shock that is too thin: the residual in the band says nothing."""
    grid = ops.Grid((24,), (TWO_PI,))
    equation = ops.Burgers(0.005)
    problem = ops.SpaceTimeProblem(
        equation, grid, jnp.sin(grid.points()[0]), 1.5, degree=12
    )
    found = ops.estimate(equation, ops.refine(problem, max_steps=12).trajectory)
    assert not bool(found.resolved)
    assert found.outside > 10 * found.inside


def test_transforms_are_counted(flow):
    problem, _ = flow
    assert (
        ffts(problem.residual, problem.persistence()) == 5 * problem.nodes + 1
    )  # of the forcing
    looped = lambda x: jax.lax.scan(lambda c, _: (jnp.fft.fft(c), None), x, None, 7)[0]
    assert ffts(looped, jnp.zeros((3, 4), complex)) == 21


def test_bad_calls(flow):
    problem, _ = flow
    with pytest.raises(ValueError, match="gauss_newton"):
        ops.refine(problem, method="newton")
    with pytest.raises(ValueError, match="blocks"):
        ops.refine(problem, preconditioner="sweep", method="adam")
    cubic = ops.SpaceTimeProblem(*_problems()["allen-cahn"])
    with pytest.raises(ValueError, match="advect"):
        ops.refine(cubic, method="picard")
    with pytest.raises(ValueError, match="nodes"):
        ops.SpaceTimeProblem(
            problem.equation, problem.grid, jnp.zeros((24, 24)), 1.0, nodes=2
        )
    with jax.enable_x64(False):
        single = ops.SpaceTimeProblem(
            ops.NavierStokes(0.1), problem.grid, jnp.zeros((24, 24)), 1.0
        )
        with pytest.raises(ValueError, match="jax_enable_x64"):
            ops.refine(single)
