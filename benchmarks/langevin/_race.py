"""How many gradients it takes until the law of many chains is that of the target.

All chains of both samplers start at the same points, drawn from the prior. After each
draw, of the warm-up too, the law of the chains is that of where they are; its energy
distance to a long reference is estimated without bias, from pairs of different points.
The chains have arrived at the first draw at which that is at most what as many
independent exact draws miss by, `E|X - X'| / chains`: the mean of their energy distance
if pairs of a point with itself are not left out. All gradients count. NUTS is run with
each of several lengths of its warm-up, and the one that arrives first counts.
"""

from typing import Any

import jax
import numpy as np

from .._case import Case, Config
from ._mcmc import reference
from ._samplers import Draws, distance, langevin, nuts
from ._targets import SETS


WARMUPS = (20, 100)
CHAINS, DRAWS, EXACT = 256, 24, 4096


def _level(exact: np.ndarray, chains: int) -> float:
    """`E|X - X'| / chains`, in units of the spread."""
    x = exact / exact.std(0)
    half = len(x) // 2
    return float(
        np.mean(np.linalg.norm(x[:half] - x[half : 2 * half], axis=1)) / chains
    )


def _curve(draws: Draws, exact: np.ndarray) -> list[list[float]]:
    """Gradients a chain and distance, at each draw."""
    return [
        [float(spent), distance(draws.x[:, i], exact)]
        for i, spent in enumerate(draws.spent)
    ]


def _arrival(curve: list[list[float]], level: float) -> float | None:
    return next((spent for spent, far in curve if far <= level), None)


def _measure(name: str) -> dict[str, Any]:
    target = SETS[name]()
    keys = jax.random.split(jax.random.key(1), 3)
    initial = jax.random.normal(keys[0], (CHAINS, target.dimension))
    exact = reference(name)
    exact = exact[np.random.default_rng(0).permutation(len(exact))][:EXACT]
    level = _level(exact, CHAINS)
    ours = _curve(langevin(target, keys[1], initial, DRAWS), exact)
    curves = {
        warmup: _curve(nuts(target, keys[2], initial, DRAWS, warmup), exact)
        for warmup in WARMUPS
    }
    arrivals = {warmup: _arrival(c, level) for warmup, c in curves.items()}
    found = [(n, warmup) for warmup, n in arrivals.items() if n is not None]
    first, best = min(found, default=(None, WARMUPS[-1]))
    return {
        "dimension": target.dimension,
        "level": level,
        "start": distance(np.asarray(initial), exact),
        "pathax": _arrival(ours, level),
        "NUTS": first,
        "warm-up of NUTS": best,
        "curve pathax": ours,
        "curve NUTS": curves[best],
    }


def race_cases(config: Config) -> list[Case]:
    """All sets, in a full run."""
    if config.fast:
        return []
    parameters = {"chains": CHAINS, "draws": DRAWS, "warmups_nuts": list(WARMUPS)}
    return [
        Case(
            name=f"race/{name}",
            parameters=parameters,
            measure=lambda _, name=name: _measure(name),
            packages=("blackjax",),
        )
        for name in SETS
    ]
