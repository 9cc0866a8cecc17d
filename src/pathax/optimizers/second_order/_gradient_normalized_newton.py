"""Newton steps whose damping is the gradient's norm over a trust radius."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature import Likelihood
from .._extras import objective, require_params
from .._inject import static_args
from ._flat_curvature import (
    CURVATURES,
    SOLVERS,
    Coordinates,
    Metric,
    build_solver,
    find_curvature,
    read_curvature,
    read_metric,
    real_dtype,
    whiten,
)
from ._moments import check_choice, one_more
from ._shifted_solvers import Shifted


_NAME = "gradient_normalized_newton"
_MODES = ("search", "power", "fixed")


class GNSState(NamedTuple):
    """State of [`pathax.optimizers.gradient_normalized_newton`][].

    **Attributes:**

    - `count`: how many steps were taken.
    - `gamma`: the trust radius that the next step starts from.
    - `value`: the objective after the last step; infinite before the first.
    - `grad`: its gradient there, as `jax.grad` returns it. `value` and `grad` are what
      `optax.value_and_grad_from_state` looks for.
    - `trials`: how many shifted systems were solved, over all steps.
    - `rejected`: how many of them gave no step.
    """

    count: Array
    gamma: Array
    value: Array
    grad: PyTree
    trials: Array
    rejected: Array


class _Trial(NamedTuple):
    """A search in progress; `step`, `value` and `grad` are of what was accepted."""

    index: Array
    gamma: Array
    done: Array
    accepted: Array
    step: Array
    value: Array
    grad: PyTree
    carry: Any


@dataclass(frozen=True)
class _Settings:
    gamma_min: Any
    gamma_max: Any
    mode: str
    power: Any
    constant: Any
    smoothing: Any


# Search -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """Where a step starts: parameters, value, gradient in whitened coordinates."""

    params: PyTree
    space: Coordinates
    metric: Metric
    loss: Callable[[PyTree], Array] | None
    value: Array
    grad: PyTree
    g: Array
    norm: Array

    def move(self, step: Array) -> PyTree:
        """A whitened step as updates of the parameters."""
        return self.space.unravel(self.metric.primal(step))


def _judge_value(point: _Point, step: Array, shift: Array) -> tuple[Array, Array, Any]:
    """Whether a step is accepted, whether the search is over, value and gradient."""
    assert point.loss is not None
    params = optax.apply_updates(point.params, point.move(step))
    value, grad = jax.value_and_grad(point.loss)(params)
    value = value.astype(point.value.dtype)
    ascent = jax.tree.map(jnp.conj, grad)
    norm = jnp.linalg.norm(point.metric.dual(point.space.ravel(ascent)))
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    enough = point.value - value >= norm**2 / (8 * shift)

    # Near a minimum the decrease drowns in the rounding of the value. Then the norm of
    # the gradient decides; and if it does not fall either, smaller steps don't help.
    noise = 4 * jnp.finfo(value.dtype).eps * jnp.abs(point.value)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(point.params), strict=True)
    moved = jnp.any(jnp.array([jnp.any(a != b) for a, b in pairs]))
    hidden = (-jnp.vdot(point.g, step) <= noise) | ~moved
    closer = (value <= point.value + noise) & (norm < point.norm)
    accepted = finite & (enough | (hidden & closer))
    return accepted, finite & hidden & ~accepted, (value, grad)


def _judge_step(point: _Point, step: Array, shift: Array) -> tuple[Array, Array, Any]:
    del shift
    accepted = jnp.all(jnp.isfinite(step))
    return accepted, jnp.zeros((), bool), (point.value, point.grad)


def _search(
    point: _Point, solver: Shifted, gamma: Array, judge: Callable, max_trials: Any
) -> _Trial:
    """Halve the radius until a trial is accepted."""

    def unfinished(trial: _Trial) -> Array:
        solvable = (point.norm > 0) & jnp.isfinite(point.norm)
        return solvable & ~trial.done & (trial.index < max_trials)

    def attempt(trial: _Trial) -> _Trial:
        shift = point.norm / trial.gamma
        carry, step, positive = solver.solve(trial.carry, shift)
        good, over, (value, grad) = judge(point, step, shift)
        good, over = good & positive, over & positive
        keep = lambda new, old: jnp.where(good, new, old)
        return _Trial(
            index=trial.index + 1,
            gamma=jnp.where(good | over, trial.gamma, trial.gamma / 2),
            done=good | over,
            accepted=good,
            step=keep(step, trial.step),
            value=keep(value, trial.value),
            grad=jax.tree.map(keep, grad, trial.grad),
            carry=carry,
        )

    start = _Trial(
        index=jnp.zeros((), jnp.int32),
        gamma=gamma,
        done=jnp.zeros((), bool),
        accepted=jnp.zeros((), bool),
        step=jnp.zeros_like(point.g),
        value=point.value,
        grad=point.grad,
        carry=solver.carry,
    )
    return jax.lax.while_loop(unfinished, attempt, start)


def _radius(settings: _Settings, state: GNSState, norm: Array) -> Array:
    """The trust radius that the search starts from."""
    if settings.mode != "power":
        return state.gamma
    power = jnp.asarray(settings.power, norm.dtype)
    gamma = norm**power / jnp.asarray(settings.constant, norm.dtype)
    decay = jnp.asarray(settings.smoothing, norm.dtype)
    smooth = decay * state.gamma + (1 - decay) * gamma
    return jnp.where(state.count == 0, gamma, smooth)


def _next_radius(settings: _Settings, trial: _Trial, start: Array) -> Array:
    """Twice the accepted radius; a smaller one where all trials failed."""
    if settings.mode != "search":
        return start
    gamma = jnp.where(trial.accepted, 2 * trial.gamma, trial.gamma)
    bounds = (settings.gamma_min, settings.gamma_max)
    low, high = (jnp.asarray(b, gamma.dtype) for b in bounds)
    return jnp.clip(gamma, low, high)


# Transformation ---------------------------------------------------------------------


def _check(solver: str, mode: str, curvature: str | None, constant: Any) -> None:
    check_choice("solver", solver, SOLVERS)
    check_choice("mode", mode, _MODES)
    check_choice("curvature", curvature, CURVATURES)
    if mode == "power" and constant is None:
        raise ValueError(
            'mode="power" needs `constant`, the M of lambda = M |g|^(1 - power)'
        )


def _start(
    updates: PyTree, params: PyTree, metric: PyTree, mode: str, extra: dict
) -> _Point:
    space = Coordinates(params, real_dtype(params))
    whitening = read_metric(metric, space)
    g = whitening.dual(space.ravel(updates))
    if mode == "search":
        loss = objective(extra, _NAME)
        value = extra.get("value")
        value = jnp.asarray(loss(params) if value is None else value)
        value = value.astype(space.dtype)
        raw = lambda u, p: jnp.conj(u).astype(p.dtype)
        grad = jax.tree.map(raw, updates, params)
    else:
        loss, value = None, jnp.asarray(jnp.inf, space.dtype)
        grad = jax.tree.map(jnp.zeros_like, params)
    return _Point(params, space, whitening, loss, value, grad, g, jnp.linalg.norm(g))


@static_args(
    "curvature_fn",
    "curvature",
    "solver",
    "metric",
    "mode",
    "likelihood",
    "krylov_size",
)
def gradient_normalized_newton(
    curvature_fn: Callable[[PyTree], Any] | None = None,
    *,
    curvature: str | None = None,
    likelihood: str | Likelihood | Callable = "categorical",
    gamma0: float | Array = 1.0,
    gamma_min: float | Array = 1e-9,
    gamma_max: float | Array = 1e12,
    max_trials: int | Array = 40,
    solver: str = "auto",
    krylov_size: int = 64,
    krylov_tol: float | Array = 0.1,
    metric: PyTree = None,
    mode: str = "search",
    power: float | Array = 0.5,
    constant: float | Array | None = None,
    smoothing: float | Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Newton steps with approximate Hessians, safe far from the minimum.

    For deterministic losses. With a metric `B` (default `I`), `|v|^2 = <v, B v>`, the
    dual norm `|g|_*^2 = <g, B^-1 g>` and an approximation `C` of the Hessian,

        lambda = |g|_* / gamma,    d = -(C + lambda B)^-1 g,    |d| <= gamma if C >= 0.

    A trial is accepted if `f(x) - f(x + d) >= |grad f(x + d)|_*^2 / (8 lambda)`; then
    the next step starts from `2 gamma`; otherwise `gamma` is halved. The trust radius
    `gamma` so follows how well `C` explains the change of the gradient, relative to the
    gradient itself. `C` is evaluated and factorized once a step, whatever the search
    does.

    **The step comes out signed and complete**: this must be the last transformation in
    a chain, and needs no learning rate. Scaling it later would undo the acceptance
    test. The incoming updates must be the gradient of the objective (the conjugate of
    `jax.grad` for complex parameters, as in all transformations of complex gradients).

    **Arguments:**

    - `curvature_fn`: `curvature_fn(params)` returns `C`, in any of the forms below. The
      extra `curvature` goes before it.
    - `curvature`: by name, `"hessian"` (from `obj_fn`), `"ggn"` (generalized
      Gauss-Newton, from `residual_fn`, else from `predict_fn` and `likelihood`) or
      `"fisher"` (from the extra `rows`, gradients of examples).
    - `likelihood`: see [`pathax.curvature.ggn_mvp`][].
    - `gamma0`: the first trust radius; unit of length of the parameters.
    - `gamma_min`, `gamma_max`: bounds of the radius from step to step. A search may
      reach below; without the upper bound it would grow for ever on a quadratic.
    - `max_trials`: how many radii are tried in one step.
    - `solver`: `"eigh"` and `"cholesky"` (dense), `"rows"` (in the space of rows),
      `"rank_one"` (closed form), `"diag"`, `"lanczos"` (products only), or `"auto"`:
      what fits the curvature; products become a matrix up to 256 parameters.
    - `krylov_size`, `krylov_tol`: `"lanczos"` takes products until the residual is at
      most `krylov_tol lambda |d|`, and at most so many a step.
    - `metric`: `B` as a tree of positive weights like the parameters, a number or a
      dense `(P, P)` array.
    - `mode`: `"search"` is the method above. `"fixed"` keeps `gamma = gamma0`, and
      `"power"` takes `lambda = constant |g|_*^(1 - power)`; both solve once, evaluate
      nothing, and halve `gamma` only where `C + lambda B` is not positive definite.
    - `power`, `constant`: 1 for a bounded change of the Hessian (`constant` bounds it),
      1/2 for an `L`-Lipschitz Hessian (`constant = sqrt(L / 2)`), 0 for
      quasi-self-concordant losses.
    - `smoothing`: in mode `"power"`, the decay of a running mean of the radius, for
      noisy gradients. Experimental: the theory is about exact ones.

    **Forms of curvature.** A dense `(P, P)` array over real coordinates, leaf after
    leaf; a function `v -> C v` of trees like the parameters; a Lineax operator; a pair
    `(J, r)` for `f = |r|^2 / (2 n)`, with `J` as an `(n, P)` array or a tree with
    leading axis `n`, so that `d = -J^T (J J^T + n lambda I)^-1 r`; `(J, None)` for
    `C = J^T J / n` and any gradient; a tree like the parameters, the diagonal; or a
    scalar `c`, for `C = c g g^T`.

    **Returns:** a transformation. Its extras are `obj_fn` (or `value_fn`) in mode
    `"search"`; `value`, if there is one at hand; and what the curvature is made of.

    **Raises:** [`pathax.optimizers.MissingExtraError`][] if one is not given;
    `ValueError` and `TypeError` for curvature that the solver can't take.

    **Cost.** A trial is one value and gradient, typically two a step. Besides, with `P`
    parameters: `"eigh"` about `9 P^3` once and `2 P^2` a trial, memory `2 P^2`;
    `"cholesky"` `P^3 / 3` a trial; `"rows"` `n^2 P + 9 n^3` once and `2 n P` a trial,
    memory `n P + n^2`; `"lanczos"` `j <= krylov_size` products and `4 j^2 P`, memory
    `(krylov_size + 1) P`; `"diag"` and `"rank_one"` `O(P)`. The state is one gradient.

    **Precision.** Vectors and matrices are in float32 at least. Where `-<g, d>` is
    below the rounding of `f`, the test above can't be decided, and a trial is accepted
    if it does not raise `f` beyond rounding and the gradient gets smaller; otherwise
    the step is zero and the radius stays. Trials that are not finite or meet negative
    curvature count as rejected; if all are, the step is zero and the radius small.

    **Reference:** "Gradient-Normalized Smoothness for Optimization with Approximate
    Hessians", arXiv:2506.13710 (Algorithm 1; Lemma 1 is the acceptance test). Unlike
    the authors' code, no failed trial is ever taken as a step.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> f = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> tx = px.optimizers.gradient_normalized_newton(curvature="hessian")
    >>> @jax.jit
    ... def step(x, state):
    ...     value, grad = optax.value_and_grad_from_state(f)(x, state=state)
    ...     d, state = tx.update(grad, state, x, value=value, obj_fn=f)
    ...     return optax.apply_updates(x, d), state
    >>> x = jnp.array([-1.2, 1.0])
    >>> state = tx.init(x)
    >>> for _ in range(50):
    ...     x, state = step(x, state)
    >>> bool(jnp.allclose(x, 1.0, atol=1e-4))
    True

    ```
    """
    _check(solver, mode, curvature, constant)
    settings = _Settings(gamma_min, gamma_max, mode, power, constant, smoothing)

    def init(params: PyTree) -> GNSState:
        dtype = real_dtype(params)
        return GNSState(
            count=jnp.zeros((), jnp.int32),
            gamma=jnp.asarray(gamma0, dtype),
            value=jnp.asarray(jnp.inf, dtype),
            grad=jax.tree.map(jnp.zeros_like, params),
            trials=jnp.zeros((), jnp.int32),
            rejected=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, GNSState]:
        params = require_params(params, _NAME)
        if not sum(p.size for p in jax.tree.leaves(params)):  # all masked
            return updates, state._replace(count=one_more(state.count))
        point = _start(updates, params, metric, mode, extra)
        found = find_curvature(
            curvature_fn, curvature, likelihood, solver, params, extra, _NAME
        )
        flat = whiten(read_curvature(found, point.space, solver), point.metric)
        shifted = build_solver(flat, point.g, solver, (krylov_size, krylov_tol))
        gamma = _radius(settings, state, point.norm)
        judge = _judge_value if mode == "search" else _judge_step
        trial = _search(point, shifted, gamma, judge, max_trials)
        step = jax.tree.map(
            lambda d, u: d.astype(u.dtype), point.move(trial.step), updates
        )
        rejected = trial.index - trial.accepted.astype(jnp.int32)
        return step, GNSState(
            count=one_more(state.count),
            gamma=_next_radius(settings, trial, gamma),
            value=trial.value,
            grad=trial.grad,
            trials=state.trials + trial.index,
            rejected=state.rejected + rejected,
        )

    return optax.GradientTransformationExtraArgs(init, update)
