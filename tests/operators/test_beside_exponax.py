"""Beside another library of exponential steppers, at one time unit, to 1e-8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


exponax = pytest.importorskip("exponax", reason="pip install exponax")
ops = px.operators
TWO_PI = 2 * np.pi
SQUARE = ops.Grid((48, 48), (TWO_PI, TWO_PI))
LINE = ops.Grid((96,), (32 * np.pi,))
SHORT = ops.Grid((96,), (TWO_PI,))


@pytest.fixture(autouse=True)
def in_double():
    promotion = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), promotion, jax.numpy_rank_promotion("allow"):
        yield


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def theirs(make, *args, steps, initial, **options):
    return exponax.repeat(make(*args, order=4, **options), steps)(initial[None])[0]


def random_flow(key):
    smooth = ops.gaussian_field(key, SQUARE, smoothness=6.0, tau=2.0)
    return banded(smooth / jnp.abs(smooth).max())


def banded(field):
    """The band of both on 48 points; the other keeps what leaves it as well."""
    return SQUARE.irfft(SQUARE.rfft(field) * SQUARE.mask("2/3"))


@pytest.fixture(scope="module")
def shear():
    """A random flow under the Kolmogorov force, with drag, by the other library."""
    standard = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), standard, jax.numpy_rank_promotion("allow"):
        initial = random_flow(jax.random.key(3))
        wanted = theirs(
            exponax.stepper.KolmogorovFlowVorticity,
            *(2, TWO_PI, 48, 5e-3),
            steps=200,
            initial=initial,
            diffusivity=0.02,
            convection_scale=-1.0,  # of the other sign: u = (-psi_y, psi_x)
            drag=-0.1,
            injection_mode=2,
            injection_scale=0.5,
        )
        force = ops.kolmogorov_forcing(SQUARE, 2, 0.5)
        wanted = banded(wanted)
    return initial, wanted, force


@pytest.mark.parametrize(
    ("method", "dt"), [("etdrk4", 0.005), ("ifrk4", 0.005), ("imex_rk4_cn", 1e-3)]
)
def test_forced_flow_with_drag(shear, method, dt):
    initial, wanted, force = shear
    equation = ops.NavierStokes(0.02, drag=0.1, source=force)
    march = lambda equation: ops.integrate(
        equation, SQUARE, initial, [1.0], dt=dt, method=method
    )[0]
    assert relative(march(equation), wanted) < 1e-8
    if method == "etdrk4":  # a sign too many is seen
        wrong = ops.NavierStokes(0.02, drag=-0.1, source=force)
        assert relative(march(wrong), wanted) > 1e-2


def test_flames():
    (x,) = LINE.points()
    initial = jnp.cos(x / 16) * (1 + jnp.sin(x / 16))
    ours = ops.integrate(ops.KuramotoSivashinsky(), LINE, initial, [10.0], dt=0.02)[0]
    wanted = theirs(
        exponax.stepper.KuramotoSivashinskyConservative,
        *(1, 32 * np.pi, 96, 0.02),
        steps=500,
        initial=initial,
    )
    assert relative(ours, wanted) < 1e-8


def test_phases():
    (x,) = SHORT.points()
    initial = 0.7 * jnp.sin(x) + 0.2 * jnp.cos(2 * x)
    ours = ops.integrate(ops.AllenCahn(0.3), SHORT, initial, [1.0], dt=0.01)[0]
    wanted = theirs(
        exponax.stepper.reaction.AllenCahn,
        *(1, TWO_PI, 96, 0.01),
        steps=100,
        initial=initial,
        diffusivity=0.09,
    )
    assert relative(ours, wanted) < 1e-8
