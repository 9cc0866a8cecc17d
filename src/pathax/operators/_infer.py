"""Parameters of an equation, its forcing or its start, from noisy frames."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from . import _time_basis as time_basis
from ._gauss_newton import gauss_newton_step
from ._iterations import Options, _change
from ._polynomial import PolynomialTrajectory
from ._refine import _check, refine
from ._space_time import Pairs, SpaceTimeProblem


class Inference(NamedTuple):
    """What frames say of parameters.

    **Attributes:**

    - `parameters`: the most likely ones.
    - `deviation`: their standard deviations, each with the others unknown as well.
    - `covariance`: of the flattened parameters, from the Gauss-Newton Hessian.
    - `trajectory`: the solution that belongs to them.
    - `misfit`: root mean square of what the frames differ by, over the noise; about one
      if equation and noise are right.
    - `eta`: the residual's norm.
    - `change`: size of each step, in standard deviations; NaN for steps not taken.
    - `converged`: whether the last step was small.
    """

    parameters: PyTree
    deviation: PyTree
    covariance: Float[Array, "p p"]
    trajectory: PolynomialTrajectory
    misfit: Float[Array, ""]
    eta: Float[Array, ""]
    change: Float[Array, " steps"]
    converged: Bool[Array, ""]


class _State(NamedTuple):
    theta: Float[Array, " p"]
    z: Pairs
    covariance: Float[Array, "p p"]
    change: Float[Array, ""]
    changes: Float[Array, " steps"]
    step: Array


def infer(
    make: Callable[[Any], SpaceTimeProblem],
    parameters: PyTree,
    times: Any,
    frames: Any,
    *,
    noise: float,
    observe: Callable[[Array], Array] | None = None,
    prior: tuple[PyTree, PyTree] | None = None,
    preconditioner: str = "blocks",
    sweep_steps: int = 40,
    tolerance: float = 1e-3,
    max_steps: int = 10,
    max_products: int = 100,
) -> Inference:
    r"""Fit parameters of a space-time problem to observations, with uncertainty.

    Minimizes, over parameters $\theta$ and trajectories $w$ that solve the problem of
    $\theta$,

    $$\frac{1}{\sigma^2} \sum_j \| H w(t_j) - y_j \|^2
      + \Bigl\| \frac{\theta - \theta_0}{\tau} \Bigr\|^2.$$

    Neither is solved for in the other: a step linearizes equation and observations
    about the present pair, finds how the trajectory answers to each parameter by the
    least squares of [`pathax.operators.refine`][], all at once, and moves both. The
    covariance is the inverse of the Gauss-Newton Hessian.

    **Arguments:**

    - `make`: from parameters to a [`pathax.operators.SpaceTimeProblem`][] of one slab;
      sizes must not depend on them. For what must be positive, let the parameter be a
      logarithm.
    - `parameters`: where to begin, a tree of float64 arrays.
    - `times`: of the frames, concrete.
    - `frames`: what was observed, one array a time.
    - `noise`: $\sigma$, independent and normal.
    - `observe`: $H$, a differentiable function of a field, such as
      `lambda w: w[::4, ::4]`; the field itself if `None`.
    - `prior`: trees $\theta_0$ and $\tau$, or `None`.
    - `preconditioner`: `"blocks"` or `"sweep"`, see [`pathax.operators.refine`][].
    - `sweep_steps`: of the march, if it is the second.
    - `tolerance`: the size of the last step, in standard deviations.
    - `max_steps`: at most so many.
    - `max_products`: with the Jacobian, in each of the problems of a step.

    **Returns:** an [`pathax.operators.Inference`][].

    **Raises:** `ValueError` in single precision, for several slabs and for frames that
    don't fit the times.

    **Cost:** a step is one linear least-squares problem a parameter and one more,
    solved together. Hence parameters should be few, tens at most.

    **Reference:** Nocedal and Wright, Numerical optimization, Springer 2006, section
    18.1 (steps that meet linearized constraints), with the Gauss-Newton Hessian.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> with jax.enable_x64(True):
    ...     grid = px.operators.Grid((16,), (2 * jnp.pi,))
    ...     initial = jnp.sin(grid.points()[0])
    ...     def make(log_viscosity):
    ...         heat = px.operators.Burgers(jnp.exp(log_viscosity))
    ...         return px.operators.SpaceTimeProblem(heat, grid, initial, 1.0)
    ...     frames = px.operators.integrate(
    ...         px.operators.Burgers(0.3), grid, initial, [0.5, 1.0], dt=0.01
    ...     )
    ...     found = px.operators.infer(
    ...         make, jnp.log(0.2), [0.5, 1.0], frames, noise=0.01
    ...     )
    >>> round(float(jnp.exp(found.parameters)), 4)
    0.3

    ```
    """
    frames, times = jnp.asarray(frames), np.asarray(times, np.float64)
    theta, unravel = ravel_pytree(parameters)
    problem = make(parameters)
    _check(problem, "gauss_newton", preconditioner)
    if problem.slabs != 1:
        raise ValueError(
            f"`infer` works on one slab; got {problem.slabs}. Write `slabs=1` and "
            "raise `degree`."
        )
    if times.ndim != 1 or frames.shape[:1] != times.shape:
        raise ValueError(
            f"`infer` needs one frame a time; got times of shape {times.shape} and "
            f"frames of shape {frames.shape}."
        )
    center, precision = theta, jnp.zeros_like(theta)
    if prior is not None:
        center = ravel_pytree(prior[0])[0]
        precision = 1 / ravel_pytree(prior[1])[0]
    table = time_basis.table("values", times, problem.degree, problem.length)
    observations = _Observations(table, frames, noise, observe or (lambda w: w))
    solver = _Solver(preconditioner, sweep_steps, max_products)
    return _infer(
        lambda theta: make(unravel(theta)),
        unravel,
        theta,
        (center, precision),
        observations,
        solver,
        (tolerance, max_steps),
    )


class _Solver(NamedTuple):
    preconditioner: str
    sweep_steps: int
    max_products: int


class _Observations(eqx.Module):
    """Frames, and what an equation's solution would have shown instead."""

    table: Float[np.ndarray, "times degree"] = eqx.field(converter=np.asarray)
    frames: Float[Array, "times ..."]
    noise: Any
    observe: Callable[[Array], Array] = eqx.field(static=True)

    def misfit(self, problem: SpaceTimeProblem, z: Pairs) -> Float[Array, " data"]:
        """Over the noise, flattened."""
        table = jnp.asarray(self.table, problem.dtype)
        spectra = time_basis.mix(table, problem.spectra(z)) + problem.initial[None]
        seen = jax.vmap(lambda w: self.observe(problem.grid.irfft(w)))(spectra)
        return ((seen - self.frames) / self.noise).reshape(-1)


_TIGHT = 1e-8  # of linear problems: sensitivities are to be exact


@eqx.filter_jit
def _infer(make, unravel, theta, prior, observations, solver, limits) -> Inference:
    tolerance, max_steps = limits
    center, precision = prior
    start = refine(
        make(theta),
        preconditioner=solver.preconditioner,
        sweep_steps=solver.sweep_steps,
        max_steps=4,
        max_products=solver.max_products,
    )
    z = make(theta).pairs(start.trajectory.coefficients[0])

    def advance(s: _State) -> _State:
        d, slopes = _responses(make, s.theta, s.z, solver)
        seen = lambda theta, z: observations.misfit(make(theta), z)
        r, jacobian = jax.linearize(seen, s.theta, s.z)
        eye = jnp.eye(theta.size, dtype=theta.dtype)
        r = r + jacobian(jnp.zeros_like(theta), d)
        columns = jax.vmap(jacobian)(eye, slopes)
        # Rows of the prior below those of the data; an orthogonal factor of both.
        rows = jnp.concatenate([columns.T, jnp.diag(precision)])
        right = jnp.concatenate([r, precision * (s.theta - center)])
        q, triangle = jnp.linalg.qr(rows)
        inverse = jax.scipy.linalg.solve_triangular(triangle, eye)
        whitened = q.T @ right
        step = -inverse @ whitened
        change = jnp.linalg.norm(whitened)
        moved = jnp.tensordot(step, slopes, 1)
        return _State(
            s.theta + step,
            s.z + d + moved,
            inverse @ inverse.T,
            change,
            s.changes.at[s.step].set(change),
            s.step + 1,
        )

    def unfinished(s: _State) -> Array:
        return (s.change > tolerance) & (s.step < max_steps)

    one = jnp.ones((), theta.dtype)
    nothing = jnp.full((theta.size, theta.size), jnp.nan, theta.dtype)
    changes = jnp.full((max_steps,), jnp.nan, theta.dtype)
    first = _State(theta, z, nothing, one * jnp.inf, changes, jnp.zeros((), jnp.int32))
    s = jax.lax.while_loop(unfinished, advance, first)
    problem = make(s.theta)
    misfit = observations.misfit(problem, s.z)
    return Inference(
        parameters=unravel(s.theta),
        deviation=unravel(jnp.sqrt(jnp.diag(s.covariance))),
        covariance=s.covariance,
        trajectory=PolynomialTrajectory(
            problem.initial[None],
            problem.spectra(s.z)[None],
            problem.grid,
            problem.horizon,
        ),
        misfit=jnp.sqrt(jnp.mean(misfit**2)),
        eta=problem.norm(problem.residual(s.z)),
        change=s.changes,
        converged=s.change <= tolerance,
    )


def _responses(make, theta, z, solver: _Solver) -> tuple[Pairs, Pairs]:
    """The step that solves the linearized equation, and slopes in the parameters."""
    problem = make(theta)
    residual = lambda theta, z: make(theta).residual(z)
    r, jacobian = jax.linearize(residual, theta, z)
    eye = jnp.eye(theta.size, dtype=theta.dtype)
    columns = jax.vmap(lambda e: jacobian(e, jnp.zeros_like(z)))(eye)
    right = jnp.concatenate([r[None], columns])
    options = Options("gauss_newton", *solver[:1], 0, 0, solver.sweep_steps)
    change, space = _change(problem, z, options)

    def solve(b: Array) -> Array:
        linear = lambda d: jacobian(jnp.zeros_like(theta), d) + b
        small = jnp.asarray(_TIGHT, b.dtype)
        start = jnp.zeros_like(z)
        found = gauss_newton_step(
            linear, start, change, space, small, solver.max_products
        )
        return found.direction

    found = jax.vmap(solve)(right)
    return found[0], found[1:]
