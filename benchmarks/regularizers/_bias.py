"""What a penalty does to the parameters of a physical system: it moves them."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import pathax as px

from .._case import Case, Config
from ._train import bootstrap


TRUE = np.array([3.0, 1.0])  # damping and frequency
TOLERANCE, NOISE, END, POINTS = 1e-6, 0.03, 10.0, 60
WEIGHTS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
SEEDS, STEPS = 20, 40


def _oscillator(t, y, parameters):
    """The Van der Pol oscillator, whose damping makes it stiff."""
    position, speed = y
    damping, frequency = parameters
    return jnp.stack(
        [speed, damping * (1 - position**2) * speed - frequency**2 * position]
    )


def _solve(parameters):
    sol, record = px.regularizers.solve(
        dfx.ODETerm(_oscillator),
        dfx.Tsit5(),
        0.0,
        END,
        0.1,
        jnp.array([2.0, 0.0]),
        parameters,
        saveat=dfx.SaveAt(ts=jnp.linspace(0, END, POINTS)),
        stepsize_controller=dfx.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        penalties={"cost": px.regularizers.StepCost()},
        adjoint=dfx.ForwardMode(),
        max_steps=1024,
    )
    assert sol.ys is not None
    return sol.ys[:, 0], record


def _identify(seed_key, weight):
    """From noisy positions, by Levenberg-Marquardt from a start that is off.

    The penalty joins as one more residual, whose square it is.
    """
    clean, _ = _solve(jnp.asarray(TRUE))
    data = clean + NOISE * jax.random.normal(seed_key, clean.shape)

    def residuals(parameters, args):
        found, record = _solve(parameters)
        penalty = weight * POINTS * record.penalties["cost"]
        return found - data, jnp.sqrt(jnp.maximum(penalty, 1e-12))

    start = jnp.asarray(TRUE) * jnp.array([0.95, 1.02])
    method = optx.LevenbergMarquardt(rtol=1e-6, atol=1e-6)
    parameters = optx.least_squares(
        residuals, method, start, max_steps=STEPS, throw=False
    ).value
    found, record = _solve(parameters)
    error = jnp.sqrt(jnp.mean((found - clean) ** 2))
    return parameters, record.evaluations.total.drift, error


def _measure(seeds: int) -> dict:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), seeds)
        lanes = lambda w: jax.lax.map(lambda k: _identify(k, w), keys)
        every = jax.jit(lambda: jax.lax.map(lanes, jnp.asarray(WEIGHTS)))
        parameters, evaluations, error = jax.tree.map(np.asarray, every())
    off = 100 * (parameters / TRUE - 1)
    intervals = [bootstrap(x) for x in off[..., 0]]
    return {
        "weights": list(WEIGHTS),
        "damping_off_percent": off[..., 0].mean(1).tolist(),
        "damping_off_lower95": [low for low, _ in intervals],
        "damping_off_upper95": [high for _, high in intervals],
        "frequency_off_percent": off[..., 1].mean(1).tolist(),
        "evaluations": evaluations.mean(1).tolist(),
        "error": error.mean(1).tolist(),
    }


def bias_cases(config: Config) -> list[Case]:
    """One system, all weights; left out of a fast run."""
    if config.fast:
        return []
    parameters = {"weights": WEIGHTS, "tolerance": TOLERANCE, "noise": NOISE}
    parameters |= {"seeds": SEEDS, "steps": STEPS, "true": TRUE.tolist()}
    return [
        Case(
            "bias/van der Pol",
            parameters,
            revision=2,
            measure=lambda _: _measure(SEEDS),
        )
    ]
