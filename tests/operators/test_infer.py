"""Parameters from noisy frames: beside a fit through a solver, and coverage."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ops = px.operators
TIMES = np.array([0.4, 0.7, 1.0])
NOISE = 0.02
GRID = ops.Grid((24,), (2 * np.pi,))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def start(theta):
    (x,) = GRID.points()
    return theta["height"] * jnp.sin(x) + 0.3 * jnp.cos(2 * x)


def equation(theta):
    return ops.Burgers(jnp.exp(theta["log_viscosity"]))


def make(theta):
    return ops.SpaceTimeProblem(equation(theta), GRID, start(theta), 1.0, degree=8)


def observe(w):
    return w[::3]


def march(theta):
    """The same frames by a solver."""
    step = ops.stepper(equation(theta), GRID, 1 / 200)
    w = GRID.rfft(start(theta)) * GRID.mask("2/3", complex)

    def advance(w, _):
        w = step(w)
        return w, w

    _, all_of_them = jax.lax.scan(advance, w, None, length=200)
    at = np.round(TIMES * 200).astype(int) - 1
    return jax.vmap(lambda w: observe(GRID.irfft(w)))(all_of_them[at])


@pytest.fixture(scope="module")
def study():
    """Truth, frames with noise, and guesses, of many seeds at once."""
    with jax.enable_x64(True):
        truth = {"height": jnp.array(1.0), "log_viscosity": jnp.log(jnp.array(0.15))}
        guess = {"height": jnp.array(0.7), "log_viscosity": jnp.log(jnp.array(0.25))}
        clean = jax.jit(march)(truth)
        noise = np.random.default_rng(0).normal(size=(64, *clean.shape))
        frames = clean[None] + NOISE * noise
        fit = lambda y: ops.infer(make, guess, TIMES, y, noise=NOISE, observe=observe)
        return truth, frames, jax.vmap(fit)(frames)


def test_the_same_as_through_a_solver(study):
    """The misfit of the solver's own frames is stationary, and curved as is said."""
    _, frames, found = study
    theta = jax.tree.map(lambda x: x[0], found.parameters)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    seen = lambda flat: ((march(unravel(flat)) - frames[0]) / NOISE).reshape(-1)
    jacobian = jax.jit(jax.jacfwd(seen))(flat)
    precision = jacobian.T @ jacobian
    gradient = jacobian.T @ seen(flat)
    covariance = found.covariance[0]
    step = np.linalg.solve(precision, gradient)
    assert np.sqrt(step @ precision @ step) < 3e-3  # in standard deviations
    np.testing.assert_allclose(
        np.linalg.inv(covariance), precision, rtol=1e-4, atol=1e-4 * precision.max()
    )


def test_intervals_cover(study):
    """95% of them, for 64 seeds and two parameters; misfits are those of the noise."""
    truth, _, found = study
    assert bool(found.converged.all())
    assert float(found.eta.max()) < 1e-4
    inside = [
        np.abs(found.parameters[k] - truth[k]) < 1.96 * found.deviation[k]
        for k in truth
    ]
    assert 0.89 < np.mean(inside) < 0.995
    small = [
        np.abs(found.parameters[k] - truth[k]) < 0.98 * found.deviation[k]
        for k in truth
    ]
    assert np.mean(small) < 0.8  # half the interval does not cover as often
    assert abs(float(np.mean(found.misfit)) - 1) < 0.1


def test_a_prior_pulls_and_narrows():
    """With one frame that says little, the answer is the prior's."""
    problem = make({"height": jnp.array(1.0), "log_viscosity": jnp.array(-2.0)})
    guess = jnp.array(-1.0)
    fit = lambda prior: ops.infer(
        lambda v: ops.SpaceTimeProblem(
            ops.Burgers(jnp.exp(v)), GRID, GRID.irfft(problem.initial), 1.0, degree=8
        ),
        guess,
        [1.0],
        jnp.zeros((1, 1)),
        noise=1e3,
        observe=lambda w: w[:1],
        prior=prior,
    )
    found = fit((jnp.array(-1.5), jnp.array(0.1)))
    np.testing.assert_allclose(found.parameters, -1.5, atol=1e-3)
    np.testing.assert_allclose(found.deviation, 0.1, rtol=1e-3)


def test_bad_calls():
    theta = {"height": jnp.array(1.0), "log_viscosity": jnp.array(-2.0)}
    with pytest.raises(ValueError, match="one frame a time"):
        ops.infer(make, theta, TIMES, jnp.zeros((2, 24)), noise=1.0)

    def cut(theta):
        initial = start(theta)
        return ops.SpaceTimeProblem(equation(theta), GRID, initial, 1.0, slabs=2)

    with pytest.raises(ValueError, match="one slab"):
        ops.infer(cut, theta, TIMES, jnp.zeros((3, 24)), noise=1.0)
    with jax.enable_x64(False):
        single = jax.tree.map(jnp.float32, theta)
        with pytest.raises(ValueError, match="jax_enable_x64"):
            ops.infer(make, single, TIMES, jnp.zeros((3, 24)), noise=1.0)
