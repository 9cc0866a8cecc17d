"""Picks steps of a solve, to be made again afterwards."""

import abc
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..solvers._augmented import without_extra
from ._step import Step


class Captured(eqx.Module):
    """Steps that were picked, along a leading axis: all constants for derivatives.

    `u` is the solution at the time that was drawn, where that is wanted; `state` that
    of the solver, where it can't be made anew.
    """

    t0: Array
    t1: Array
    y0: PyTree
    time: Array
    u: PyTree
    state: PyTree
    found: Array


class AbstractSampler(eqx.Module):
    """Which steps to pick; one slot a draw."""

    key: eqx.AbstractVar[Array]
    draws: eqx.AbstractVar[int]
    keep_state: eqx.AbstractVar[bool]
    interpolate: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def _pick(self, step: Step, number: Array) -> Array:
        """For each slot, whether this step is the one, so far."""

    @abc.abstractmethod
    def _time(self, step: Step) -> Array:
        """For each slot, the time drawn."""

    def init(self, t0: Any, y: PyTree, state: PyTree) -> Captured:
        """Empty slots."""
        time = jnp.zeros((self.draws,), jnp.result_type(t0))
        slots = lambda tree: jax.tree.map(self._slots, tree)
        return Captured(
            time + t0,
            time + t0 + 1,  # of a length that no derivative minds
            slots(y),
            time + t0,
            slots(y) if self.interpolate else None,
            slots(without_extra(state)) if self.keep_state else None,
            jnp.zeros((self.draws,), bool),
        )

    def _slots(self, x: Any) -> Array:
        x = jax.lax.stop_gradient(jnp.asarray(x))
        return jnp.broadcast_to(x, (self.draws, *x.shape))

    def step(
        self, held: Captured, step: Step, state: PyTree, number: Array
    ) -> Captured:
        """The slots after this step, the accepted one of that number."""
        picked = self._pick(step, number)
        u = None
        if self.interpolate:
            finite = jax.lax.stop_gradient(step.dense_info)
            path = step.solver.interpolation_cls(t0=step.t0, t1=step.t1, **finite)
            u = jax.vmap(path.evaluate)(self._time(step))
        time = held.t0.dtype

        def put(old: Array, new: Any) -> Array:
            new = jax.lax.stop_gradient(jnp.asarray(new, old.dtype))
            where = picked.reshape(picked.shape + (1,) * (old.ndim - 1))
            return jnp.where(where, jnp.broadcast_to(new, old.shape), old)

        whole = lambda new: jax.tree.map(lambda x: jnp.asarray(x)[None], new)
        return Captured(
            put(held.t0, jnp.asarray(step.t0, time)),
            put(held.t1, jnp.asarray(step.t1, time)),
            jax.tree.map(put, held.y0, whole(step.y0)),
            put(held.time, self._time(step)),
            jax.tree.map(put, held.u, u) if self.interpolate else None,
            jax.tree.map(put, held.state, whole(without_extra(state)))
            if self.keep_state
            else None,
            held.found | picked,
        )


class TimeSampler(AbstractSampler):
    """The steps that contain given times."""

    key: Array
    times: Array
    draws: int = eqx.field(static=True)
    keep_state: bool = eqx.field(static=True)
    interpolate: bool = eqx.field(static=True)

    def _pick(self, step: Step, number: Array) -> Array:
        del number
        return (step.t0 <= self.times) & (self.times < step.t1)

    def _time(self, step: Step) -> Array:
        return self.times


class StepSampler(AbstractSampler):
    """Steps drawn uniformly, without knowing how many there will be.

    The m-th step takes a slot with probability 1/m; whatever was there, each of the
    first m steps is then there with the same probability.
    """

    key: Array
    draws: int = eqx.field(static=True)
    keep_state: bool = eqx.field(static=True)
    interpolate: bool = eqx.field(static=True)

    def _pick(self, step: Step, number: Array) -> Array:
        del step
        key = jax.random.fold_in(self.key, number)
        uniform = jax.random.uniform(key, (self.draws,), jnp.float32)
        return uniform * number.astype(jnp.float32) < 1

    def _time(self, step: Step) -> Array:
        return jnp.broadcast_to(step.t0, (self.draws,))


# The state of these is part of the method: the step can't be made without it.
_WITH_MEMORY = (dfx.ReversibleHeun, dfx.LeapfrogMidpoint)
_LANGEVIN = (dfx.ALIGN, dfx.ShOULD, dfx.QUICSORT)


def has_memory(solver: Any) -> bool:
    """Whether a step needs more than time and state to be made again."""
    if type(solver) is dfx.HalfSolver:
        return has_memory(solver.solver)
    return isinstance(solver, _WITH_MEMORY + _LANGEVIN)
