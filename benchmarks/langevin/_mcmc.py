"""Samples by Langevin dynamics and by NUTS: gradients, effective samples, distances."""

from typing import Any

import jax
import numpy as np

import pathax as px

from .._case import Case, Config
from ._reference import POINTS, reference
from ._samplers import Draws, distance, langevin, nuts, thinned
from ._targets import HIERARCHIES, TARGETS, Target


WARMUP = 300  # of NUTS; that of ours is a default

# No one mass fits a hierarchy. The funnel's scales are of the form that conditional
# ones can take; those of the schools saturate, which leaves something to the steps.
CONDITIONAL: dict[str, Any] = {"mass": "conditional", "tolerance": 0.1}
# Without them the neck of a funnel asks for very short steps now and then.
ONE_MASS: dict[str, Any] = {
    "mass": "identity",
    "tolerance": 0.003,
    "friction": 1.0,
    "spacing": 8.0,
    "max_steps": 2**15,
    "block": 8,
    "warmup": 16,
}
# NUTS is run on hierarchies with both, and the better one counts.
AIMS = (0.8, 0.95)
ADAPTIVE = "pathax, adaptive"
CONSTANT_MASS = "pathax, one mass"


def _figures(name: str, draws: Draws) -> dict[str, float]:
    effective = px.simulation.diagnose(draws.kept)
    ess = float(np.min(effective.ess_bulk))
    before, after = draws.gradients
    return {
        f"gradients {name}": before + after,
        f"warm-up {name}": before,
        f"ess {name}": ess / len(draws.x),
        f"evals an effective sample {name}": after * len(draws.x) / ess,
        f"r_hat {name}": float(np.max(effective.r_hat)),
        f"step {name}": draws.step,
    }


def _moments(name: str, target: Target, draws: Draws) -> dict[str, float]:
    if target.moments is None:
        return {}
    mean, deviation = target.moments
    flat = draws.kept.reshape(-1, target.dimension).astype(np.float64)
    return {
        f"mean error {name}": float(np.max(np.abs(flat.mean(0) - mean) / deviation)),
        f"deviation error {name}": float(np.max(np.abs(flat.std(0) / deviation - 1))),
    }


def _at_equal_cost(draws: Draws, budget: float, exact: np.ndarray) -> float:
    """Distance of what was drawn after the warm-up with so many gradients a chain."""
    before, _ = draws.gradients
    spent = draws.spent[draws.warmup :] - before
    count = max(int(np.sum(spent <= budget * (1 + 1e-6))), 1)
    return distance(thinned(draws.kept[:, :count], POINTS), exact)


def _hierarchy(
    target: Target, keys, initial, samples: int, one_mass: bool
) -> dict[str, Draws]:
    runs = [nuts(target, keys[2], initial, samples, WARMUP, aim=x) for x in AIMS]
    cost = [_figures("", run)["evals an effective sample "] for run in runs]
    ours = langevin(target, keys[1], initial, samples, **CONDITIONAL)
    sides = {"pathax": ours}
    if one_mass:
        # Samples that are further apart, and cost more.
        without = langevin(target, keys[1], initial, samples // 4, **ONE_MASS)
        sides[CONSTANT_MASS] = without
    return {**sides, "NUTS": runs[int(np.argmin(cost))]}


def _sides(name: str, target: Target, keys, initial, samples: int) -> dict[str, Draws]:
    """Ours with the same defaults for all posteriors; on one, beside adaptive steps."""
    sides = {"pathax": langevin(target, keys[1], initial, samples)}
    if name == "german":
        sides[ADAPTIVE] = langevin(target, keys[1], initial, samples, tolerance=0.1)
    return {**sides, "NUTS": nuts(target, keys[2], initial, samples, WARMUP)}


def _measure(name: str, chains: int, samples: int, fast: bool) -> dict[str, Any]:
    target = TARGETS[name]()
    keys = jax.random.split(jax.random.key(0), 3)
    initial = jax.random.normal(keys[0], (chains, target.dimension))
    run = target, keys, initial, samples
    if name in HIERARCHIES:
        sides = _hierarchy(*run, one_mass=name == "funnel" and not fast)
    else:
        sides = _sides(name, *run)
    exact = reference(name)
    budget = min(draws.gradients[1] for draws in sides.values())
    out: dict[str, Any] = {
        "dimension": target.dimension,
        "equal cost": budget,
        "reference": exact.effective,
    }
    for side, draws in sides.items():
        out |= _figures(side, draws) | _moments(side, target, draws)
        out[f"distance {side}"] = _at_equal_cost(draws, budget, exact.x)
    evals = "evals an effective sample"
    out["evals over NUTS"] = out[f"{evals} pathax"] / out[f"{evals} NUTS"]
    return out


def mcmc_cases(config: Config) -> list[Case]:
    """A hierarchy and the credit data in a fast run, all in a full one."""
    names = ("funnel", "german") if config.fast else tuple(TARGETS)
    samples = 96 if config.fast else 512
    # Visits to the tail of the schools are rare and long: fewer chains would leave the
    # number of effective samples to chance.
    chains = {name: 128 if name == "schools" else 32 for name in names}
    return [
        Case(
            name=f"mcmc/{name}",
            parameters={
                "chains": chains[name],
                "samples": samples,
                "warmup_nuts": WARMUP,
            },
            measure=lambda _, name=name: _measure(
                name, chains[name], samples, config.fast
            ),
            packages=("blackjax",),
            revision=3 if name in HIERARCHIES else 2,
        )
        for name in names
    ]
