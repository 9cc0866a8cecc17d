"""A small spatiotemporal operator, trained for a while on forced flow."""

import functools
import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from ._flows import Flow, error, forced, frame_times


BATCH = 4


class Trained(NamedTuple):
    """A network and what it took."""

    model: px.operators.STFNO
    training: int  # flows
    steps: int
    seconds: float
    step_seconds: float


def loss(model, frames, wanted, times):
    """Relative error of all frames, the mean over a batch."""
    found = jax.vmap(lambda x: model(x, times))(frames)
    norms = lambda x: jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3)))
    return jnp.mean(norms(found - wanted) / norms(wanted))


class Trainer:
    """Adam with a warm-up and a cosine, as the published runs have it."""

    def __init__(self, flow: Flow, training: int, steps: int):
        self.flow, self.training, self.steps = flow, training, steps
        self.times = jnp.asarray(frame_times(flow), jnp.float32)
        model = px.operators.STFNO(
            (8, 8, 4),
            width=8,
            depth=4,
            frames=flow.frames.shape[1],
            horizon=flow.horizon,
            key=jax.random.key(1),
        )
        rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
        self.tx = optax.adam(rate)
        self.params, self.static = eqx.partition(model, eqx.is_array)
        self.state = self.tx.init(self.params)
        self.rng = np.random.default_rng(0)

        @jax.jit
        def step(params, state, frames, wanted):
            of = lambda p: loss(eqx.combine(p, self.static), frames, wanted, self.times)
            grads = jax.grad(of)(params)
            updates, state = self.tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = step

    def run(self, steps: int) -> None:
        """So many steps on random batches of the flows for training."""
        for _ in range(steps):
            chosen = self.rng.integers(self.training, size=BATCH)
            batch = (self.flow.frames[chosen], self.flow.after[chosen])
            data = (jnp.asarray(x, jnp.float32) for x in batch)
            self.params, self.state = self._step(self.params, self.state, *data)
        jax.block_until_ready(self.params)

    @property
    def model(self) -> px.operators.STFNO:
        """As it is now."""
        return eqx.combine(self.params, self.static)


@functools.cache
def trained(training: int, steps: int, flows: int) -> Trained:
    """A network after so many steps; compilation is not counted."""
    trainer = Trainer(forced(flows), training, steps)
    trainer.run(1)
    begin = time.perf_counter()
    trainer.run(steps - 1)
    seconds = time.perf_counter() - begin
    return Trained(trainer.model, training, steps, seconds, seconds / (steps - 1))


def network_start(model: px.operators.STFNO, flow: Flow, index: int):
    """The network's answer as a function of time, its fields in double precision."""
    found = model.trajectory(jnp.asarray(flow.frames[index], jnp.float32))
    return lambda t: jnp.asarray(found(jnp.asarray(t, jnp.float32)), float)


def network_error(model: px.operators.STFNO, flow: Flow, index: int) -> float:
    """Of the network alone."""
    return error(flow, index, network_start(model, flow, index))
