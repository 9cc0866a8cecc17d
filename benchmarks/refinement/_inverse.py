"""Viscosity and forcing from sparse noisy frames: coverage, and fits by a solver."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import pathax as px

from .._case import Case, Config
from ._timed import timed


ops = px.operators
SIDE, HORIZON, NOISE, DEGREE = 32, 1.0, 0.02, 10
TIMES = np.linspace(0.2, 1.0, 5)
TRUTH = {"log viscosity": np.log(0.02), "forcing": 1.0}
GUESS = {"log viscosity": np.log(0.04), "forcing": 0.7}
SOLVER_STEPS = 4  # between two frames; the error is far below the noise
SEEDS = 40


class _Study:
    """The flow, what is seen of it, and both ways to fit."""

    def __init__(self):
        self.truth = jax.tree.map(jnp.asarray, TRUTH)
        self.guess = jax.tree.map(jnp.asarray, GUESS)
        self.grid = ops.Grid((SIDE, SIDE), (2 * np.pi, 2 * np.pi))
        self.force = ops.kolmogorov_forcing(self.grid, 2, 1.0)
        rough = ops.gaussian_field(
            jax.random.key(0), self.grid, smoothness=4.0, tau=3.0
        )
        fields = ops.integrate(
            self.equation(self.truth), self.grid, rough, [3.0], dt=0.01
        )
        self.initial = fields[0]
        self.clean = self.march(self.truth, 40)

    def equation(self, theta):
        source = theta["forcing"] * self.force
        return ops.NavierStokes(jnp.exp(theta["log viscosity"]), source=source)

    def observe(self, w):
        return w[..., ::4, ::4]

    def march(self, theta, steps=SOLVER_STEPS):
        """Frames by a solver, so many steps between two."""
        fields = ops.integrate(
            self.equation(theta),
            self.grid,
            self.initial,
            TIMES,
            dt=TIMES[0] / steps,
            method="ifrk4",
        )
        return self.observe(fields)

    def problem(self, theta):
        return ops.SpaceTimeProblem(
            self.equation(theta), self.grid, self.initial, HORIZON, degree=DEGREE
        )

    def infer(self, frames):
        return ops.infer(
            self.problem, self.guess, TIMES, frames, noise=NOISE, observe=self.observe
        )

    def residual(self, theta, frames):
        return (self.march(theta) - frames) / NOISE

    def gauss_newton(self, frames):
        """Through the solver, derivatives in forward mode."""
        solver = optx.GaussNewton(rtol=1e-8, atol=1e-8)
        return optx.least_squares(
            self.residual, solver, self.guess, frames, options={"jac": "fwd"}
        ).value

    def adjoint(self, frames):
        """Through the solver, gradients in reverse mode."""
        loss = lambda theta, y: 0.5 * jnp.sum(self.residual(theta, y) ** 2)
        solver = optx.BFGS(rtol=1e-6, atol=1e-6)
        found = optx.minimise(
            loss, solver, self.guess, frames, max_steps=200, throw=False
        )
        return found.value


def _inverse(seeds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        study = _Study()
        noise = np.random.default_rng(0).normal(size=(seeds, *study.clean.shape))
        frames = study.clean[None] + NOISE * noise
        infer = jax.jit(study.infer)
        ways = {
            "refinement": lambda y: infer(y).parameters,
            "Gauss-Newton by a solver": jax.jit(study.gauss_newton),
            "BFGS by a solver": jax.jit(study.adjoint),
        }
        answers = {}
        for name, way in ways.items():
            answers[name], figures[f"seconds {name}"] = timed(way, frames[0])
        for name, found in answers.items():
            figures[f"parameters {name}"] = {k: float(v) for k, v in found.items()}
        every = [infer(y) for y in frames]
        for name, true in TRUTH.items():
            z = [float((f.parameters[name] - true) / f.deviation[name]) for f in every]
            figures[f"coverage {name}"] = float(np.mean(np.abs(z) < 1.96))
            figures[f"deviation {name}"] = float(every[0].deviation[name])
    return figures


def inverse_cases(config: Config) -> list[Case]:
    """One case; fewer seeds in a fast run."""
    seeds = 10 if config.fast else SEEDS
    return [
        Case(
            name="inverse/viscosity and forcing",
            parameters={"seeds": seeds, "grid": SIDE, "noise": NOISE},
            measure=lambda _: _inverse(seeds),
            packages=("optimistix",),
        )
    ]
