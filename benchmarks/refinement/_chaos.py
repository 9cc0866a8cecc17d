"""Viscosity, forcing and start of chaotic waves, from sparse noisy frames.

All of `pathax.operators.infer`, of the same least squares through a solver (single
shooting, by Levenberg-Marquardt with derivatives in forward mode and by BFGS with the
solver's adjoint), and of shooting over windows that grow, which is what is done about
chaos. The same prior, the same first guess, the same frames.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree

import pathax as px

from .._case import Case, Config


ops = px.operators
POINTS, LENGTH, MODES, EVERY, GAP, NOISE = 64, 64.0, 21, 4, 2.0, 0.1
TRUTH = {"log viscosity": 0.0, "forcing": 0.03}
GUESS = {"log viscosity": float(np.log(1.2)), "forcing": 0.0}
DEVIATION = {"log viscosity": 0.3, "forcing": 0.1}
DEGREE, MARCH = 6, 8  # of a slab of one gap
JUMPS = tuple(np.geomspace(0.3, 3e-3, 24))
STEP = 0.25  # of ETDRK4; see the error of the frames it makes
GOOD = 1.15  # misfit over the noise of a fit that found the flow
# Starts along one long trajectory. The settings of `infer` were chosen on the first
# forty, which are not among those that are measured.
FIRST, SEEDS, BESIDE = 100, 160, 10


class Study:
    """The waves, what is seen of them, and all ways to fit."""

    def __init__(self, window: float):
        self.window = window
        self.times = np.arange(0.0, window + 1e-9, GAP)
        self.grid = ops.Grid((POINTS,), (LENGTH,))
        self.coarse = ops.Grid((POINTS // EVERY,), (LENGTH,))
        (x,) = self.grid.points()
        self.wave = jnp.cos(2 * np.pi * 5 * x / LENGTH)
        rough = 0.3 * jax.random.normal(jax.random.key(0), (POINTS,))
        apart = 200 + 40.0 * np.arange(FIRST + SEEDS)
        truth = {k: jnp.asarray(v) for k, v in TRUTH.items()}
        equation = self.equation(truth)
        fields = ops.integrate(equation, self.grid, rough, apart, dt=0.2)
        fields = fields - fields.mean(-1, keepdims=True)
        every = jax.vmap(self.modes)(fields)
        spread = jnp.sqrt(jnp.mean(every**2, axis=(0, 1)))
        self.truths = [{**truth, "start": v} for v in every]
        start = jnp.zeros((2, MODES))
        self.prior = (
            {**{k: jnp.asarray(v) for k, v in GUESS.items()}, "start": start},
            {
                **{k: jnp.asarray(v) for k, v in DEVIATION.items()},
                "start": jnp.broadcast_to(spread, start.shape),
            },
        )
        self.center, self.unravel = ravel_pytree(self.prior[0])
        self.scale = ravel_pytree(self.prior[1])[0]

    def equation(self, theta):
        viscosity = jnp.exp(theta["log viscosity"])
        source = theta["forcing"] * self.wave
        return ops.KuramotoSivashinsky(viscosity, source=source)

    def field(self, modes):
        """From real and imaginary parts of modes; there is no mean."""
        spectrum = jnp.zeros(self.grid.spectrum_shape, complex)
        values = jax.lax.complex(modes[0], modes[1])
        return self.grid.irfft(spectrum.at[1 : MODES + 1].set(values))

    def modes(self, w):
        found = self.grid.rfft(w)[1 : MODES + 1]
        return jnp.stack([found.real, found.imag])

    def observe(self, w):
        return w[..., ::EVERY]

    def march(self, theta, times, dt=STEP):
        first = self.field(theta["start"])
        args = self.equation(theta), self.grid, first, times[1:]
        return jnp.concatenate([first[None], ops.integrate(*args, dt=dt)])

    def frames(self, seed: int):
        """With noise, of the truth marched with short steps."""
        march = jax.jit(lambda theta: self.march(theta, self.times, 0.02))
        clean = self.observe(march(self.truths[seed]))
        noise = np.random.default_rng(seed).normal(size=clean.shape)
        return clean + NOISE * noise

    def between(self, frames):
        """What sensors saw, as fields: the waves that they can tell apart."""
        fill = lambda y: self.coarse.resample(self.coarse.rfft(y), self.grid)
        return jax.vmap(lambda y: self.grid.irfft(fill(y)))(frames)

    def guess(self, frames):
        return {**self.prior[0], "start": self.modes(self.between(frames[:1])[0])}

    # Ways to fit ------------------------------------------------------------------

    def infer(self, frames):
        def problem(theta):
            first = self.field(theta["start"])
            args = self.equation(theta), self.grid, first, self.window
            return ops.SpaceTimeProblem(
                *args, degree=DEGREE, slabs=round(self.window / GAP)
            )

        found = ops.infer(
            problem,
            self.guess(frames),
            self.times,
            frames,
            noise=NOISE,
            observe=self.observe,
            prior=self.prior,
            start=(self.times, self.between(frames)),
            jumps=JUMPS,
            sweep_steps=MARCH,
            tolerance=1e-2,
        )
        return found

    def residual(self, u, frames, times):
        """In units of noise and of the prior's deviations."""
        seen = self.observe(
            self.march(self.unravel(self.center + self.scale * u), times)
        )
        return jnp.concatenate([((seen - frames) / NOISE).reshape(-1), u])

    def first(self, frames):
        return (ravel_pytree(self.guess(frames))[0] - self.center) / self.scale

    def squares(self, u, frames, times):
        residual = lambda u, y: self.residual(u, y, times)
        solver = optx.LevenbergMarquardt(rtol=1e-3, atol=1e-3)
        found = optx.least_squares(
            residual,
            solver,
            u,
            frames,
            options={"jac": "fwd"},
            max_steps=60,
            throw=False,
        )
        return found.value

    def shoot(self, frames):
        """Over the whole window at once."""
        return self.squares(self.first(frames), frames, self.times)

    def ends(self):
        """Longer by 5 each, about half a time in which errors grow by e."""
        return np.arange(10.0, self.window + 1e-9, 5.0)

    def grow(self, frames):
        """Over windows that grow, each from what the last one found."""
        u = self.first(frames)
        for end in self.ends():
            times = self.times[self.times <= end + 1e-9]
            u = self.squares(u, frames[: times.size], times)
        return u

    def adjoint(self, frames):
        """BFGS, with gradients through the solver, over windows that grow."""
        u = self.first(frames)
        for end in self.ends():
            times = self.times[self.times <= end + 1e-9]
            loss = lambda u, y, t=times: 0.5 * jnp.sum(self.residual(u, y, t) ** 2)
            solver = optx.BFGS(rtol=1e-3, atol=1e-3)
            y = frames[: times.size]
            u = optx.minimise(loss, solver, u, y, max_steps=300, throw=False).value
        return u


