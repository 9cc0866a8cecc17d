"""Exact numbers of evaluations, of accepted and of rejected steps."""

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import _implicit
from ._evaluations import (
    Evaluations,
    add,
    evaluations_of_init,
    evaluations_of_step,
    scaled,
)
from ._wrapped import AbstractTransparentSolver


class EvaluationCounts(NamedTuple):
    """Evaluations of a whole solve.

    **Attributes:**

    - `accepted`: [`pathax.solvers.Evaluations`][] of accepted steps, and of what the
      solver evaluates before the first one.
    - `rejected`: those of rejected steps.
    - `total`: their sum.
    """

    accepted: Evaluations
    rejected: Evaluations
    total: Evaluations


class Counted(NamedTuple):
    """A solver and a controller that count together.

    **Attributes:**

    - `solver`: what to hand to `diffrax.diffeqsolve` as `solver`.
    - `controller`: what to hand to it as `stepsize_controller`.
    """

    solver: dfx.AbstractSolver
    controller: dfx.AbstractStepSizeController


def counting(
    solver: dfx.AbstractSolver,
    controller: dfx.AbstractStepSizeController | None = None,
) -> Counted:
    r"""Make a solver count how often it evaluates the terms of the equation.

    Explicit solvers evaluate each term once a stage (those whose last stage is the next
    step's first: one less, but for the first step and after jumps); implicit ones as
    often as their root finder iterates, once more for each Jacobian, and once where
    it needs a first guess. All steps stay the same, to the last bit.

    A rejected step leaves no trace in the state of a solver. So the solver hands the
    number of its evaluations to the controller, beside its estimate of the error, and
    the controller adds up.

    **Arguments:**

    - `solver`: a Diffrax solver. One that Diffrax doesn't have needs a method
      `evaluations(terms, solver_state, made_jump)` that returns the
      [`pathax.solvers.Evaluations`][] of one step.
    - `controller`: by default `diffrax.ConstantStepSize()`.

    **Returns:** a [`pathax.solvers.Counted`][]. Solve with both, with
    `SaveAt(..., solver_state=True, controller_state=True)`, and read the numbers off
    with [`pathax.solvers.evaluations`][].

    **Cost:** a few additions of integers a step.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> solver, controller = px.solvers.counting(
    ...     dfx.Tsit5(), dfx.PIDController(rtol=1e-6, atol=1e-6)
    ... )
    >>> sol = dfx.diffeqsolve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     solver,
    ...     0,
    ...     1,
    ...     0.1,
    ...     jnp.ones(2),
    ...     stepsize_controller=controller,
    ...     saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
    ... )
    >>> counts = px.solvers.evaluations(sol)
    >>> steps = int(sol.stats["num_steps"])
    >>> int(counts.total.drift) == 6 * steps + 1
    True

    ```
    """
    if controller is None:
        controller = dfx.ConstantStepSize()
    if not isinstance(solver, dfx.AbstractSolver):
        raise TypeError(
            "`counting` needs a Diffrax solver, such as `diffrax.Tsit5()`; got "
            f"{type(solver).__name__}."
        )
    if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
        adaptive = CountingSolver(solver, adaptive=True)
        return Counted(adaptive, _controller(controller))
    return Counted(CountingSolver(solver), controller)


def evaluations(solution: dfx.Solution) -> EvaluationCounts:
    """The numbers of evaluations of a solve with a counting solver.

    **Arguments:**

    - `solution`: of `diffrax.diffeqsolve` with what [`pathax.solvers.counting`][]
      returned; under `jax.vmap`, the numbers of each solve.

    **Returns:** an [`pathax.solvers.EvaluationCounts`][].

    **Raises:** `ValueError` if the states weren't saved or nothing was counted.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> solver, _ = px.solvers.counting(dfx.Heun())
    >>> sol = dfx.diffeqsolve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     solver,
    ...     0,
    ...     1,
    ...     0.25,
    ...     jnp.ones(2),
    ...     saveat=dfx.SaveAt(t1=True, solver_state=True),
    ... )
    >>> int(px.solvers.evaluations(sol).accepted.drift)
    8

    ```
    """
    return counts_of_states(solution.solver_state, solution.controller_state)


def counts_of_states(solver_state: Any, controller_state: Any) -> EvaluationCounts:
    """The numbers held by the final states of a counting solver and controller."""
    if not isinstance(solver_state, CountingState):
        raise ValueError(
            "The solution holds no numbers of evaluations. Solve with the solver and "
            "the controller that `pathax.solvers.counting` returns, and save "
            "`SaveAt(..., solver_state=True, controller_state=True)`."
        )
    accepted = solver_state.accepted
    if isinstance(controller_state, CountingControllerState):
        rejected = controller_state.rejected
    elif solver_state.adaptive:
        raise ValueError(
            "The evaluations of rejected steps are held by the controller: save "
            "`SaveAt(..., solver_state=True, controller_state=True)`."
        )
    else:
        rejected = scaled(0, accepted)
    return EvaluationCounts(accepted, rejected, add(accepted, rejected))


