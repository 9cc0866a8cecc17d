"""How many gradients it takes until the law of many chains is that of the target.

All chains of both samplers start at the same points, drawn from the prior. After each
draw, of the warm-up too, the law of the chains is that of where they are; its energy
distance to a long reference is estimated without bias, from pairs of different points.
The chains have arrived at the first draw at which that is at most what as many
independent exact draws miss by, `E|X - X'| / chains`: the mean of their energy distance
if pairs of a point with itself are not left out. All gradients count. NUTS has a
warm-up of 20 steps, as published, and where it doesn't arrive, one of 100 instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config
from ._reference import reference
from ._samplers import Draws, langevin, nuts
from ._targets import SETS


WARMUPS = (20, 100)
CHAINS, DRAWS, EXACT = 256, 24, 4096


@jax.jit
def _total(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of all distances."""
    one = lambda a: jnp.sum(jnp.sqrt(jnp.sum((a - y) ** 2, axis=1)))
    return jnp.sum(jax.lax.map(one, x, batch_size=64))


class Meter:
    """Energy distances to one reference, each coordinate in units of its spread.

    They are those of `pathax.simulation.energy_distance`; what belongs to the
    reference alone is computed once.
    """

    def __init__(self, exact: np.ndarray):
        self.scale = exact.std(0)
        self.exact = jnp.asarray(exact / self.scale, jnp.float32)
        count = len(exact)
        own = _total(self.exact, self.exact)
        self.spread = float(own) / (count * (count - 1))

    def __call__(self, x: np.ndarray) -> float:
        z, n = jnp.asarray(x / self.scale, jnp.float32), len(x)
        between = float(_total(z, self.exact)) / (n * len(self.exact))
        return 2 * between - float(_total(z, z)) / (n * (n - 1)) - self.spread


def _curve(draws: Draws, meter: Meter) -> list[list[float]]:
    """Gradients a chain and distance, at each draw."""
    return [[float(spent), meter(draws.x[:, i])] for i, spent in enumerate(draws.spent)]


def _arrival(curve: list[list[float]], level: float) -> float | None:
    return next((spent for spent, far in curve if far <= level), None)


def _measure(name: str) -> dict[str, Any]:
    target = SETS[name]()
    keys = jax.random.split(jax.random.key(1), 3)
    initial = jax.random.normal(keys[0], (CHAINS, target.dimension))
    exact = reference(name).x
    exact = exact[np.random.default_rng(0).permutation(len(exact))][:EXACT]
    meter = Meter(exact)
    level = meter.spread / CHAINS
    ours = _curve(langevin(target, keys[1], initial, DRAWS), meter)
    theirs, first, warmup = [], None, 0
    for warmup in WARMUPS:
        theirs = _curve(nuts(target, keys[2], initial, DRAWS, warmup), meter)
        first = _arrival(theirs, level)
        if first is not None:
            break
    return {
        "dimension": target.dimension,
        "level": level,
        "start": meter(np.asarray(initial)),
        "pathax": _arrival(ours, level),
        "NUTS": first,
        "warm-up of NUTS": warmup,
        "curve pathax": ours,
        "curve NUTS": theirs,
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
