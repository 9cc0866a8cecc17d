"""Parameters of an equation, its forcing or its start, from noisy frames."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from ._all_at_once import Inference, Plan, fit
from ._observed import members, observations, pieces_of
from ._refine import _check
from ._responses import reached
from ._space_time import SpaceTimeProblem


def infer(
    make: Callable[[Any], SpaceTimeProblem],
    parameters: PyTree,
    times: Any,
    frames: Any,
    *,
    noise: float,
    observe: Callable[[Array], Array] | None = None,
    prior: tuple[PyTree, PyTree] | None = None,
    start: Any = None,
    jumps: Any = (),
    sweep_steps: int | None = None,
    together: bool | None = None,
    tolerance: float = 1e-2,
    max_steps: int = 20,
) -> Inference:
    r"""Fit parameters of a space-time problem to observations, with uncertainty.

    Minimizes, over parameters $\theta$ and trajectories $w$ that solve the problem of
    $\theta$,

    $$\frac{1}{\sigma^2} \sum_j \| H w(t_j) - y_j \|^2
      + \Bigl\| \frac{\theta - \theta_0}{\tau} \Bigr\|^2.$$

    Neither is solved for in the other: a Gauss-Newton step linearizes equation and
    observations about the present pair, finds how the trajectory answers to its own
    residual and to each parameter, and moves both. The covariance is the inverse of the
    Gauss-Newton Hessian. As the trajectory begins near what was seen, at all times,
    long windows of chaotic flow can be fitted, on which marching from a start that is
    a little wrong says nothing.

    **Arguments:**

    - `make`: from parameters to a [`pathax.operators.SpaceTimeProblem`][]; sizes must
      not depend on them. For what must be positive, let the parameter be a logarithm.
    - `parameters`: where to begin, a tree of float64 arrays. Those of the initial field
      are parameters as any other, such as the amplitudes of its modes.
    - `times`: of the frames, concrete; zero is allowed.
    - `frames`: what was observed, one array a time.
    - `noise`: $\sigma$, independent and normal.
    - `observe`: $H$, a differentiable function of a field, such as
      `lambda w: w[::4, ::4]`; the field itself if `None`.
    - `prior`: trees $\theta_0$ and $\tau$, or `None`.
    - `start`: a trajectory to begin with, as in [`pathax.operators.refine`][]: a
      function of times, or a pair of times and fields, with straight lines between
      them; it need not solve anything. If `None`, the solution of `parameters`.
    - `jumps`: standard deviations of what the trajectory may jump by between slabs in
      the first steps, one step each, in amplitudes of modes; such as
      `jnp.geomspace(0.3, 1e-3, 10)`. For chaotic flow, with a `start` from frames.
    - `sweep_steps`: of the march that finds answers in a slab, twice the degree if
      `None`. It decides how fast steps converge, not what to.
    - `together`: whether answers in all slabs are found at once, from each of their
      modes, or one slab after another, from each parameter. If `None`, whichever
      takes fewer columns.
    - `tolerance`: how far the last step may move what is seen, in units of the noise.
    - `max_steps`: at most so many, those with jumps apart.

    **Returns:** an [`pathax.operators.Inference`][].

    **Raises:** `ValueError` in single precision, for a single slab that should jump,
    for marches that are too short and for frames that don't fit the times.

    **Cost:** of a step, a march of the linearized equation with a column for each
    parameter; or, with jumps or `together`, one for each mode of the band in each slab,
    all slabs at once. Hence parameters should be some hundreds at most, and jumps are
    for one dimension and for small grids in two.

    **Reference:** Albersmeyer and Diehl, The lifted Newton method and its application
    in optimization, SIAM Journal on Optimization 20 (2010), for steps that cost as
    much as those through a solver; Tremolet, Accounting for an imperfect model in
    4D-Var, Quarterly Journal of the Royal Meteorological Society 132 (2006), for jumps.

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
    steps = 2 * problem.degree if sweep_steps is None else sweep_steps
    jumps = jnp.asarray(jumps, theta.dtype)
    _check(problem, "gauss_newton", "blocks")
    _check_sizes(problem, times, frames, steps, jumps)
    center, precision = theta, jnp.zeros_like(theta)
    if prior is not None:
        center = ravel_pytree(prior[0])[0]
        precision = 1 / ravel_pytree(prior[1])[0]
    explicit = _explicit(make, parameters)
    columns = 1 + explicit.sum() + 2 * int(problem.grid.mask("2/3").sum())
    if together is None:
        together = problem.slabs > 1 and columns <= 1.2 * (1 + theta.size)
    plan = Plan(
        sweep_steps=steps,
        explicit=tuple(map(bool, explicit)),
        together=bool(together),
        members=members(times, problem),
        tolerance=tolerance,
        max_steps=max_steps,
    )
    return fit(
        lambda theta: make(unravel(theta)),
        unravel,
        theta,
        None if start is None else pieces_of(problem, start),
        (center, precision),
        observations(problem, times, frames, noise, observe or (lambda w: w)),
        plan,
        jumps,
    )


def _check_sizes(problem, times, frames, steps: int, jumps: Array) -> None:
    if times.ndim != 1 or frames.shape[:1] != times.shape:
        raise ValueError(
            f"`infer` needs one frame a time; got times of shape {times.shape} and "
            f"frames of shape {frames.shape}."
        )
    if steps < problem.degree:
        raise ValueError(
            "`sweep_steps` must be at least the degree of the polynomials, "
            f"{problem.degree}; got {steps}."
        )
    if jumps.size and problem.slabs < 3:
        raise ValueError(
            "`jumps` are between slabs, of which there must be at least three; got "
            f"{problem.slabs}. Write `SpaceTimeProblem(..., slabs=...)`, one for each "
            "frame, say."
        )


def _explicit(
    make: Callable[[Any], SpaceTimeProblem], parameters: PyTree
) -> Bool[np.ndarray, " p"]:
    """Which of the flattened parameters the equation depends on, not just the start."""
    leaves, tree = jax.tree.flatten(parameters)

    def equation(*leaves: Any) -> list[Array]:
        made = make(jax.tree.unflatten(tree, leaves)).equation
        return jax.tree.leaves(eqx.filter(made, eqx.is_array))

    sizes = [jnp.size(leaf) for leaf in leaves]
    return np.repeat(np.array(reached(equation, *leaves), bool), sizes)
