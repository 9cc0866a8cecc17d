"""What a penalty does to the parameters of a physical system: it moves them."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._train import bootstrap


TRUE = np.array([3.0, 1.0])  # damping and frequency
TOLERANCE, NOISE, END, POINTS = 1e-6, 0.1, 10.0, 60
WEIGHTS = (0.0, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS, STEPS = 12, 150


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
        max_steps=1024,
    )
    assert sol.ys is not None
    return sol.ys[:, 0], record


def _identify(seed_key, weight, steps):
    """From noisy positions, by Adam from a start that is ten percent off."""
    clean, _ = _solve(jnp.asarray(TRUE))
    data = clean + NOISE * jax.random.normal(seed_key, clean.shape)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(parameters):
        found, record = _solve(parameters)
        return jnp.mean((found - data) ** 2) + weight * record.penalties["cost"]

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    start = jnp.asarray(TRUE) * jnp.array([0.9, 1.05])
    (parameters, _), _ = jax.lax.scan(
        step, (start, optimizer.init(start)), length=steps
    )
    found, record = _solve(parameters)
    error = jnp.sqrt(jnp.mean((found - clean) ** 2))
    return parameters, record.evaluations.total.drift, error


def _measure(seeds: int, steps: int) -> dict:
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), seeds)
        lanes = lambda w: jax.lax.map(lambda k: _identify(k, w, steps), keys)
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
            measure=lambda _: _measure(SEEDS, STEPS),
        )
    ]
