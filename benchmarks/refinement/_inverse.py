"""A flow from sparse noisy frames: coverage, and fits by a solver.

Two parameters, viscosity and forcing; and these with the start, its 80 largest modes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree

import pathax as px

from .._case import Case, Config
from ._timed import timed


ops = px.operators
SIDE, HORIZON, NOISE, DEGREE, SLABS = 32, 1.0, 0.02, 4, 5
TIMES = np.linspace(0.2, 1.0, 5)
TRUTH = {"log viscosity": np.log(0.02), "forcing": 1.0}
GUESS = {"log viscosity": np.log(0.04), "forcing": 0.7}
SOLVER_STEPS = 4  # between two frames; the error is far below the noise
SEEDS = 40


LARGEST = 4  # frequency of modes of the start that are unknown
SPREAD = 0.3  # of the prior of their amplitudes


class _Study:
    """The flow, what is seen of it, and all ways to fit."""

    def __init__(self, start: bool):
        self.grid = ops.Grid((SIDE, SIDE), (2 * np.pi, 2 * np.pi))
        self.force = ops.kolmogorov_forcing(self.grid, 2, 1.0)
        rough = ops.gaussian_field(
            jax.random.key(0), self.grid, smoothness=4.0, tau=3.0
        )
        truth = {k: jnp.asarray(v) for k, v in TRUTH.items()}
        args = self.equation(truth), self.grid, rough, [3.0]
        self.initial = ops.integrate(*args, dt=0.01)[0]
        m, n = self.grid.frequencies()
        inside = (np.abs(m) <= LARGEST) & (n <= LARGEST) & ((n > 0) | (m > 0))
        self.inside = np.flatnonzero(inside)
        guess = {k: jnp.asarray(v) for k, v in GUESS.items()}
        self.prior = None
        if start:
            # Only these modes, so that a flow can be found that is the right one.
            truth["start"] = self.modes(self.initial)
            self.initial = self.field(truth)
            zero = jnp.zeros_like(truth["start"])
            wide = jax.tree.map(jnp.ones_like, guess)
            self.prior = (guess | {"start": zero}, wide | {"start": zero + SPREAD})
        self.truth, self.start_guess = truth, guess
        self.clean = self.march(self.truth, 40)

    def modes(self, w):
        found = self.grid.rfft(w).reshape(-1)[self.inside]
        return jnp.stack([found.real, found.imag])

    def field(self, theta):
        """The start: known, or of the parameters."""
        if "start" not in theta:
            return self.initial
        spectrum = jnp.zeros(int(np.prod(self.grid.spectrum_shape)), complex)
        spectrum = spectrum.at[self.inside].set(jax.lax.complex(*theta["start"]))
        return self.grid.irfft(spectrum.reshape(self.grid.spectrum_shape))

    def equation(self, theta):
        source = theta["forcing"] * self.force
        return ops.NavierStokes(jnp.exp(theta["log viscosity"]), source=source)

    def observe(self, w):
        return w[..., ::4, ::4]

    @property
    def times(self):
        """A first frame at time zero, where the start is unknown."""
        return TIMES if self.prior is None else np.concatenate([[0.0], TIMES])

    def march(self, theta, steps=SOLVER_STEPS):
        """Frames by a solver, so many steps between two."""
        args = self.equation(theta), self.grid, self.field(theta), TIMES
        fields = ops.integrate(*args, dt=TIMES[0] / steps, method="ifrk4")
        if self.prior is not None:
            fields = jnp.concatenate([self.field(theta)[None], fields])
        return self.observe(fields)

    def between(self, frames):
        """What was seen, as fields."""
        coarse = ops.Grid((SIDE // 4,) * 2, self.grid.lengths)
        fill = lambda y: coarse.resample(coarse.rfft(y), self.grid)
        return jax.vmap(lambda y: self.grid.irfft(fill(y)))(frames)

    def guess(self, frames):
        if self.prior is None:
            return self.start_guess
        return self.start_guess | {"start": self.modes(self.between(frames)[0])}

    # Ways to fit ------------------------------------------------------------------

    def problem(self, theta):
        args = self.equation(theta), self.grid, self.field(theta), HORIZON
        return ops.SpaceTimeProblem(*args, degree=DEGREE, slabs=SLABS)

    def infer(self, frames):
        return ops.infer(
            self.problem,
            self.guess(frames),
            self.times,
            frames,
            noise=NOISE,
            observe=self.observe,
            prior=self.prior,
            sweep_steps=SOLVER_STEPS + 1,
        )

    def residual(self, theta, frames):
        """In units of noise, and of the prior if there is one."""
        seen = ((self.march(theta) - frames) / NOISE).reshape(-1)
        if self.prior is None:
            return seen
        prior = jax.tree.map(lambda x, c, d: (x - c) / d, theta, *self.prior)
        return seen, prior

    def gauss_newton(self, frames):
        """Through the solver, derivatives in forward mode."""
        solver = optx.GaussNewton(rtol=1e-3, atol=1e-3)
        found = optx.least_squares(
            self.residual,
            solver,
            self.guess(frames),
            frames,
            options={"jac": "fwd"},
            max_steps=30,
            throw=False,
        )
        return found.value

    def adjoint(self, frames):
        """Through the solver, gradients in reverse mode, in units of the prior."""
        first, unravel = ravel_pytree(self.guess(frames))
        scale = jnp.ones_like(first)
        if self.prior is not None:
            scale = ravel_pytree(self.prior[1])[0]

        def loss(u, y):
            left = ravel_pytree(self.residual(unravel(u * scale), y))[0]
            return 0.5 * jnp.sum(left**2)

        solver = optx.BFGS(rtol=1e-5, atol=1e-5)
        start = first / scale
        found = optx.minimise(loss, solver, start, frames, max_steps=400, throw=False)
        return unravel(found.value * scale)


def _inverse(seeds: int, start: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        study = _Study(start)
        noise = np.random.default_rng(0).normal(size=(seeds, *study.clean.shape))
        frames = study.clean[None] + NOISE * noise
        infer = jax.jit(study.infer)
        ways = {
            "infer": lambda y: infer(y).parameters,
            "Gauss-Newton by a solver": jax.jit(study.gauss_newton),
            "BFGS by a solver": jax.jit(study.adjoint),
        }
        misfit = jax.jit(lambda theta, y: (study.march(theta) - y) / NOISE)
        for name, way in ways.items():
            found, figures[f"seconds {name}"] = timed(way, frames[0])
            left = np.asarray(misfit(found, frames[0]))
            figures[f"misfit {name}"] = float(np.sqrt(np.mean(left**2)))
            for key in TRUTH:
                figures[f"{key} {name}"] = float(found[key])
        every = [infer(y) for y in frames]
        for name, true in study.truth.items():
            z = [
                np.asarray((f.parameters[name] - true) / f.deviation[name])
                for f in every
            ]
            figures[f"coverage {name}"] = float(np.mean(np.abs(z) < 1.96))
            figures[f"deviation {name}"] = float(np.median(every[0].deviation[name]))
    return figures


def inverse_cases(config: Config) -> list[Case]:
    """Two parameters; with the start in a full run, as that takes longer."""
    seeds = 10 if config.fast else SEEDS
    named = {"viscosity and forcing": False, "viscosity, forcing and start": True}
    return [
        Case(
            name=f"inverse/{name}",
            parameters={"seeds": seeds, "grid": SIDE, "noise": NOISE, "slabs": SLABS},
            measure=lambda _, start=start: _inverse(seeds, start),
            packages=("optimistix",),
            revision=2,
        )
        for name, start in named.items()
        if not (config.fast and start)
    ]
