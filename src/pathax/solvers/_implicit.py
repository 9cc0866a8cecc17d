"""Counting the iterations of implicit solvers.

How many evaluations an implicit step takes is known only to its root finder, whose
number of iterations Diffrax drops. Here the state travels with a passenger, which the
root finder sets to the number of iterations it made and which the solver, adding up
stages, hands out beside them. The state itself goes through the same operations as
without.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from ._augmented import (
    Augmented,
    AugmentedTerm,
    is_single,
    only_extra,
    without_extra,
    zeros_like,
)
from ._evaluations import Evaluations, first_stage, noise_of_terms


class _Iterations(eqx.Module):
    """State of a root finder, and how many steps it has made."""

    inner: PyTree
    count: Array


class _CountingRootFinder(optx.AbstractRootFinder):
    """Finds the root for the state; the passenger becomes the number of steps."""

    inner: optx.AbstractRootFinder
    zero: Array

    @property
    def rtol(self) -> Any:
        return self.inner.rtol

    @property
    def atol(self) -> Any:
        return self.inner.atol

    @property
    def norm(self) -> Any:
        return self.inner.norm

    def _alone(self, fn: Any) -> Any:
        def alone(y, args):
            out, aux = fn(Augmented(y, self.zero), args)
            return out.y, aux

        return alone

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        if "init_state" in options:
            options = {**options, "init_state": options["init_state"].inner}
        inner = self.inner.init(
            self._alone(fn), y.y, args, options, f_struct.y, aux_struct, tags
        )
        return _Iterations(inner, zeros_like(self.zero))

    def step(self, fn, y, args, options, state, tags):
        new, inner, aux = self.inner.step(
            self._alone(fn), y.y, args, options, state.inner, tags
        )
        count = state.count + 1
        return Augmented(new, count), _Iterations(inner, count), aux

    def terminate(self, fn, y, args, options, state, tags):
        return self.inner.terminate(
            self._alone(fn), y.y, args, options, state.inner, tags
        )

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        value, aux, stats = self.inner.postprocess(
            self._alone(fn), y.y, aux, args, options, state.inner, tags, result
        )
        return Augmented(value, y.extra), aux, stats


def _zero(y0: PyTree) -> Array:
    dtype = jnp.result_type(*jax.tree.leaves(y0))
    return jnp.zeros((), jnp.finfo(dtype).dtype)


def _with_passenger(terms: PyTree) -> PyTree:
    return jax.tree.map(AugmentedTerm, terms, is_leaf=is_single)


def init(solver, terms, t0, t1, y0, args) -> PyTree:
    """Initial state of the solver, for states with a passenger."""
    y0 = Augmented(y0, _zero(y0))
    return solver.init(_with_passenger(terms), t0, t1, y0, args)


def step(solver, terms, t0, t1, y0, args, solver_state, made_jump) -> tuple:
    """As the solver's own `step`, and the `Evaluations` that it took."""
    zero = _zero(y0)
    finder: Any = _CountingRootFinder
    counting = eqx.tree_at(
        lambda s: s.root_finder, solver, finder(solver.root_finder, zero)
    )
    y1, y_error, dense_info, new_state, result = counting.step(
        _with_passenger(terms),
        t0,
        t1,
        Augmented(y0, zero),
        args,
        solver_state,
        made_jump,
    )
    if isinstance(solver, dfx.AbstractRungeKutta):
        count = _runge_kutta(solver, terms, dense_info, solver_state, made_jump)
    else:  # implicit Euler: one explicit evaluation to start from, one Jacobian
        count = Evaluations(1 + _whole(y1.extra) + 1, jacobian=1)
    noise = sum(noise_of_terms(terms))
    y1, y_error, dense_info = map(without_extra, (y1, y_error, dense_info))
    return y1, y_error, dense_info, new_state, result, count._replace(noise=noise)


def _whole(x: Array) -> Array:
    return jax.lax.stop_gradient(x).astype(jnp.int32)


def _runge_kutta(solver, terms, dense_info, solver_state, made_jump) -> Evaluations:
    several = isinstance(solver.tableau, dfx.MultiButcherTableau)
    tableaus = solver.tableau.tableaus if several else (solver.tableau,)
    which = [tableau.implicit for tableau in tableaus].index(True)
    k = dense_info["k"][which] if several else dense_info["k"]
    iterations = _whole(only_extra(k))
    stages = iterations.shape[0]
    before = 0
    if solver_state is not None:  # the first stage may be the last one's last
        first = first_stage(solver_state, made_jump)
        iterations = iterations.at[0].multiply(first)
        stages = stages - 1 + first
    else:
        before = 1  # the field at the start, to guess from
    how = type(solver.calculate_jacobian)
    every = solver.calculate_jacobian == how.every_stage
    jacobians = 1 + (stages if every else 1)
    explicit = (len(tableaus) - 1) * stages
    # Each Jacobian is taken at a point where the field is evaluated, too.
    total = jnp.sum(iterations, dtype=jnp.int32)
    drift = total + before + jacobians + explicit
    return Evaluations(drift, jacobian=jacobians)
