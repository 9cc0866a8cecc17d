"""Penalties of a few sampled steps, which are made again after the solve."""

import abc
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..solvers._evaluations import has_noise
from ..solvers._wrapped import innermost
from ._capture import (
    AbstractSampler,
    Captured,
    StepSampler,
    TimeSampler,
    has_memory,
)
from ._error import Error
from ._penalty import AbstractPenalty, AbstractStepPenalty
from ._step import Step, Tolerances, scaled_error


class Replay(eqx.Module):
    """What is needed to make a step again, and what the solve came to."""

    terms: PyTree
    args: PyTree
    solver: Any
    controller: Any
    tolerances: Tolerances | None
    error_order: Any
    t1: Array
    steps: Array
    time: Array
    largest_error: float | None = eqx.field(static=True)


class AbstractLocalPenalty(AbstractPenalty):
    """A penalty from sampled steps alone, differentiated through those alone."""

    draws: eqx.AbstractVar[int]
    by_time: eqx.AbstractVar[bool]
    interpolate: eqx.AbstractVar[bool]

    def sampler(self, key: Array, t0: Array, t1: Array, solver: Any) -> AbstractSampler:
        """Picks the steps during the solve."""
        options: dict[str, Any] = {
            "draws": self.draws,
            "keep_state": has_memory(solver),
            "interpolate": self.interpolate,
        }
        if not self.by_time:
            return StepSampler(key=key, **options)
        # In [t0, t1): rounding must not reach the end, which no step starts at.
        u = jax.random.uniform(key, (self.draws,), t0.dtype)
        below = 1 - jnp.finfo(t0.dtype).eps
        times = t0 + (t1 - t0) * jnp.minimum(u, jnp.asarray(below, t0.dtype))
        return TimeSampler(key=key, times=times, **options)

    def value(self, captured: Captured, replay: Replay) -> Array:
        """The penalty, the mean over all draws."""
        # One step after the other: each draw has a step's memory alone.
        one = lambda held: self._of_draw(held, replay)
        if self.draws == 1:
            values = one(jax.tree.map(lambda x: x[0], captured))
        else:
            values = jnp.mean(jax.lax.map(one, captured))
        found = jnp.any(captured.found)
        return jnp.where(found, values, jnp.zeros_like(values))

    @abc.abstractmethod
    def _of_draw(self, held: Captured, replay: Replay) -> Array:
        """The penalty from one draw."""


class Local(AbstractLocalPenalty):
    r"""An unbiased estimate of a penalty over all steps, from a few of them.

    The solve keeps time, size and state of the steps that are drawn, and these are made
    again afterwards, from constants: derivatives go through these steps alone. So any
    adjoint will do for the solve, and memory is that of a step. Of the sum
    $R = \sum_j v_j$ over $N$ steps (for [`pathax.regularizers.Error`][],
    $v_j = q_j h_j$) in time $T$,

    - `sampling="time"` takes the step that contains a uniform time, and
      $T\, v_J / h_J$;
    - `sampling="step"` takes a uniform step, by a reservoir, and $N\, v_J$.

    Both have mean $R$. For the error the first has the smaller variance, as $q_j$ is
    nearly the same for all steps of a controlled solve. In a stochastic equation the
    step sees the same Brownian path again.

    **Arguments:**

    - `penalty`: what to estimate, with the reduction `"sum"`.
    - `sampling`: `"time"` or `"step"`.
    - `draws`: how many steps are taken, their mean is returned.

    **Attributes:** `penalty` and `draws`, as given.

    **Raises:** `ValueError` for other values.

    **Cost:** a step for each draw, forward and backward; in the solve, a copy of the
    state for each draw.

    **Gradients:** those of the sampled steps, from constant states. The way in which
    the states depend on the parameters is left out.

    **Precision:** that of the state.

    **Reference:** after A. Pal, A. Edelman, C. Rackauckas, "Locally Regularized Neural
    Differential Equations: Some Black Boxes were meant to remain closed!", ICML 2023,
    whose own estimators are [`pathax.regularizers.PublishedLocal`][].

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(2),
    ...     stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    ...     adjoint=dfx.BacksolveAdjoint(),
    ...     penalties={"error": px.regularizers.Local()},
    ...     key=jax.random.key(0),
    ... )
    >>> bool(record.penalties["error"] > 0)
    True

    ```
    """

    penalty: AbstractStepPenalty
    by_time: bool = eqx.field(static=True)
    draws: int = eqx.field(static=True)
    interpolate: bool = eqx.field(static=True)

    def __init__(
        self,
        penalty: AbstractStepPenalty | None = None,
        *,
        sampling: str = "time",
        draws: int = 1,
    ):
        self.penalty = Error() if penalty is None else penalty
        if self.penalty.reduction != "sum":
            raise ValueError(
                'A sampled penalty estimates a sum: write `reduction="sum"`; got '
                f"{self.penalty.reduction!r}."
            )
        if sampling not in ("time", "step"):
            raise ValueError(f'`sampling` must be "time" or "step"; got {sampling!r}.')
        _check_draws(draws)
        self.by_time, self.draws = sampling == "time", draws
        self.interpolate = False

    def _of_draw(self, held: Captured, replay: Replay) -> Array:
        step = again(held.t0, held.t1, held.y0, held.state, replay)
        value = self.penalty.of_step(step)
        if self.by_time:
            return value * (replay.time / step.size).astype(value.dtype)
        return value * replay.steps.astype(value.dtype)


