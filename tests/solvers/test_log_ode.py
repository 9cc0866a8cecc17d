"""The log-ODE solver: strong order with the area and without, both directions."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


def _diffusion(t, y, args):
    one = jnp.ones_like(y[0])
    return jnp.stack(
        [jnp.stack([one, jnp.sin(y[1])]), jnp.stack([jnp.cos(2 * y[0]), one])]
    )


def _solve(key, solver, dt, interval=(0.0, 1.0), scale=1.0):
    path = px.brownian.VirtualBrownianTree(0.0, 1.0, 2.0**-14, (2,), key, order=2)
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: -y),
        dfx.ControlTerm(lambda t, y, args: scale * _diffusion(t, y, args), path),
    )
    y0 = jnp.array([0.3, -0.2])
    return dfx.diffeqsolve(
        terms, solver, *interval, dt, y0, adjoint=dfx.DirectAdjoint(), max_steps=512
    ).ys[0]


def test_strong_order(key):
    """One with an area as fine as the square of the step; one half without it."""
    keys = jax.random.split(key, 256)

    def run(level, terms, pieces):
        solver = px.solvers.LogODE(terms, pieces)
        solve = lambda k: _solve(k, solver, 2.0**-level)
        return np.asarray(jax.jit(jax.vmap(solve))(keys), np.float64)

    exact = run(8, 2, 8)
    rms = lambda y: np.sqrt(np.mean(np.sum((y - exact) ** 2, axis=-1)))
    good = [rms(run(level, 2, 2**level)) for level in (2, 5)]
    bad = [rms(run(level, 0, 1)) for level in (2, 5)]
    order = np.log2(good[0] / good[1]) / 3
    without = np.log2(bad[0] / bad[1]) / 3
    assert 0.85 < order < 1.3
    assert without < 0.7
    assert bad[1] > 3 * good[1]


def test_back_to_the_start(key):
    """A step backward undoes a step forward, area and all, up to the ODE's error."""
    solver = px.solvers.LogODE(pieces=2)

    path = px.brownian.VirtualBrownianTree(0.0, 1.0, 2.0**-8, (2,), key, order=2)
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: -0.01 * y),
        dfx.ControlTerm(lambda t, y, args: 0.1 * _diffusion(t, y, args), path),
    )
    y0 = jnp.array([0.3, -0.2])
    run = lambda a, b, y: dfx.diffeqsolve(terms, solver, a, b, b - a, y).ys[0]
    assert jnp.abs(run(0.5, 0.0, run(0.0, 0.5, y0)) - y0).max() < 3e-6


def test_gradient(key):
    solver = px.solvers.LogODE()
    loss = jax.jit(lambda s: jnp.sum(_solve(key, solver, 0.25, scale=s)))
    gradient = jax.jit(jax.grad(loss))(1.0)
    step = 1e-2
    difference = (loss(1.0 + step) - loss(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(gradient, difference, rtol=2e-2, atol=2e-3)


def test_wrong_arguments(key):
    with pytest.raises(ValueError, match="pieces"):
        px.solvers.LogODE(pieces=0)
    with pytest.raises(ValueError, match="terms"):
        px.solvers.LogODE(terms=-1)
    path = dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (2,), key)
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: -y), dfx.ControlTerm(_diffusion, path)
    )
    with pytest.raises(TypeError, match="needs the area"):
        dfx.diffeqsolve(terms, px.solvers.LogODE(), 0.0, 1.0, 0.1, jnp.ones(2))
