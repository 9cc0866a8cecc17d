"""From a rough trajectory to one that solves its equation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from . import _time_basis as time_basis
from ._iterations import Options, Progress, descend, gauss_newton
from ._polynomial import PolynomialTrajectory
from ._preconditioners import steps_for
from ._space_time import SpaceTimeProblem


class RefineResult(eqx.Enumeration):
    """How a refinement ended.

    **Attributes:**

    - `converged`: the residual is as small as was asked for.
    - `stalled`: no step makes it smaller by a tenth: the floor of polynomials of this
      degree, or of rounding, or a start that is too far away.
    - `max_steps`: it was still falling.
    - `not_finite`: there was a NaN or an infinity.
    """

    converged = "The residual is as small as was asked for."
    stalled = (
        "The residual falls no more. If it is too large, raise `degree` or `slabs`; "
        "else this is the floor of rounding."
    )
    max_steps = "The residual was still falling; raise `max_steps`."
    not_finite = "There was a NaN or an infinity; raise `slabs`."


class Refinement(NamedTuple):
    """What a refinement found, and what it took.

    **Attributes:**

    - `trajectory`: a [`pathax.operators.PolynomialTrajectory`][].
    - `eta`: norms of the residual before the first and after each step, one row a slab;
      NaN for steps that were not taken.
    - `products`: products with the Jacobian in each step, and as many with its
      transpose.
    - `ffts`: transforms of one field each, of all steps.
    - `result`: one for each slab, a [`pathax.operators.RefineResult`][].
    """

    trajectory: PolynomialTrajectory
    eta: Float[Array, "slabs steps"]
    products: Int[Array, "slabs steps"]
    ffts: Float[Array, ""]
    result: Any


METHODS = ("gauss_newton", "picard", "lbfgs", "adam")
PRECONDITIONERS = ("blocks", "mean_flow", "sweep", "none")


def refine(
    problem: SpaceTimeProblem,
    start: Any = None,
    *,
    method: str = "gauss_newton",
    preconditioner: str = "blocks",
    rtol: float = 1e-9,
    max_steps: int | None = None,
    max_products: int = 60,
    sweep_steps: int | None = None,
    learning_rate: Any = 1e-3,
) -> Refinement:
    r"""Make a trajectory solve its equation, starting from a network's or any other.

    Minimizes the residual $\eta$ of [`pathax.operators.SpaceTimeProblem`][] over all
    polynomials in time. The residual is quadratic in them where the equation's
    nonlinearity is, and zero at the solution, so Gauss-Newton converges quadratically.

    **Arguments:**

    - `problem`: equation, initial field and window.
    - `start`: a function of an array of times that returns fields, such as the
      trajectory of an [`pathax.operators.STFNO`][]; or a pair of times and frames; or
      `None`, for a field that stays as it is.
    - `method`: `"gauss_newton"`; `"picard"`, which freezes what carries the flow, so
      that each step is a convex problem (for equations with a method `advect`);
      `"lbfgs"`; or `"adam"`.
    - `preconditioner`: the change of variables the method works in. `"blocks"` is exact
      for the linear part of the equation; `"mean_flow"` also for transport by the mean
      of the initial field, which vorticity doesn't have; `"sweep"` marches the
      linearized equation once, which costs more and sees advection (for the first two
      methods); `"none"`.
    - `rtol`: when to end, as a part of the residual of the field that stays as it is.
    - `max_steps`: at most so many steps a slab, 0 for a mere fit of the start; if
      `None`, 6 for the first two methods, 50 for `"lbfgs"` and 100 for `"adam"`.
    - `max_products`: products with the Jacobian in a step.
    - `sweep_steps`: of the march in a slab; found from the speed of the initial field
      if `None`, which then must not be traced.
    - `learning_rate`: of `"adam"`, a number or an Optax schedule.

    **Returns:** a [`pathax.operators.Refinement`][].

    **Raises:** `ValueError` for names that don't exist, and in single precision, in
    which time derivatives lose what a refinement is to gain.

    **Cost:** a product with the Jacobian, and one with its transpose, take as many
    transforms as a residual does: for two-dimensional flow five a node. Under
    `jax.vmap` trajectories that have converged change no more while others go on.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner: accurate fine-tuning of
    spatiotemporal Fourier neural operator for turbulent flows, ICLR 2025, whose last
    layer is refined by Adam.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> with jax.enable_x64(True):
    ...     grid = px.operators.Grid((16, 16), (2 * jnp.pi,) * 2)
    ...     x, y = grid.points()
    ...     swirl = 2 * jnp.cos(x) * jnp.cos(y)
    ...     problem = px.operators.SpaceTimeProblem(
    ...         px.operators.NavierStokes(viscosity=0.1), grid, swirl, 1.0, degree=8
    ...     )
    ...     found = px.operators.refine(problem)
    ...     error = jnp.abs(found.trajectory(1.0) - swirl * jnp.exp(-0.2)).max()
    ...     print(error < 1e-9)
    True

    ```
    """
    _check(problem, method, preconditioner)
    if max_steps is None:
        max_steps = {"lbfgs": 50, "adam": 100}.get(method, 6)
    if preconditioner == "sweep" and sweep_steps is None:
        sweep_steps = _sweep_steps(problem)
    starts = start_coefficients(problem, start)
    options = Options(method, preconditioner, max_steps, max_products, sweep_steps)
    if not callable(learning_rate):  # as arrays, numbers don't compile anew
        learning_rate = jnp.asarray(learning_rate, problem.dtype)
    goal = jnp.asarray(rtol, problem.dtype)
    return _refine(problem, starts, learning_rate, goal, options)


def _check(problem: SpaceTimeProblem, method: str, preconditioner: str) -> None:
    if problem.dtype != np.float64:
        raise ValueError(
            "`refine` works in double precision: a residual in float32 says little "
            f"below an error of 1e-5. The initial field is {problem.dtype.name}; write "
            '`jax.config.update("jax_enable_x64", True)` at the start of the program '
            "and make the field float64."
        )
    for name, value, known in (
        ("method", method, METHODS),
        ("preconditioner", preconditioner, PRECONDITIONERS),
    ):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, known))}; got {value!r}."
            )
    if preconditioner == "sweep" and method in ("lbfgs", "adam"):
        raise ValueError(
            "A sweep is made anew at each step, so it goes with Gauss-Newton and "
            'Picard steps; write `preconditioner="blocks"`.'
        )
    if method == "picard" and not hasattr(problem.equation, "advect"):
        raise ValueError(
            "Picard steps freeze what carries the flow, for which the equation needs a "
            f"method `advect(grid, by, what)`; {type(problem.equation).__name__} has "
            'none. Write `method="gauss_newton"`.'
        )


def _sweep_steps(problem: SpaceTimeProblem) -> int:
    speed = getattr(problem.equation, "speed", None)
    if speed is None:
        return 4 * problem.degree
    try:
        return steps_for(problem, float(speed(problem.grid, problem.initial)))
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "The number of steps of a sweep is static and the initial field is traced; "
            "write `refine(..., sweep_steps=40)`, say."
        ) from error


# Starts -----------------------------------------------------------------------------


def start_coefficients(
    problem: SpaceTimeProblem, start: Any
) -> Complex[Array, "slabs degree *half"]:
    """Of the polynomials nearest to a start at the nodes of all slabs."""
    shape = (problem.slabs, problem.degree, *problem.initial.shape)
    if start is None:
        return jnp.zeros(shape, problem.initial.dtype)
    if isinstance(start, PolynomialTrajectory) and start.coefficients.shape == shape:
        return start.coefficients
    if isinstance(start, tuple | list):
        return _from_frames(problem, *start)
    if not callable(start):
        raise TypeError(
            "`start` must be a function of an array of times, a pair of times and "
            f"frames, or `None`; got {type(start).__name__}."
        )
    function: Any = start
    return fitted(problem, function)[1]


def fitted(
    problem: SpaceTimeProblem, start: Callable[[Array], Array]
) -> tuple[Complex[Array, "slabs *half"], Complex[Array, "slabs degree *half"]]:
    """A function of times as polynomials in each slab: where they begin, and how on."""
    nodes = np.concatenate([[0.0], problem.quadrature().nodes])
    times = problem.length * np.arange(problem.slabs)[:, None] + nodes[None]
    fields = jnp.asarray(start(jnp.asarray(times.reshape(-1))), problem.dtype)
    wanted = (times.size, *problem.grid.shape)
    if fields.shape != wanted:
        raise ValueError(
            f"`start` must return fields of shape {wanted} for {times.size} times; got "
            f"{fields.shape}."
        )
    spectra = jax.vmap(problem.grid.rfft)(fields)
    spectra = spectra.reshape(*times.shape, *problem.initial.shape)
    fit = time_basis.fit(nodes[1:], problem.degree, problem.length)
    change = spectra[:, 1:] - spectra[:, :1]
    fit = jnp.asarray(fit, problem.dtype)
    return spectra[:, 0], jax.vmap(lambda x: time_basis.mix(fit, x))(change)


def _from_frames(problem: SpaceTimeProblem, times: Any, frames: Any) -> Array:
    """A polynomial through frames (and the initial field), in least squares."""
    times = np.asarray(times, np.float64)
    frames = jnp.asarray(frames, problem.dtype)
    if frames.shape != (times.size, *problem.grid.shape):
        raise ValueError(
            "`start=(times, frames)` needs one field of shape "
            f"{problem.grid.shape} a time; got {times.size} times and frames of shape "
            f"{frames.shape}."
        )
    degree = min(problem.degree, times.size)
    fit = time_basis.fit(times, degree, problem.horizon)
    change = jax.vmap(problem.grid.rfft)(frames) - problem.initial[None]
    fitted = time_basis.mix(jnp.asarray(fit, problem.dtype), change)
    rough = PolynomialTrajectory(
        problem.initial[None], fitted[None], problem.grid, problem.horizon
    )
    return start_coefficients(problem, rough)


# Slabs ------------------------------------------------------------------------------


@eqx.filter_jit
def _refine(
    problem: SpaceTimeProblem,
    starts: Complex[Array, "slabs degree *half"],
    learning_rate: Any,
    rtol: Float[Array, ""],
    options: Options,
) -> Refinement:
    """One slab after another, each from where the last one ended."""
    end = [problem.length], problem.degree, problem.length
    end = jnp.asarray(time_basis.table("values", *end), problem.dtype)

    def slab(begin: Array, c: Array) -> tuple[Array, tuple]:
        here = problem.beginning_at(begin)
        goal = rtol * here.norm(here.residual(here.persistence()))
        iterate = descend if options.method in ("lbfgs", "adam") else gauss_newton
        out = iterate(here, here.pairs(c), goal, options, learning_rate)
        c = here.spectra(out.z)
        found = begin, c, out.etas, out.products, out.ffts, _result(out, goal)
        return begin + time_basis.mix(end, c)[0], found

    _, found = jax.lax.scan(slab, problem.initial, starts)
    begins, c, etas, products, transforms, result = found
    trajectory = PolynomialTrajectory(begins, c, problem.grid, problem.horizon)
    return Refinement(trajectory, etas, products, transforms.sum(), result)


def _result(out: Progress, goal: Array) -> Any:
    kind = RefineResult
    result = kind.where(out.stalled, kind.stalled, kind.max_steps)
    result = kind.where(out.eta <= goal, kind.converged, result)
    return kind.where(jnp.isfinite(out.eta), result, kind.not_finite)
