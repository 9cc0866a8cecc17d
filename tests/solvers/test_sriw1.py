"""SRIW1: strong order 3/2 for Itô equations, an estimate that falls as it says."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pathax as px


A, B = 0.5, 0.7
END, PATHS = 1.0, 64


def drift(t, y, args):
    return -(A + B**2 * y) * (1 - y**2)


def noise(t, y, args):
    return B * (1 - y**2)


def exact(w):
    """The solution from zero, in terms of the path at the end."""
    return jnp.tanh(-A * END + B * w)


def terms_of(path, diagonal=False):
    field = lambda t, y, args: lx.DiagonalLinearOperator(noise(t, y, args))
    control = dfx.ControlTerm(field if diagonal else noise, path)
    return dfx.MultiTerm(dfx.ODETerm(drift), control)


def path_of(key, shape=()):
    area = dfx.SpaceTimeLevyArea
    return px.brownian.VirtualBrownianTree(0.0, END, 2**-12, shape, key, area)


def solve(key, dt, **options):
    path = path_of(key)
    found = dfx.diffeqsolve(
        terms_of(path), px.solvers.SRIW1(), 0.0, END, dt, jnp.zeros(()), **options
    )
    return found, found.ys[0] - exact(path.evaluate(0.0, END))


@pytest.fixture(scope="module")
def errors():
    """Of constant steps, in double precision."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), PATHS)
        run = jax.jit(lambda dt: jax.vmap(lambda key: solve(key, dt)[1])(keys))
        return {n: np.asarray(run(jnp.asarray(END / n))) for n in (8, 64)}


def test_strong_order(errors):
    """1.5, and clearly more than that of Milstein's method."""
    rms = {n: np.sqrt(np.mean(e**2)) for n, e in errors.items()}
    assert abs(np.log(rms[8] / rms[64]) / np.log(8) - 1.5) < 0.25


def test_diagonal_noise_is_scalar_noise_by_component(key):
    """Each component as if it were alone on its own path."""
    path = path_of(key, (3,))
    solver, y0 = px.solvers.SRIW1(), jnp.array([0.0, 0.3, -0.2])
    levy = path.evaluate(0.0, 0.25, use_levy=True)
    whole, error, *_ = solver.step(
        terms_of(path, diagonal=True), 0.0, 0.25, y0, None, None, False
    )
    for i in range(3):

        class One(dfx.AbstractBrownianPath):
            levy_area = dfx.SpaceTimeLevyArea
            t0, t1 = 0.0, 1.0

            def evaluate(self, t0, t1=None, left=True, use_levy=False, i=i):
                return dfx.SpaceTimeLevyArea(dt=levy.dt, W=levy.W[i], H=levy.H[i])

        one, own, *_ = solver.step(terms_of(One()), 0.0, 0.25, y0[i], None, None, False)
        np.testing.assert_allclose(whole[i], one, rtol=1e-6)
        np.testing.assert_allclose(error[i], own, rtol=1e-4, atol=1e-7)


def test_the_estimate_falls_as_it_says(key):
    """Like the local error of a scheme of order one, `h^1.5`."""
    keys, sizes = jax.random.split(key, 512), (2.0**-4, 2.0**-8)

    def estimate(key, h):
        terms = terms_of(path_of(key))
        y0 = jnp.full((), 0.3)
        return px.solvers.SRIW1().step(terms, 0.0, h, y0, None, None, False)[1]

    run = jax.jit(lambda h: jax.vmap(lambda key: estimate(key, h))(keys))
    rms = [np.sqrt(np.mean(np.asarray(run(jnp.asarray(h))) ** 2)) for h in sizes]
    slope = np.log(rms[0] / rms[1]) / np.log(sizes[0] / sizes[1])
    assert abs(slope - 1.5) < 0.15


@pytest.mark.slow
def test_adaptive_steps_and_their_count(key):
    """The error follows the tolerance; evaluations are those of the steps tried."""

    def run(key, atol):
        pid = dfx.PIDController(rtol=0.0, atol=atol, dtmin=2**-11)
        counted = px.solvers.counting(px.solvers.SRIW1(), pid)
        path = path_of(key)
        found = dfx.diffeqsolve(
            terms_of(path),
            counted.solver,
            0.0,
            END,
            0.1,
            jnp.zeros(()),
            stepsize_controller=counted.controller,
            saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
        )
        made = px.solvers.evaluations(found).total
        off = found.ys[0] - exact(path.evaluate(0.0, END))
        return off, found.stats["num_steps"], made.drift, made.diffusion

    keys = jax.random.split(key, PATHS)
    run = jax.jit(jax.vmap(run, in_axes=(0, None)))
    coarse, fine = run(keys, jnp.asarray(1e-1)), run(keys, jnp.asarray(1e-3))
    off, steps, drifts, diffusions = map(np.asarray, fine)
    np.testing.assert_array_equal(drifts, 2 * steps)
    np.testing.assert_array_equal(diffusions, 4 * steps)
    rms = lambda x: np.sqrt(np.mean(np.asarray(x) ** 2))
    assert rms(off) < 3e-3
    assert rms(off) < rms(coarse[0]) / 4
    assert steps.std() > 0


def test_refused(key):
    whole = lambda t, y, args: jnp.eye(2)
    step = lambda terms, y: px.solvers.SRIW1().step(
        terms, 0.0, 0.1, y, None, None, False
    )
    general = dfx.ControlTerm(whole, path_of(key, (2,)))
    with pytest.raises(ValueError, match="scalar noise"):
        step(dfx.MultiTerm(dfx.ODETerm(drift), general), jnp.zeros(2))
    plain = px.brownian.VirtualBrownianTree(0.0, END, 2**-8, (), key)
    with pytest.raises(ValueError, match="space-time area"):
        step(terms_of(plain), jnp.zeros(()))
