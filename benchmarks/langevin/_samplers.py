"""Both samplers: draws of all chains, and gradients up to each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import SkippedError
from ._targets import Target


class Draws(NamedTuple):
    """Where chains are at each draw, those of the warm-up first.

    `spent` is the mean number of gradients a chain up to each draw, all that are
    evaluated: in the warm-up, in trials of steps, in steps that are rejected.
    """

    x: np.ndarray  # (chains, warmup + samples, d)
    spent: np.ndarray  # (warmup + samples,)
    warmup: int
    step: float

    @property
    def kept(self) -> np.ndarray:
        """The draws after the warm-up."""
        return self.x[:, self.warmup :]

    @property
    def gradients(self) -> tuple[float, float]:
        """A chain's, in the warm-up and after it."""
        before = self.spent[self.warmup - 1] if self.warmup else 0.0
        return float(before), float(self.spent[-1] - before)


def nuts(
    target: Target, key, initial, samples: int, warmup: int, aim: float = 0.8
) -> Draws:
    """BlackJAX's NUTS, each chain with its own window adaptation."""
    try:
        import blackjax
    except ImportError:
        raise SkippedError("needs `pip install blackjax`") from None
    density = lambda x: -target.potential(x)
    adaptation = blackjax.window_adaptation(
        blackjax.nuts, density, target_acceptance_rate=aim
    )

    def chain(key, x):
        first, second = jax.random.split(key)
        adapted, info = adaptation.run(first, x, num_steps=warmup)
        kernel = blackjax.nuts(density, **adapted.parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        keys = jax.random.split(second, samples)
        _, (xs, counts) = jax.lax.scan(step, adapted.state, keys)
        xs = jnp.concatenate([info.state.position, xs])
        counts = jnp.concatenate([info.info.num_integration_steps, counts])
        return xs, counts, adapted.parameters["step_size"]

    keys = jax.random.split(key, len(initial))
    xs, counts, steps = jax.jit(jax.vmap(chain))(keys, initial)
    # One gradient at the start; a leap then evaluates one.
    spent = 1 + np.cumsum(np.asarray(counts, np.float64).mean(0))
    return Draws(np.asarray(xs), spent, warmup, float(steps.mean()))


def langevin(target: Target, key, initial, samples: int, **options: Any) -> Draws:
    """Ours."""
    found = px.simulation.langevin(
        target.potential, key, initial, samples=samples, **options
    )
    xs = np.concatenate([found.warmup_samples, found.samples], axis=1)
    spent = found.gradients_by_sample / len(xs)
    warmup = found.warmup_samples.shape[1]
    # The trials of a step come after the last round.
    spent[warmup - 1] = found.warmup_gradients / len(xs)
    return Draws(xs, spent, warmup, found.step)


def distance(x: np.ndarray, exact: np.ndarray) -> float:
    """Energy distance, each coordinate in units of its spread."""
    scale = exact.std(0)
    pair = (jnp.asarray(part / scale, jnp.float32) for part in (x, exact))
    return float(px.simulation.energy_distance(*pair))


def thinned(x: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, evenly from all draws of all chains."""
    flat = x.reshape(-1, x.shape[-1])
    return flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)]
