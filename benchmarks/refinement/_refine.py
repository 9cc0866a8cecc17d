"""From a network's error to the solver's: steps, seconds, and the published way."""

import functools
import statistics
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config
from ._flows import Flow, decaying, error, forced, problem
from ._network import Trained, network_error, network_start, trained
from ._timed import timed


ops = px.operators
DEGREE = 10
RATES = (1e-2, 3e-3, 1e-3, 3e-4)  # of Adam
TESTS = 8
FULL = {"training": 32, "steps": 300}
FAST = {"training": 24, "steps": 220}


# The main effect ----------------------------------------------------------------------


def _refined(training: int, steps: int) -> dict[str, Any]:
    """Eight flows: the network, then one, two and three Gauss-Newton steps."""
    flows = training + TESTS
    flow = forced(flows)
    network = trained(training, steps, flows)
    errors: dict[int, list[float]] = {n: [] for n in range(4)}
    spent, still, adams = [], [], []
    descents = None
    with jax.enable_x64(True):
        for i in range(training, flows):
            errors[0].append(network_error(network.model, flow, i))
            still.append(error(flow, i, _persistence(flow, i)))
            here = problem(flow, i, DEGREE)
            start = network_start(network.model, flow, i)
            start = ops.refine(here, start, max_steps=0).trajectory  # only fitted
            for n in (1, 2):
                found = ops.refine(here, start, max_steps=n, rtol=0.0)
                errors[n].append(error(flow, i, found.trajectory))
            call = functools.partial(ops.refine, here, start, max_steps=3, rtol=0.0)
            found, seconds = timed(call, rounds=1)
            errors[3].append(error(flow, i, found.trajectory))
            spent.append(seconds)
            if descents is None:  # those of the first flow, to compile once
                each = 2 * (5 * here.nodes + 1)  # a residual and its transpose
                descents = round(float(found.ffts) / each)
            adams.append(_adam(flow, i, here, start, descents))
    longer = _trained_longer(network, flow, sum(spent))
    gains = [a / e for a, e in zip(adams, errors[3], strict=True)]
    figures: dict[str, Any] = {"train_s": network.seconds}
    for n, found in errors.items():
        figures[f"error {n}"] = statistics.median(found)
        figures[f"error {n} range"] = [min(found), max(found)]
    figures |= {
        "error of no change": statistics.median(still),
        "seconds_per_iteration": statistics.median(spent) / 3,
        "steps of Adam": descents,
        "error of Adam": statistics.median(adams),
        "over Adam": statistics.median(gains),
        "over Adam range": [min(gains), max(gains)],
        "error trained longer": longer,
        "over training longer": longer / figures["error 3"],
    }
    return figures


def _persistence(flow: Flow, index: int):
    return lambda t: jnp.repeat(jnp.asarray(flow.frames[index, -1:]), t.size, axis=0)


def _adam(flow, index, here, start, steps: int) -> float:
    """The least error of Adam on the same residual, for as many transforms."""
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


def _trained_longer(network: Trained, flow: Flow, seconds: float) -> float:
    """Median error of a network trained for the time of training and refinement."""
    steps = network.steps + round(seconds / network.step_seconds)
    longer = trained(network.training, steps, len(flow.frames)).model
    tests = range(network.training, len(flow.frames))
    with jax.enable_x64(True):
        return statistics.median(network_error(longer, flow, i) for i in tests)


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


def _turbulence(size: int, degree: int) -> dict[str, Any]:
    """One window at once, and cut into slabs of some degree: error and seconds."""
    flow = decaying(size)
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name, slabs, steps in (
            ("whole", 1, 4),
            ("slabs", 5, 2),
            ("slabs, three steps", 5, 3),
        ):
            here = problem(flow, 0, 12 if slabs == 1 else degree, slabs)
            call = functools.partial(ops.refine, here, max_steps=steps, rtol=0.0)
            found, spent = timed(call, rounds=1)
            figures[f"error {name}"] = error(flow, 0, found.trajectory)
            figures[f"seconds {name}"] = spent
        checked = ops.estimate(flow.equation, found.trajectory)
        figures["outside over scale"] = float(checked.outside / checked.scale)
        figures["resolved"] = bool(checked.resolved)
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
    ]
    if config.fast:
        return cases
    turbulence = [
        Case(
            name=f"turbulence/{size}",
            parameters={"grid": size, "degree": degree},
            measure=lambda _, size=size, degree=degree: _turbulence(size, degree),
        )
        for size, degree in ((128, 10), (256, 12))
    ]
    return [*cases, *turbulence]
