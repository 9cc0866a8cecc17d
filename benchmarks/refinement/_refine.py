"""From a network's error to the solver's: steps, seconds, and the published way."""

import functools
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config
from ._flows import Flow, decaying, error, forced, problem
from ._network import network_error, network_start, trained


ops = px.operators
DEGREE = 10
RATES = (1e-2, 3e-3, 1e-3, 3e-4)  # of Adam
TESTS = 8
FULL = {"training": 32, "steps": 300}
FAST = {"training": 16, "steps": 120}


def _timed(call) -> tuple[Any, float]:
    """A result, and seconds without those of compilation."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    return jax.block_until_ready(call()), time.perf_counter() - begin


# The main effect ----------------------------------------------------------------------


def _refined(training: int, steps: int) -> dict[str, Any]:
    """Eight flows: the network, then one, two and three Gauss-Newton steps."""
    flows = training + TESTS
    flow = forced(flows)
    network = trained(training, steps, flows)
    figures: dict[str, Any] = {"train_s": network.seconds}
    errors: dict[int, list[float]] = {n: [] for n in range(4)}
    seconds, still, gains = [], [], []
    with jax.enable_x64(True):
        for i in range(training, flows):
            errors[0].append(network_error(network.model, flow, i))
            here = problem(flow, i, DEGREE)
            rough = network_start(network.model, flow, i)
            start = ops.refine(here, rough, max_steps=0).trajectory  # only fitted
            still.append(error(flow, i, _persistence(flow, i)))
            for n in (1, 2, 3):
                call = functools.partial(ops.refine, here, start, max_steps=n, rtol=0.0)
                found, spent = _timed(call)
                errors[n].append(error(flow, i, found.trajectory))
            seconds.append(spent / 3)
            gains.append(_adam(flow, i, here, start, found.ffts) / errors[3][-1])
    for n, found in errors.items():
        figures[f"error {n}"] = statistics.median(found)
        figures[f"error {n} range"] = [min(found), max(found)]
    figures["error of no change"] = statistics.median(still)
    figures["seconds_per_iteration"] = statistics.median(seconds)
    figures["over Adam"] = statistics.median(gains)
    figures["over Adam range"] = [min(gains), max(gains)]
    return figures


def _persistence(flow: Flow, index: int):
    return lambda t: jnp.repeat(jnp.asarray(flow.frames[index, -1:]), t.size, axis=0)


def _adam(flow, index, here, start, ffts) -> float:
    """The least error of Adam on the same residual, for as many transforms."""
    each = 2 * (5 * here.nodes + 1)
    steps = max(1, round(float(ffts) / each))
    found = [
        ops.refine(
            here,
            start,
            method="adam",
            preconditioner="none",
            max_steps=steps,
            learning_rate=rate,
            rtol=0.0,
        )
        for rate in RATES
    ]
    return min(error(flow, index, f.trajectory) for f in found)


# The estimator ------------------------------------------------------------------------


def _estimator(flows: int) -> dict[str, Any]:
    """Rank correlation of residual and error, over flows, steps and bands of noise."""
    flow = forced(flows)
    etas: list[float] = []
    errors: list[float] = []
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for i in range(flows):
            here = problem(flow, i, DEGREE)
            solved = None
            for n in (1, 2):
                found = ops.refine(here, max_steps=n, rtol=0.0).trajectory
                solved = found if n == 2 else solved
                etas.append(float(ops.estimate(flow.equation, found).eta))
                errors.append(error(flow, i, found))
            solved = ops.refine(here, rtol=0.0, max_steps=3).trajectory
            size = np.sqrt(flow.grid.square_wavenumbers()) / (2 * np.pi)
            for low, high in ((1, 4), (8, 16)):
                band = (size >= low) & (size <= high)
                for amount in (1e-6, 1e-4, 1e-2):
                    noise = rng.normal(size=(2, *solved.coefficients.shape))
                    noise = (noise[0] + 1j * noise[1]) * band
                    scale = np.abs(solved.initial).max() / np.abs(noise).max()
                    rough = eqx.tree_at(
                        lambda p: p.coefficients,
                        solved,
                        solved.coefficients + amount * scale * noise,
                    )
                    etas.append(float(ops.estimate(flow.equation, rough).eta))
                    errors.append(error(flow, i, rough))
    rank = lambda x: np.argsort(np.argsort(x))
    return {
        "spearman": float(np.corrcoef(rank(etas), rank(errors))[0, 1]),
        "pairs": len(etas),
        "etas": etas,
        "errors": errors,
    }


# Turbulence ---------------------------------------------------------------------------


def _turbulence(size: int) -> dict[str, Any]:
    """One window at once, and cut into slabs: error and seconds."""
    flow = decaying(size)
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name, slabs, steps in (
            ("whole", 1, 4),
            ("slabs", 5, 2),
            ("slabs, three steps", 5, 3),
        ):
            here = problem(flow, 0, 12, slabs)
            found, spent = _timed(
                lambda here=here, steps=steps: ops.refine(
                    here, max_steps=steps, rtol=0.0
                )
            )
            figures[f"error {name}"] = error(flow, 0, found.trajectory)
            figures[f"seconds {name}"] = spent
        checked = ops.estimate(flow.equation, found.trajectory)
        figures["outside over scale"] = float(checked.outside / checked.scale)
        figures["resolved"] = bool(checked.resolved)
    return figures


# Beside solvers -----------------------------------------------------------------------


def _pareto() -> dict[str, Any]:
    """Error against seconds for one window of forced flow."""
    flow = forced(1)
    figures: dict[str, Any] = {}
    initial = jnp.asarray(flow.frames[0, -1])
    times = [flow.horizon]
    end = flow.after[0, -1]
    relative = lambda x: float(np.linalg.norm(x - end) / np.linalg.norm(end))
    with jax.enable_x64(True):
        for method in ("imex_rk4_cn", "heun_cn", "etdrk4", "ifrk4"):
            points = []
            for steps in (10, 20, 40, 80, 160):
                call = lambda steps=steps, method=method: ops.integrate(
                    flow.equation,
                    flow.grid,
                    initial,
                    times,
                    dt=flow.horizon / steps,
                    method=method,
                )
                found, spent = _timed(call)
                points.append([spent, relative(np.asarray(found[0]))])
            figures[method] = points
        here = problem(flow, 0, DEGREE)
        points = []
        for n in (1, 2, 3):
            found, spent = _timed(lambda n=n: ops.refine(here, max_steps=n, rtol=0.0))
            points.append([spent, relative(np.asarray(found.trajectory(flow.horizon)))])
        figures["refined from no change"] = points
    return figures


def refinement_cases(config: Config) -> list[Case]:
    """All cases; a fast run trains for less time and leaves out turbulence."""
    size = FAST if config.fast else FULL
    cases = [
        Case(
            name="network/forced flow",
            parameters={**size, "flows": TESTS, "degree": DEGREE, "grid": 64},
            measure=lambda _: _refined(**size),
            packages=("optax",),
        ),
        Case(
            name="estimator/forced flow",
            parameters={"flows": 2 if config.fast else 8, "degree": DEGREE},
            measure=lambda _: _estimator(2 if config.fast else 8),
        ),
        Case(
            name="solvers/forced flow",
            parameters={"grid": 64, "degree": DEGREE},
            measure=lambda _: _pareto(),
        ),
    ]
    if not config.fast:
        cases.append(
            Case(
                name="turbulence/128",
                parameters={"grid": 128, "degree": 12},
                measure=lambda _: _turbulence(128),
            )
        )
    return cases