class CountingState(eqx.Module):
    """State of a counting solver."""

    inner: PyTree
    accepted: Evaluations
    adaptive: bool = eqx.field(static=True)


class Reported(eqx.Module):
    """What a counting solver hands to the controller as the estimate of the error."""

    error: PyTree
    evaluations: Evaluations


class CountingSolver(AbstractTransparentSolver):
    """A solver that counts its evaluations."""

    wrapped: dfx.AbstractSolver
    # Whether the controller takes the numbers from beside the error.
    adaptive: bool = eqx.field(default=False, static=True)

    def init(self, terms, t0, t1, y0, args):
        inner = _init(self.wrapped, terms, t0, t1, y0, args)
        start = evaluations_of_init(self.wrapped, terms)
        return CountingState(inner, _integers(start), self.adaptive)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, dense_info, inner, result, made = _step(
            self.wrapped, terms, t0, t1, y0, args, solver_state.inner, made_jump
        )
        made = _integers(made)
        state = CountingState(inner, add(solver_state.accepted, made), self.adaptive)
        if self.adaptive:  # also where there is no estimate of the error
            error = Reported(error, _as_floats(made))
        return y1, error, dense_info, state, result


def _init(solver, terms, t0, t1, y0, args) -> PyTree:
    if type(solver) is dfx.HalfSolver:
        return _init(solver.solver, terms, t0, t1, y0, args)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        return _implicit.init(solver, terms, t0, t1, y0, args)
    return solver.init(terms, t0, t1, y0, args)


def _step(solver, terms, t0, t1, y0, args, state, made_jump) -> tuple:
    """A step of the solver as it is, and its `Evaluations`."""
    if type(solver) is dfx.HalfSolver:
        return _half_step(solver.solver, terms, t0, t1, y0, args, state, made_jump)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        return _implicit.step(solver, terms, t0, t1, y0, args, state, made_jump)
    out = solver.step(terms, t0, t1, y0, args, state, made_jump)
    return *out, evaluations_of_step(solver, terms, state, made_jump)


def _half_step(solver, terms, t0, t1, y0, args, state, made_jump) -> tuple:
    """As `diffrax.HalfSolver`: two half steps, compared with a whole one."""
    half = t0 + 0.5 * (t1 - t0)
    y_half, _, _, state_half, result1, made1 = _step(
        solver, terms, t0, half, y0, args, state, made_jump
    )
    y1, _, _, new_state, result2, made2 = _step(
        solver, terms, half, t1, y_half, args, state_half, False
    )
    whole, _, dense_info, _, result3, made3 = _step(
        solver, terms, t0, t1, y0, args, state, made_jump
    )
    error = jax.tree.map(lambda a, b: jnp.abs(a - b), y1, whole)
    result = _first_failure(result1, result2, result3)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        # A part whose root finder failed has the whole step rejected, not the solve.
        fine = dfx.is_okay(result)
        error = jax.tree.map(lambda x: jnp.where(fine, x, jnp.inf), error)
    return y1, error, dense_info, new_state, result, add(made1, made2, made3)


def _first_failure(*results: Any) -> Any:
    """As in Diffrax, the first result that isn't a success."""
    first, *rest = results
    for other in rest:
        fine = first == dfx.RESULTS.successful
        if isinstance(fine, bool):
            first = other if fine else first
        else:
            first = dfx.RESULTS.where(fine, other, first)
    return first


def _integers(evaluations: Evaluations) -> Evaluations:
    return Evaluations(*(jnp.asarray(x, jnp.int32) for x in evaluations))


def _as_floats(evaluations: Evaluations) -> Evaluations:
    # Diffrax replaces NaN in what it takes for the error, which integers don't stand.
    # Numbers up to 2^24 are exact.
    return Evaluations(*(x.astype(jnp.float32) for x in evaluations))


class CountingControllerState(eqx.Module):
    """State of a counting controller."""

    inner: PyTree
    rejected: Evaluations


class CountingController(dfx.AbstractAdaptiveStepSizeController):
    """A controller that takes the numbers of rejected steps from the solver."""

    controller: dfx.AbstractAdaptiveStepSizeController

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Any:
        return self.controller.norm

    def resume(self, inner: PyTree) -> CountingControllerState:
        """The state to go on from, given that of the controller inside."""
        return CountingControllerState(inner, _integers(Evaluations()))

    def wrap(self, direction):
        return _controller(self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        t, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t, CountingControllerState(inner, _integers(Evaluations()))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        made = _integers(Evaluations())
        if isinstance(y_error, Reported):
            y_error, made = y_error.error, _integers(y_error.evaluations)
        keep, next_t0, next_t1, made_jump, inner, result = (
            self.controller.adapt_step_size(
                t0,
                t1,
                y0,
                y1_candidate,
                args,
                y_error,
                error_order,
                controller_state.inner,
            )
        )
        rejected = jax.tree.map(
            lambda total, x: jnp.where(keep, total, total + x),
            controller_state.rejected,
            made,
        )
        state = CountingControllerState(inner, rejected)
        return keep, next_t0, next_t1, made_jump, state, result


# The tolerances are properties, which type checkers take for fields.
_controller: Any = CountingController