def _waves(window: float) -> dict[str, Any]:
    """All ways on some seeds, in turns; ours on all of them, with its intervals."""
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        study = Study(window)
        frames = [study.frames(FIRST + i) for i in range(SEEDS)]
        infer = jax.jit(study.infer)
        misfit = jax.jit(
            lambda u, y: jnp.sqrt(
                jnp.mean(study.residual(u, y, study.times)[: y.size] ** 2)
            )
        )
        parameters = lambda f: (
            (ravel_pytree(f.parameters)[0] - study.center) / study.scale
        )
        ways = {
            "infer": lambda y: parameters(infer(y)),
            "shooting": jax.jit(study.shoot),
            "growing windows": jax.jit(study.grow),
            "growing windows, adjoint": jax.jit(study.adjoint),
        }
        spent: dict[str, list] = {name: [] for name in ways}
        for way in ways.values():
            jax.block_until_ready(way(frames[0]))
        for y in frames[:BESIDE]:
            for name, way in ways.items():
                begin = time.perf_counter()
                u = jax.block_until_ready(way(y))
                seconds = time.perf_counter() - begin
                spent[name].append([seconds, float(misfit(u, y))])
        for name, found in spent.items():
            good = [s for s, m in found if m < GOOD]
            figures[f"found {name}"] = len(good)
            # What one flow found costs, with the tries that failed.
            total = sum(s for s, _ in found)
            figures[f"seconds {name}"] = total / len(good) if good else None
            figures[f"median seconds {name}"] = statistics.median(s for s, _ in found)
            figures[f"all {name}"] = found
        figures["tried"] = BESIDE
        figures |= _coverage(study, infer, frames)
    return figures


def _coverage(study: Study, infer, frames) -> dict[str, Any]:
    every = [infer(y) for y in frames]
    good = [i for i, f in enumerate(every) if bool(f.converged) and f.misfit < GOOD]
    figures: dict[str, Any] = {"seeds": len(frames), "seeds found": len(good)}
    for name in study.truths[0]:
        z = [
            np.asarray(
                (every[i].parameters[name] - study.truths[FIRST + i][name])
                / every[i].deviation[name]
            )
            for i in good
        ]
        figures[f"coverage {name}"] = float(np.mean(np.abs(z) < 1.96))
        figures[f"deviation {name}"] = float(
            np.median([np.median(every[i].deviation[name]) for i in good])
        )
    figures["steps"] = statistics.median(
        len(JUMPS) + int(np.isfinite(every[i].change).sum()) for i in good
    )
    return figures


def chaos_cases(config: Config) -> list[Case]:
    """Windows of two and four times in which errors grow by e; none in a fast run."""
    if config.fast:
        return []
    return [
        Case(
            name=f"inverse/waves, window {window}",
            parameters={
                "points": POINTS,
                "noise": NOISE,
                "window": window,
                "first": FIRST,
                "seeds": SEEDS,
                "beside": BESIDE,
            },
            measure=lambda _, window=float(window): _waves(window),
            packages=("optimistix",),
        )
        for window in (20, 40)
    ]
