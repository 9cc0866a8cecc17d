"""Samples by Langevin dynamics and by NUTS: gradients, effective samples, distances."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config, SkippedError
from ._targets import TARGETS, Target


WARMUP = 300  # of NUTS, its window adaptation's default is 1000


def _nuts(target: Target, key, initial, samples: int) -> tuple[np.ndarray, int, int]:
    """Samples of each chain, and gradients in the warm-up and after."""
    try:
        import blackjax
    except ImportError:
        raise SkippedError("needs `pip install blackjax`") from None
    density = lambda x: -target.potential(x)
    adaptation = blackjax.window_adaptation(blackjax.nuts, density)

    def chain(key, x):
        first, second = jax.random.split(key)
        adapted, info = adaptation.run(first, x, num_steps=WARMUP)
        kernel = blackjax.nuts(density, **adapted.parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        keys = jax.random.split(second, samples)
        _, (xs, counts) = jax.lax.scan(step, adapted.state, keys)
        return xs, jnp.sum(info.info.num_integration_steps), jnp.sum(counts)

    keys = jax.random.split(key, len(initial))
    xs, before, after = jax.jit(jax.vmap(chain))(keys, initial)
    return np.asarray(xs), int(before.sum()), int(after.sum())


def _ours(target: Target, key, initial, samples: int) -> tuple[np.ndarray, int, int]:
    found = px.simulation.langevin(
        target.potential, key, initial, samples=samples, **target.options
    )
    after = int(found.gradients)
    return np.asarray(found.samples), int(found.warmup_gradients), after


def _figures(name: str, xs, before: int, after: int) -> dict[str, float]:
    effective = px.simulation.diagnose(xs)
    ess = float(np.min(effective.ess_bulk))
    return {
        f"gradients {name}": before + after,
        f"warm-up {name}": before,
        f"ess {name}": ess,
        f"evals an effective sample {name}": after / ess,
        f"r_hat {name}": float(np.max(effective.r_hat)),
    }


def _distance(xs: np.ndarray, exact: np.ndarray) -> float:
    """Energy distance in units of the spread, of at most 4096 samples."""
    flat = xs.reshape(-1, xs.shape[-1])
    flat = flat[:: max(1, len(flat) // 4096)]
    scale = exact.std(0)
    pair = (jnp.asarray(x / scale) for x in (flat, exact[:8192]))
    return float(px.simulation.energy_distance(*pair))


def _measure(name: str, chains: int, samples: int) -> dict[str, Any]:
    target = TARGETS[name]()
    keys = jax.random.split(jax.random.key(0), 4)
    initial = jax.random.normal(keys[0], (chains, target.dimension))
    sides = {
        "pathax": _ours(target, keys[1], initial, samples),
        "NUTS": _nuts(target, keys[2], initial, samples),
    }
    exact = target.exact
    if exact is None:
        exact = _nuts(target, keys[3], initial, 8 * samples)[0]
        exact = exact.reshape(-1, target.dimension)
    out: dict[str, Any] = {}
    for side, (xs, before, after) in sides.items():
        out |= _figures(side, xs, before, after)
        out[f"distance {side}"] = _distance(xs, exact)
        if target.moments is not None:
            mean, deviation = target.moments
            flat = xs.reshape(-1, target.dimension)
            out[f"mean error {side}"] = float(
                np.max(np.abs(flat.mean(0) - mean) / deviation)
            )
            out[f"deviation error {side}"] = float(
                np.max(np.abs(flat.std(0) / deviation - 1))
            )
    evals = "evals an effective sample"
    out["evals over NUTS"] = out[f"{evals} pathax"] / out[f"{evals} NUTS"]
    return out


def mcmc_cases(config: Config) -> list[Case]:
    """The funnel and the credit data in a fast run, all in a full one."""
    names = ("funnel", "german") if config.fast else tuple(TARGETS)
    chains, samples = (16, 128) if config.fast else (64, 256)
    return [
        Case(
            name=f"mcmc/{name}",
            parameters={"chains": chains, "samples": samples, "warmup_nuts": WARMUP},
            measure=lambda _, name=name: _measure(name, chains, samples),
            packages=("blackjax",),
        )
        for name in names
    ]
