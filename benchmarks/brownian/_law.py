"""The law of increments in float32, at steps from 1/4 to 2^-20 of the horizon.

A variance ratio is the mean of `Z_n^2`, which should be one; with `M` samples its
standard deviation is `sqrt(2 / M)`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config
from ._paths import TREES, normalised, tree_maker


KEYS, SIZE = 1000, 100  # samples: independent keys times components of one path
EXPONENTS = range(2, 21, 2)

# Name -> start of the horizon, start of the step in it (None: the step ends with the
# horizon), depth of the tree, smallest step. float32 times around 1000 are 2^-14 apart.
PLACES = {
    "s=0.7": (0.0, 0.7, 22, 20),
    "end": (0.0, None, 22, 20),
    "t0=1000": (1000.0, 0.7, 13, 12),
}


def _interval(start: float, where: float | None, exponent: int) -> tuple[float, float]:
    """The ends of a step, as float32 holds them."""
    length = 2.0**-exponent
    s = start + (1.0 - length if where is None else min(where, 1.0 - length))
    s = float(np.float32(s))
    return s, float(np.float32(s + length))


@functools.cache
def _mean_squares(tree: str, start: float, depth: int) -> Callable:
    """A compiled function `keys, s, u -> means of Z_0^2, Z_1^2, Z_2^2`."""
    build = tree_maker(tree, "W+H+K", (SIZE,), depth, start=start)

    def one(key, s, u):
        increment = build(key).evaluate(s, u, use_levy=True)
        return jnp.stack(
            [jnp.mean(jnp.square(z)) for z in normalised(increment, u - s)]
        )

    def all_keys(keys, s, u):
        return jnp.mean(jax.vmap(one, in_axes=(0, None, None))(keys, s, u), axis=0)

    return jax.jit(all_keys)


def _measure(place: str, run: int) -> dict:
    start, where, depth, finest = PLACES[place]
    rows = []
    for exponent in (e for e in EXPONENTS if e <= finest):
        s, u = _interval(start, where, exponent)
        key = jax.random.key(list(PLACES).index(place))
        key = jax.random.fold_in(key, 1000 * run + exponent)
        keys = jax.random.split(key, KEYS)
        ratios = {
            tree: np.asarray(
                _mean_squares(tree, start, depth)(keys, np.float32(s), np.float32(u)),
                np.float64,
            ).tolist()
            for tree in TREES
        }
        rows.append({"exponent": exponent, "s": s, "ratios": ratios})
    return _with_worst({"samples": KEYS * SIZE, "rows": rows})


def _with_worst(figures: dict) -> dict:
    for tree in TREES:
        values = [v for row in figures["rows"] for v in row["ratios"][tree]]
        figures[f"worst {tree}"] = farthest_from_one(values)
    return figures


def farthest_from_one(values: list[float]) -> float:
    """The variance ratio that is most wrong, by its distance from one."""
    finite = [v if np.isfinite(v) else np.inf for v in values]
    return max(finite, key=lambda v: abs(v - 1))


def merge(earlier: dict, new: dict) -> dict:
    """Pool two runs: ratios weighted by their numbers of samples."""
    m, n = earlier["samples"], new["samples"]
    rows = []
    for a, b in zip(earlier["rows"], new["rows"], strict=True):
        ratios = {
            tree: [
                (m * x + n * y) / (m + n)
                for x, y in zip(a["ratios"][tree], b["ratios"][tree], strict=True)
            ]
            for tree in TREES
        }
        rows.append({**b, "ratios": ratios})
    return _with_worst({"samples": m + n, "rows": rows})


def law_cases(config: Config) -> list[Case]:
    """One measurement a place on the time axis."""
    del config  # the headline figure needs all samples
    return [
        Case(
            name=f"law/{place}",
            parameters={
                "t0": start,
                "horizon": 1.0,
                "tol": 2.0**-depth,
                "keys": KEYS,
                "size": SIZE,
                "exponents": list(EXPONENTS),
                "dtype": "float32",
            },
            measure=functools.partial(_measure, place),
            merge=merge,
        )
        for place, (start, _, depth, _) in PLACES.items()
    ]
