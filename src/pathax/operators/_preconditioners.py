"""Changes of variables in which a space-time problem is easy for Krylov methods.

Each is a linear map `S` from some space to coefficients, such that the Jacobian `J` of
the residual times `S` is nearly an isometry. Least squares are then solved for `y` with
`z = S y`; first-order methods descend in `y`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _time_basis as time_basis
from ._space_time import Pairs, SpaceTimeProblem


Map = Callable[[Pairs], Pairs]


def identity(problem: SpaceTimeProblem) -> tuple[Map, Pairs]:
    """No change at all; also returns a zero of the space that is mapped from."""
    return (lambda y: y), problem.persistence()


def mean_flow(problem: SpaceTimeProblem) -> Array:
    """The linear part together with transport by the mean of the initial field.

    About a field that is the same everywhere the linearized equation is diagonal, so
    that its response to a unit in all modes is its symbol.
    """
    grid, initial = problem.grid, problem.initial
    mean = jnp.zeros_like(initial).reshape(-1).at[0].set(initial.reshape(-1)[0])
    mean = mean.reshape(initial.shape)
    nonlinear = lambda w: problem.equation.nonlinear(grid, w)
    moved = jax.jvp(nonlinear, (mean,), (jnp.ones_like(initial),))[1]
    return jnp.asarray(problem.equation.linear(grid)).astype(moved.dtype) + moved


def blocks(problem: SpaceTimeProblem, symbol: Array | None = None) -> tuple[Map, Pairs]:
    """Exact for the linear part of the equation: a small matrix for each wavenumber.

    With `a_q` the row of `d/dt - L_k` at node `q`, the matrix is the inverse of a
    factor of `sum_q a_q a_q^H`, weighted as the norm is. Another symbol may be given.
    """
    linear = problem.equation.linear(problem.grid) if symbol is None else symbol
    weights = problem.weights() / np.sqrt(problem.grid.multiplicity())
    root = jnp.asarray(np.sqrt(problem.quadrature().weights), problem.dtype)
    slopes = jnp.asarray(problem.table("slopes"), problem.dtype)
    values = jnp.asarray(problem.table("values"), problem.dtype)
    inside = weights.reshape(-1) > 0
    flat = jnp.broadcast_to(linear, problem.initial.shape).reshape(-1)
    flat = flat.astype(problem.dtype) if not jnp.iscomplexobj(flat) else flat
    size = jnp.asarray(np.where(inside, weights.reshape(-1), 1.0), problem.dtype)

    def factor(symbol: Array, size: Array) -> Array:
        scale = (root[:, None] * size).astype(symbol.dtype)
        rows = slopes.astype(symbol.dtype) - symbol * values.astype(symbol.dtype)
        rows = scale * rows
        # From the rows themselves, as their products would square the condition.
        triangle = jnp.linalg.qr(rows, mode="r")
        eye = jnp.eye(problem.degree, dtype=triangle.dtype)
        return jax.scipy.linalg.solve_triangular(triangle, eye)

    inverses = jax.vmap(factor)(flat, size)
    inverses = jnp.where(inside[:, None, None], inverses, 0)
    parts = (inverses.real, inverses.imag if jnp.iscomplexobj(inverses) else None)

    def apply(y: Pairs) -> Pairs:
        real, imaginary = y.reshape(2, problem.degree, -1)
        of = lambda part, x: jnp.einsum("kmn,nk->mk", part, x, precision="highest")
        if parts[1] is None:
            out = of(parts[0], real), of(parts[0], imaginary)
        else:
            out = (
                of(parts[0], real) - of(parts[1], imaginary),
                of(parts[0], imaginary) + of(parts[1], real),
            )
        return jnp.stack(out).reshape(y.shape)

    return apply, problem.persistence()


def sweep(problem: SpaceTimeProblem, z: Pairs, steps: int) -> tuple[Map, Pairs]:
    """Marching the equation, linearized about the present trajectory, once through.

    From a residual to the change of the trajectory that removes it, by so many steps of
    a Runge-Kutta method of order four with the linear part integrated exactly. It sees
    advection, which `blocks` does not, and costs as much as a solver.
    """
    equation, grid = problem.equation, problem.grid
    step = problem.length / steps
    times = np.linspace(0.0, problem.length, 2 * steps + 1)
    between = time_basis.interpolation(problem.quadrature().nodes, times)
    between = jnp.asarray(between, problem.dtype)
    table = time_basis.table("values", times, problem.degree, problem.length)
    flow = problem.initial[None] + time_basis.mix(
        jnp.asarray(table, problem.dtype), problem.spectra(z)
    )
    to_coefficients = time_basis.fit(times[2::2], problem.degree, problem.length)
    to_coefficients = jnp.asarray(to_coefficients, problem.dtype)
    linear = jnp.asarray(equation.linear(grid)).astype(problem.initial.dtype)
    half = jnp.exp(linear * (step / 2))
    whole = half * half

    def slope(w: Array, source: Array, e: Array) -> Array:
        """Of the change `e` about the flow `w`, its linear part apart."""
        nonlinear = lambda w: equation.nonlinear(grid, w)
        return jax.jvp(nonlinear, (w,), (e,))[1].astype(e.dtype) + source

    def advance(e: Array, at: Any) -> tuple[Array, Array]:
        (w0, w1, w2), (r0, r1, r2) = at
        k0 = slope(w0, r0, e)
        k1 = slope(w1, r1, half * (e + step / 2 * k0))
        k2 = slope(w1, r1, half * e + step / 2 * k1)
        k3 = slope(w2, r2, whole * e + step * half * k2)
        e = whole * e + step / 6 * (whole * k0 + 2 * half * (k1 + k2) + k3)
        return e, e

    def stages(x: Array) -> tuple[Array, Array, Array]:
        return x[:-1:2], x[1::2], x[2::2]

    def apply(y: Pairs) -> Pairs:
        sources = time_basis.mix(between, problem.unmeasured(y))
        start = jnp.zeros_like(problem.initial)
        _, found = jax.lax.scan(advance, start, (stages(flow), stages(sources)))
        return problem.pairs(time_basis.mix(to_coefficients, found))

    space = jnp.zeros((2, problem.nodes, *problem.initial.shape), problem.dtype)
    return apply, space


def steps_for(problem: SpaceTimeProblem, speed: float, courant: float = 2.0) -> int:
    """How many steps a sweep takes so that a Courant number isn't exceeded."""
    spacing = min(
        length / size
        for length, size in zip(problem.grid.lengths, problem.grid.shape, strict=True)
    )
    largest = np.pi / spacing * 2 / 3
    steps = int(np.ceil(problem.length * speed * largest / courant))
    return max(steps, 2 * problem.degree)
