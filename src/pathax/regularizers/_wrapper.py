"""The solver that accumulates penalties while another one solves."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..solvers._augmented import (
    AugmentedTerm,
    is_augmented,
    only_extra,
    without_extra,
)
from ..solvers._counting import CountingSolver, CountingState, Reported
from ..solvers._wrapped import AbstractTransparentSolver
from ._capture import AbstractSampler
from ._checks import check_estimate
from ._penalty import AbstractStepPenalty
from ._step import Step, Tolerances, real_dtype, scaled_error


class Statistics(eqx.Module):
    """Of the scaled errors of accepted steps."""

    steps: Array
    total: Array
    largest: Array
    clipped: Array


class LastStep(eqx.Module):
    """Where the last step went, and what it added."""

    t0: Array
    t1: Array
    values: list


class RegularizedState(eqx.Module):
    """State of a regularized solver. Diffrax takes it back when a step is rejected.

    Lists, as Equinox doesn't stand empty tuples in what Diffrax takes apart.
    """

    inner: CountingState
    totals: list
    captured: list
    statistics: Statistics
    last: LastStep
    extra: PyTree


class RegularizedSolver(AbstractTransparentSolver):
    """Makes the steps of the solver inside and adds up penalties of those accepted."""

    wrapped: CountingSolver
    penalties: tuple[AbstractStepPenalty, ...]
    samplers: tuple[AbstractSampler, ...]
    tolerances: Tolerances | None
    largest_error: float | None = eqx.field(static=True)
    made_of_error: tuple[str, ...] = eqx.field(static=True)
    error_order_of_controller: Any = None
    start: Any = None

    def init(self, terms, t0, t1, y0, args):
        inner = self.wrapped.init(terms, t0, t1, y0, args)
        if self.start is not None:
            inner = CountingState(self.start, inner.accepted, inner.adaptive)
        y = without_extra(y0)
        # Types that don't depend on how a value came about keep the loop's carry fixed.
        zero = jnp.zeros((), real_dtype(y))
        time = jnp.zeros((), jnp.result_type(t0))
        return RegularizedState(
            inner,
            [zero for _ in self.penalties],
            [s.init(t0, y, inner.inner) for s in self.samplers],
            Statistics(jnp.zeros((), jnp.int32), zero, zero, jnp.zeros((), bool)),
            LastStep(time + t0, time + t0, [zero for _ in self.penalties]),
            y0.extra if is_augmented(y0) else None,
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        state = solver_state
        out = self.wrapped.step(terms, t0, t1, y0, args, state.inner, made_jump)
        y1, reported, dense_info, inner, result = out
        error = reported.error if isinstance(reported, Reported) else reported
        step = self._seen(terms, t0, t1, y0, y1, args, error, dense_info)
        check_estimate(self.made_of_error, step.error, self.solver)
        values, q = self._penalties(step)
        statistics = self._statistics(q, state.statistics)
        totals = [
            p.accumulate(total, value)
            for p, total, value in zip(
                self.penalties, state.totals, values, strict=True
            )
        ]
        captured = [
            sampler.step(held, step, state.inner.inner, statistics.steps)
            for sampler, held in zip(self.samplers, state.captured, strict=True)
        ]
        time = state.last.t0.dtype
        last = LastStep(jnp.asarray(t0, time), jnp.asarray(t1, time), values)
        extra = only_extra(y1) if is_augmented(y1) else None
        new = RegularizedState(inner, totals, captured, statistics, last, extra)
        return y1, reported, dense_info, new, result

    def _seen(self, terms, t0, t1, y0, y1, args, error, dense_info) -> Step:
        """The step without the passengers that other penalties gave the state."""
        y0, y1, error, dense_info = map(without_extra, (y0, y1, error, dense_info))
        order = self.error_order_of_controller
        if order is None:
            order = self.wrapped.error_order(terms)
        return Step(
            t0,
            t1,
            y0,
            y1,
            error,
            None,
            order,
            dense_info,
            bare_terms(terms),
            args,
            self.wrapped,
        )

    def _penalties(self, step: Step) -> tuple[list, Array | None]:
        """What the penalties add, and the scaled error."""
        dtype, q = real_dtype(step.y0), None
        if step.error is not None and self.tolerances is not None:
            q = scaled_error(step.y0, step.y1, step.error, self.tolerances)
            q = q.astype(dtype)
            step = step._replace(scaled_error=self._clip(q))
        return [p.of_step(step).astype(dtype) for p in self.penalties], q

    def _clip(self, q: Array) -> Array:
        if self.largest_error is None:
            return q
        return jnp.minimum(q, jnp.asarray(self.largest_error, q.dtype))

    def _statistics(self, q: Array | None, old: Statistics) -> Statistics:
        steps = old.steps + 1
        if q is None:
            return Statistics(steps, old.total, old.largest, old.clipped)
        q = jax.lax.stop_gradient(q)
        kept = self._clip(q)
        largest = jnp.maximum(old.largest, kept)
        return Statistics(steps, old.total + kept, largest, old.clipped | (q > kept))


def bare_terms(terms: PyTree) -> PyTree:
    """The terms without what moves the passengers of the state."""
    return jax.tree.map(_bare, terms, is_leaf=lambda x: isinstance(x, dfx.AbstractTerm))


def _bare(term: Any) -> Any:
    if isinstance(term, dfx.MultiTerm):
        return dfx.MultiTerm(*map(_bare, term.terms))
    if isinstance(term, AugmentedTerm):
        return term.term
    if hasattr(term, "direction") and hasattr(term, "term"):  # put there by Diffrax
        return eqx.tree_at(lambda t: t.term, term, _bare(term.term))
    return term
