"""Error against seconds of one window: solvers, another library's, and refinement."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config
from ._timed import timed


ops = px.operators
GRID, SIDE, HORIZON, DEGREE = 64, 2 * np.pi, 1.0, 12
VISCOSITY, MODE, SCALE = 0.02, 4, 0.1
METHODS = ("imex_rk4_cn", "heun_cn", "etdrk4", "ifrk4")
STEPS = (10, 20, 40, 80, 160, 320)


@functools.cache
def _flows(batch: int) -> tuple[ops.Grid, ops.NavierStokes, np.ndarray, np.ndarray]:
    """Developed flows under the Kolmogorov force, and where they end."""
    grid = ops.Grid((GRID, GRID), (SIDE, SIDE))
    force = ops.kolmogorov_forcing(grid, MODE, SCALE)
    equation = ops.NavierStokes(VISCOSITY, source=force)

    @jax.jit
    def make(key):
        rough = 0.3 * ops.gaussian_field(key, grid, smoothness=4.0, tau=3.0)
        return ops.integrate(equation, grid, rough, [5.0, 5.0 + HORIZON], dt=1.25e-3)

    keys = jax.random.split(jax.random.key(0), batch)
    found = np.stack([make(key) for key in keys])
    return grid, equation, found[:, 0], found[:, 1]


def _pareto(batch: int, rounds: int) -> dict[str, Any]:
    """Points of seconds and relative error at the end, of all flows together."""
    most = 80 if batch > 8 else max(STEPS)
    counts = [n for n in STEPS if n <= most]
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        grid, equation, starts, ends = _flows(batch)
        starts = jnp.asarray(starts)

        def measure(run):
            found, seconds = timed(jax.jit(jax.vmap(run)), starts, rounds=rounds)
            error = np.linalg.norm(np.asarray(found) - ends) / np.linalg.norm(ends)
            return [seconds, float(error)]

        for method in METHODS:
            figures[method] = [
                measure(_solver(equation, grid, method, steps)) for steps in counts
            ]
        with contextlib.suppress(ImportError):
            figures["exponax"] = [measure(_exponax(steps)) for steps in counts]
        figures["refined from no change"] = [
            measure(_refinement(equation, grid, n))
            for n in ((1, 2, 3) if batch > 8 else (1, 2, 3, 4))
        ]
    return figures


def _solver(equation, grid, method, steps):
    return lambda w: ops.integrate(
        equation, grid, w, [HORIZON], dt=HORIZON / steps, method=method
    )[0]


def _refinement(equation, grid, steps):
    def run(w):
        here = ops.SpaceTimeProblem(equation, grid, w, HORIZON, degree=DEGREE)
        found = ops.refine(here, max_steps=steps, rtol=0.0).trajectory
        return found(jnp.asarray(HORIZON))

    return run


def _exponax(steps):
    """Its stepper of order four for the same equation; its vorticity is minus ours."""
    import exponax

    with jax.numpy_dtype_promotion("standard"):
        step = exponax.stepper.KolmogorovFlowVorticity(
            *(2, SIDE, GRID, HORIZON / steps),
            diffusivity=VISCOSITY,
            convection_scale=-1.0,
            drag=0.0,
            injection_mode=MODE,
            injection_scale=SCALE,
            order=4,
        )
    return lambda w: exponax.repeat(step, steps)(w[None])[0]


def solver_cases(config: Config) -> list[Case]:
    """One flow in a fast run, batches as well in a full one.

    The largest batch is timed once, and by solvers of at most 80 steps.
    """
    batches = (1,) if config.fast else (1, 8, 64)
    return [
        Case(
            name=f"solvers/batch {batch}",
            parameters={
                "grid": GRID,
                "degree": DEGREE,
                "horizon": HORIZON,
                "viscosity": VISCOSITY,
                "force": SCALE,
            },
            measure=lambda _, batch=batch: _pareto(batch, 3 if batch <= 8 else 1),
            packages=("exponax",),
        )
        for batch in batches
    ]