class PublishedLocal(AbstractLocalPenalty):
    r"""The local penalties as published, and as their authors' code has them.

    A state $u^*$ on the path, and one step of the solver from there with the size $h^*$
    that its search for a first step proposes, not the one that the solve took:

    $$ r = q(t^*, u^*, h^*)\, h^* . $$

    - `"unbiased"`: at a time drawn uniformly.
    - `"biased"`: at a time drawn uniformly from those that the solver stepped to, the
      last one left out; here by a reservoir, without storing the path.

    State, step size and, where the solver reuses it, the first stage are constants for
    derivatives, as in that code. Neither is an unbiased estimate of the penalty over
    all steps; [`pathax.regularizers.Local`][] is.

    **Arguments:**

    - `mode`: `"unbiased"` or `"biased"`.
    - `draws`: how many times are drawn.
    - `size`: a number, to use that as $h^*$ instead.

    **Raises:** `ValueError` for another mode, and in the solve if a stochastic equation
    is given no `size`: the search for a first step is one for ordinary equations.

    **Cost:** a step for each draw, forward and backward, and two evaluations for its
    size; in the solve, a copy of the state for each draw.

    **Gradients:** those of the one step.

    **Precision:** that of the state.

    **Reference:** A. Pal, A. Edelman, C. Rackauckas, ICML 2023.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(2),
    ...     stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    ...     penalties={"error": px.regularizers.PublishedLocal("biased")},
    ...     key=jax.random.key(0),
    ... )
    >>> bool(record.penalties["error"] > 0)
    True

    ```
    """

    draws: int = eqx.field(static=True)
    size: float | None
    by_time: bool = eqx.field(static=True)
    interpolate: bool = eqx.field(static=True)

    def __init__(
        self,
        mode: str = "unbiased",
        *,
        draws: int = 1,
        size: float | None = None,
    ):
        if mode not in ("unbiased", "biased"):
            raise ValueError(f'`mode` must be "unbiased" or "biased"; got {mode!r}.')
        _check_draws(draws)
        self.by_time = self.interpolate = mode == "unbiased"
        self.draws, self.size = draws, size

    def sampler(self, key: Array, t0: Array, t1: Array, solver: Any) -> AbstractSampler:
        if has_memory(solver):
            raise ValueError(
                f"A step of {type(solver).__name__} can't start anywhere. Write "
                "`Local(...)`, which makes steps of the solve again."
            )
        return super().sampler(key, t0, t1, solver)

    def _of_draw(self, held: Captured, replay: Replay) -> Array:
        t, y = (held.time, held.u) if self.interpolate else (held.t0, held.y0)
        size = self._first_size(t, y, replay)
        size = jax.lax.stop_gradient(jnp.minimum(size, replay.t1 - t))
        step = again(t, t + size, y, self._state(t, y, replay), replay)
        q = step.scaled_error
        assert q is not None
        return q * size.astype(q.dtype)

    def _first_size(self, t: Array, y: PyTree, replay: Replay) -> Array:
        if self.size is not None:
            return jnp.asarray(self.size, t.dtype)
        controller = replay.controller
        while hasattr(controller, "controller"):
            controller = controller.controller
        if has_noise(replay.terms) or not isinstance(controller, dfx.PIDController):
            raise ValueError(
                "`PublishedLocal` finds the size of its step by the search of "
                "`diffrax.PIDController`, for an equation without noise. Write "
                "`PublishedLocal(mode, size=...)`."
            )
        terms = replay.terms
        one = jax.tree.map(
            lambda term: term.contr(jnp.zeros_like(t), jnp.ones_like(t)),
            terms,
            is_leaf=lambda x: isinstance(x, dfx.AbstractTerm),
        )
        # The search knows an ordinary term by its type.
        plain = dfx.ODETerm(lambda t, y, args: terms.vf_prod(t, y, args, one))
        func = lambda terms, t, y, args: terms.vf(t, y, args)
        order = replay.error_order
        end, _ = controller.init(plain, t, replay.t1, y, None, replay.args, func, order)
        return jnp.asarray(end - t)

    def _state(self, t: Array, y: PyTree, replay: Replay) -> PyTree:
        """The solver's state, with the first stage as a constant if it holds that."""
        solver = innermost(replay.solver)
        if not isinstance(solver, dfx.AbstractERK):
            return None
        state = solver.init(replay.terms, t, replay.t1, y, replay.args)
        if state is None:
            return None
        field = solver.func(replay.terms, t, y, replay.args)
        return jnp.zeros((), bool), jax.lax.stop_gradient(field)


def again(t0: Array, t1: Array, y0: PyTree, state: PyTree, replay: Replay) -> Step:
    """A step of the bare solver."""
    solver, terms, args = replay.solver, replay.terms, replay.args
    if state is None:
        state = solver.init(terms, t0, t1, y0, args)
    y1, error, info, _, _ = solver.step(terms, t0, t1, y0, args, state, False)
    q = None
    if error is not None and replay.tolerances is not None:
        q = scaled_error(y0, y1, error, replay.tolerances)
        if replay.largest_error is not None:
            q = jnp.minimum(q, jnp.asarray(replay.largest_error, q.dtype))
    order = replay.error_order
    return Step(t0, t1, y0, y1, error, q, order, info, terms, args, solver)


def _check_draws(draws: int) -> None:
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be an integer, at least 1; got {draws!r}.")
