"""Small equations that the tests of this folder share."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np


MATRIX = np.array([[0.0, 2.0, 4.0], [-2.0, 0.0, 1.0], [2.0, -4.0, 0.0]])
START = np.array([1.0, 0.5, -0.3])


def field(t, y, matrix):
    """A nonlinear field that depends on time, with parameters."""
    return 3 * jnp.tanh(matrix @ y) - 2 * y + jnp.cos(t)


def inputs(dtype):
    """Initial state and parameters."""
    return jnp.asarray(START, dtype), jnp.asarray(MATRIX, dtype)


def path(tol=2.0**-10, area=dfx.SpaceTimeLevyArea, seed=5):
    """A Brownian path in three dimensions."""
    key = jax.random.key(seed)
    return dfx.VirtualBrownianTree(0.0, 1.0, tol, (3,), key, levy_area=area)


def ode():
    """The ordinary equation."""
    return dfx.ODETerm(field)


def sde(noise=None):
    """The equation with diagonal noise."""
    diffusion = lambda t, y, matrix: jnp.diag(0.2 + 0.1 * jnp.tanh(y))
    noise = path() if noise is None else noise
    return dfx.MultiTerm(ode(), dfx.ControlTerm(diffusion, noise))


def imex():
    """The equation, and a stiff part to be solved implicitly."""
    return dfx.MultiTerm(ode(), dfx.ODETerm(lambda t, y, args: -5 * y))


def cde(dtype):
    """The equation driven by a path."""
    ts = jnp.linspace(0.0, 1.0, 6, dtype=dtype)
    control = dfx.CubicInterpolation(
        ts, dfx.backward_hermite_coefficients(ts, jnp.sin(3 * ts)[:, None])
    )
    return dfx.ControlTerm(lambda t, y, m: field(t, y, m)[:, None], control)


def tolerance(value, **options):
    """A controller with equal tolerances."""
    return dfx.PIDController(rtol=value, atol=value, **options)
