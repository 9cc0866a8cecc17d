"""A solve with penalties."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..solvers._augmented import without_extra
from ..solvers._counting import EvaluationCounts, counting, counts_of_states
from ._checks import check_adjoint, check_needs, made_of_error, tolerances_of
from ._local import AbstractLocalPenalty, Replay
from ._passengers import Passengers
from ._penalty import AbstractIntegralPenalty, AbstractPenalty, AbstractStepPenalty
from ._step import Tolerances
from ._wrapper import RegularizedSolver, RegularizedState


class Record(NamedTuple):
    """What a solve with penalties has to tell.

    **Attributes:**

    - `penalties`: their values, by name; what a loss adds up.
    - `accepted_steps`, `attempted_steps`: numbers of steps.
    - `evaluations`: [`pathax.solvers.EvaluationCounts`][], exact.
    - `mean_error`, `largest_error`: of the scaled errors of accepted steps; `None`
      where the solver estimates none or there are no tolerances.
    - `time`: how long was integrated; less than was asked for if an event ended it.
    - `complete`: whether the solve came to its end, or to an event.
    - `clipped`: whether a scaled error was cut down to the largest that is taken.
    - `found`: by name, whether a sampled penalty has found a step. It has not if an
      event came before all of the times that were drawn.
    """

    penalties: dict[str, Array]
    accepted_steps: Array
    attempted_steps: Array
    evaluations: EvaluationCounts
    mean_error: Array | None
    largest_error: Array | None
    time: Array
    complete: Array
    clipped: Array
    found: dict[str, Array]


def solve(
    terms: PyTree,
    solver: dfx.AbstractSolver,
    t0: Any,
    t1: Any,
    dt0: Any,
    y0: PyTree,
    args: PyTree = None,
    *,
    penalties: Mapping[str, AbstractPenalty],
    key: Any = None,
    saveat: dfx.SaveAt | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    tolerances: Tolerances | None = None,
    largest_error: float | None = None,
    solver_state: Any = None,
    controller_state: Any = None,
    event: dfx.Event | None = None,
    **options: Any,
) -> tuple[dfx.Solution, Record]:
    """Solve a differential equation, and return penalties of how hard it was.

    The solution is that of `diffrax.diffeqsolve` with the same arguments: each step
    goes through the same operations (which the compiler may round otherwise by an ulp,
    where it puts them together in another way). Penalties are weighted and added up in
    the loss, so that weights may change without a new compilation:

    `loss = task(sol) + weight * record.penalties["error"]`

    Whole-solve penalties ([`pathax.regularizers.Error`][] and so on) are numbers that
    the solver accumulates; they depend on its stages, hence need an adjoint that
    differentiates the solver itself. Under `BacksolveAdjoint` their derivative would be
    zero without a word, so this raises. Sampled penalties
    ([`pathax.regularizers.Local`][]) and integrals along the path
    ([`pathax.regularizers.KineticEnergy`][]) go with every adjoint.

    **Arguments:**

    - `terms`, `solver`, `t0`, `t1`, `dt0`, `y0`, `args`, `saveat`,
      `stepsize_controller`, `adjoint`, `event`, and further `options`: as for
      `diffrax.diffeqsolve`. Give `dt0`: without it Diffrax starts with 0.01.
    - `penalties`: by name.
    - `key`: random key, for penalties that draw something.
    - `tolerances`: [`pathax.regularizers.Tolerances`][], for a controller that has none
      of its own.
    - `largest_error`: scaled errors are cut down to this; by default to 10 where the
      controller may have to accept steps of any error (`force_dtmin`).
    - `solver_state`, `controller_state`: of an earlier solution, to go on from.

    **Returns:** the `diffrax.Solution` and a [`pathax.regularizers.Record`][].

    **Raises:** `ValueError` where a derivative would be wrong, or something is missing
    that a penalty needs.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> def loss(rate, weight):
    ...     sol, record = px.regularizers.solve(
    ...         dfx.ODETerm(lambda t, y, rate: -rate * y),
    ...         dfx.Tsit5(),
    ...         0.0,
    ...         1.0,
    ...         0.1,
    ...         jnp.ones(2),
    ...         rate,
    ...         stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    ...         penalties={"error": px.regularizers.Error()},
    ...     )
    ...     task = jnp.sum((sol.ys - 0.5) ** 2)
    ...     return task + weight * record.penalties["error"], record
    >>> gradient, record = jax.grad(loss, has_aux=True)(2.0, 0.1)
    >>> int(record.evaluations.total.drift) > 0
    True

    ```
    """
    saveat = dfx.SaveAt(t1=True) if saveat is None else saveat
    if stepsize_controller is None:
        stepsize_controller = dfx.ConstantStepSize()
    if adjoint is None:
        adjoint = dfx.RecursiveCheckpointAdjoint()
    job = _Job(penalties, key, stepsize_controller, adjoint, tolerances, largest_error)
    counted: Any
    controller: Any
    counted, controller = counting(solver, stepsize_controller)
    forward = all(isinstance(t, int | float | np.number) for t in (t0, t1)) and t0 < t1
    t0, t1, dt0 = _times(t0, t1, dt0, saveat)
    direction = jnp.where(t0 < t1, 1, -1).astype(t0.dtype)
    wrapper = job.wrapper(counted, t0 * direction, t1 * direction, solver, solver_state)
    if controller_state is not None and counted.adaptive:
        controller_state = controller.resume(controller_state)
    passengers = Passengers(job.integrals, job.keys, adjoint, y0)
    sol = dfx.diffeqsolve(
        passengers.terms(terms),
        wrapper,
        t0,
        t1,
        dt0,
        passengers.state(y0),
        args,
        saveat=passengers.saveat(saveat, event),
        stepsize_controller=passengers.controller(controller),
        adjoint=passengers.adjoint(solver, stepsize_controller),
        event=passengers.event(event),
        controller_state=controller_state,
        **options,
    )
    return job.finish(
        sol, passengers, saveat, (terms, args, None if forward else direction)
    )


def _times(t0, t1, dt0, saveat) -> tuple:
    """In the dtype that Diffrax computes with."""
    subs = jax.tree.leaves(saveat.subs, is_leaf=lambda x: isinstance(x, dfx.SubSaveAt))
    ts = [s.ts for s in subs if s.ts is not None]
    given = [t0, t1, *([] if dt0 is None else [dt0]), *ts]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*given)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    as_time = lambda t: None if t is None else jnp.asarray(t, dtype)
    return as_time(t0), as_time(t1), as_time(dt0)


class _Job:
    """The penalties of one solve, by kind, and what they are made with."""

    def __init__(self, penalties, key, controller, adjoint, tolerances, largest_error):
        self.penalties = dict(penalties)
        kinds = (AbstractStepPenalty, AbstractLocalPenalty, AbstractIntegralPenalty)
        of = lambda kind: {
            k: p for k, p in self.penalties.items() if isinstance(p, kind)
        }
        self.steps, self.locals, self.integrals = map(of, kinds)
        check_adjoint(self.penalties, adjoint)
        self.keys = check_needs(self.penalties, key)
        self.tolerances = tolerances_of(self.penalties, controller, tolerances)
        self.controller, self.adjoint_kind = controller, type(adjoint)
        if largest_error is None and getattr(controller, "dtmin", None) is not None:
            largest_error = 10.0
        self.largest_error = largest_error

    def wrapper(self, counted, start, end, solver, state) -> RegularizedSolver:
        self.solver = solver
        samplers = tuple(
            p.sampler(self.keys[name], start, end, solver)
            for name, p in self.locals.items()
        )
        self.end = end
        make: Any = RegularizedSolver
        return make(
            counted,
            tuple(self.steps.values()),
            samplers,
            self.tolerances,
            self.largest_error,
            made_of_error(self.penalties),
            _own_order(self.controller),
            state,
        )

    def finish(self, sol, passengers, saveat, equation) -> tuple:
        """The solution as Diffrax would give it, and the record."""
        state, controller_state = sol.solver_state, sol.controller_state
        assert isinstance(state, RegularizedState)
        sol, end, extra = passengers.strip(sol, state)
        last = state.last
        whole = last.t1 - last.t0
        done = jnp.where(whole > 0, (end - last.t0) / jnp.where(whole > 0, whole, 1), 1)
        start = sol.t0 if equation[2] is None else sol.t0 * equation[2]
        time = jax.lax.stop_gradient(end - start)
        steps = state.statistics.steps
        penalties = {}
        for i, (name, penalty) in enumerate(self.steps.items()):
            total = state.totals[i]
            if penalty.reduction != "max" and passengers.may_end_early:
                # Of a step that an event cuts short only that part counts.
                missing = (1 - jax.lax.stop_gradient(done)).astype(total.dtype)
                total = total - missing * last.values[i]
            penalties[name] = penalty.result(total, steps, time)
        replay = self._replay(equation, steps, time, state, sol)
        found = {}
        for (name, local), held in zip(
            self.locals.items(), state.captured, strict=True
        ):
            penalties[name] = local.value(jax.lax.stop_gradient(held), replay)
            found[name] = jnp.any(held.found)
        penalties |= extra
        record = self._record(sol, state, controller_state, penalties, time, found)
        return _restore(sol, saveat, state, controller_state), record

    def _record(self, sol, state, controller_state, penalties, time, found) -> Record:
        seen = state.statistics
        has_error = self.tolerances is not None and state.inner.adaptive
        count = jnp.maximum(seen.steps, 1).astype(seen.total.dtype)
        ordered = {name: penalties[name] for name in self.penalties}
        return Record(
            ordered,
            seen.steps,
            jnp.asarray(sol.stats["num_steps"], jnp.int32),
            counts_of_states(state.inner, controller_state),
            seen.total / count if has_error else None,
            seen.largest if has_error else None,
            time,
            dfx.is_okay(sol.result),
            seen.clipped,
            found,
        )

    def _replay(self, equation, steps, time, state, sol) -> Replay | None:
        if not self.locals:
            return None
        terms, args, direction = equation
        terms = _directed(terms, direction)
        solver = _ready(self.solver, self.controller, self.adjoint_kind)
        order = _own_order(self.controller)
        order = solver.error_order(terms) if order is None else order
        return Replay(
            terms,
            args,
            solver,
            self.controller,
            self.tolerances,
            order,
            self.end,
            steps,
            time,
            self.largest_error,
        )


def _own_order(controller: Any) -> Any:
    while hasattr(controller, "controller"):
        controller = controller.controller
    return getattr(controller, "error_order", None)


class _Directed(dfx.AbstractTerm):
    """A term in a time that goes forward, as Diffrax solves it."""

    term: dfx.AbstractTerm
    direction: Array

    def vf(self, t, y, args):
        return self.term.vf(t * self._sign(t), y, args)

    def contr(self, t0, t1, **kwargs):
        sign = self._sign(t0)
        start = jnp.where(sign > 0, t0, -t1)
        end = jnp.where(sign > 0, t1, -t0)
        control = self.term.contr(start, end, **kwargs)
        return jax.tree.map(lambda x: x * self._sign(x), control)

    def prod(self, vf, control):
        return self.term.prod(vf, control)

    def vf_prod(self, t, y, args, control):
        return self.term.vf_prod(t * self._sign(t), y, args, control)

    def is_vf_expensive(self, t0, t1, y, args):
        sign = self._sign(t0)
        return self.term.is_vf_expensive(t0 * sign, t1 * sign, y, args)

    def _sign(self, like: Any) -> Array:
        return self.direction.astype(jnp.result_type(like))


def _directed(terms: PyTree, direction: Array | None) -> PyTree:
    """The terms in a time that goes forward, if it doesn't anyway."""
    if direction is None:
        return terms

    def wrap(term: Any) -> Any:
        if isinstance(term, dfx.MultiTerm):
            return dfx.MultiTerm(*map(wrap, term.terms))
        return _Directed(term, direction)

    return jax.tree.map(wrap, terms, is_leaf=lambda x: isinstance(x, dfx.AbstractTerm))


def _ready(solver: Any, controller: Any, adjoint_kind: type) -> Any:
    """The solver for a step of its own, outside `diffeqsolve`."""
    if type(solver) is dfx.HalfSolver:
        inner = _ready(solver.solver, controller, adjoint_kind)
        return dfx.HalfSolver(inner)
    if isinstance(solver, dfx.AbstractImplicitSolver) and isinstance(
        controller, dfx.AbstractAdaptiveStepSizeController
    ):
        solver = _with_tolerances(solver, controller)
    if adjoint_kind is dfx.ForwardMode and hasattr(solver, "scan_kind"):
        solver = eqx.tree_at(
            lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None
        )
    return solver


def _with_tolerances(solver: Any, controller: Any) -> Any:
    """Diffrax fills in tolerances that a root finder lacks; so here."""
    unset = dfx.with_stepsize_controller_tols(dfx.VeryChord)().rtol
    names = [
        name
        for name in ("rtol", "atol", "norm")
        if getattr(solver.root_finder, name) is unset
    ]
    if not names:
        return solver
    where = lambda s: tuple(getattr(s.root_finder, name) for name in names)
    return eqx.tree_at(where, solver, tuple(getattr(controller, n) for n in names))


def _restore(sol, saveat, state, controller_state) -> dfx.Solution:
    """The states that were asked for, without what was wrapped around them."""
    solver_state = without_extra(state.inner.inner) if saveat.solver_state else None
    if not saveat.controller_state:
        controller_state = None
    elif state.inner.adaptive:
        controller_state = controller_state.inner
    return eqx.tree_at(
        lambda s: (s.solver_state, s.controller_state),
        sol,
        (solver_state, controller_state),
        is_leaf=lambda x: x is None,
    )
