"""How a trajectory answers to small changes: marches of the linearized equation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from . import _time_basis as time_basis
from ._grid import scaled
from ._space_time import SpaceTimeProblem


Make = Callable[[Array], SpaceTimeProblem]


class Pieces(NamedTuple):
    """Polynomials in time, slab by slab, that need not join nor solve anything."""

    starts: Complex[Array, "slabs *half"]
    coefficients: Complex[Array, "slabs degree *half"]


class Causes(NamedTuple):
    """What a column of responses answers to."""

    theta: Float[Array, "columns p"]
    start: Complex[Array, "columns *half"]
    defect: Float[Array, " columns"]  # how much of the equation's defect is removed


def nodes(length: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of steps that end in Chebyshev points, and those ends and midpoints.

    A polynomial through these ends is as well determined as can be.
    """
    ends = length * (1 - np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    times = np.empty(2 * steps + 1)
    times[::2], times[1::2] = ends, (ends[1:] + ends[:-1]) / 2
    return np.diff(ends), times


def at_end(problem: SpaceTimeProblem, c: Array) -> Array:
    """What polynomials have gained at the end of their slab."""
    end = time_basis.table("values", [problem.length], problem.degree, problem.length)
    return time_basis.mix(jnp.asarray(end, problem.dtype), c)[0]


def marched(problem: SpaceTimeProblem, steps: int) -> Pieces:
    """The equation's solution by the same steps."""
    equation, grid, dtype = problem.equation, problem.grid, problem.initial.dtype
    lengths, times = nodes(problem.length, steps)
    linear = jnp.asarray(equation.linear(grid)).astype(dtype)
    slope = lambda w: equation.rhs(grid, w) - linear * w
    fit = time_basis.fit(times[2::2], problem.degree, problem.length)

    def advance(w: Array, h: Array) -> tuple[Array, Array]:
        half = jnp.exp(linear * (h / 2))
        whole = half * half
        k0 = slope(w)
        k1 = slope(half * (w + h / 2 * k0))
        k2 = slope(half * w + h / 2 * k1)
        k3 = slope(whole * w + h * half * k2)
        w = whole * w + h / 6 * (whole * k0 + 2 * half * (k1 + k2) + k3)
        return w, w

    def slab(start: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        __, found = jax.lax.scan(advance, start, jnp.asarray(lengths, dtype))
        c = time_basis.mix(jnp.asarray(fit, problem.dtype), found - start[None])
        c = problem.spectra(problem.pairs(c))
        return start + at_end(problem, c), (start, c)

    return Pieces(*jax.lax.scan(slab, problem.initial, None, length=problem.slabs)[1])


def march(
    make: Make, steps: int, theta: Array, start: Array, c: Array, causes: Causes
) -> Complex[Array, "columns degree *half"]:
    """Responses of the polynomials in one slab, all columns in one march.

    By a Runge-Kutta method of order four for the linearized equation, its linear part
    integrated exactly. A polynomial without defect has no response to it, however long
    the steps are: they limit how fast all converges, not what to.
    """
    problem = make(theta)
    equation, grid, dtype = problem.equation, problem.grid, problem.initial.dtype
    lengths, times = nodes(problem.length, steps)
    of = lambda kind: jnp.asarray(
        time_basis.table(kind, times, problem.degree, problem.length), problem.dtype
    )
    flow = start[None] + time_basis.mix(of("values"), c)
    rate = time_basis.mix(of("slopes"), c)
    linear = jnp.asarray(equation.linear(grid)).astype(dtype)
    half = jax.vmap(lambda h: jnp.exp(linear * h))(jnp.asarray(lengths / 2, dtype))
    right_side = lambda theta, w: make(theta).equation.rhs(grid, w)

    def slope(at: tuple[Array, Array], e: Array, cause: Causes) -> Array:
        """Of one column about a flow, without the linear part."""
        w, rate = at
        right, moved = jax.jvp(right_side, (theta, w), (cause.theta, e))
        return moved - linear * e + scaled(right - rate, cause.defect)

    def step(e: Array, cause: Causes, at: Any) -> Array:
        h, half, (w0, w1, w2), (r0, r1, r2) = at
        whole = half * half
        k0 = slope((w0, r0), e, cause)
        k1 = slope((w1, r1), half * (e + h / 2 * k0), cause)
        k2 = slope((w1, r1), half * e + h / 2 * k1, cause)
        k3 = slope((w2, r2), whole * e + h * half * k2, cause)
        return whole * e + h / 6 * (whole * k0 + 2 * half * (k1 + k2) + k3)

    def advance(e: Array, at: Any) -> tuple[Array, Array]:
        e = jax.vmap(step, in_axes=(0, 0, None))(e, causes, at)
        return e, e

    stages = lambda x: (x[:-1:2], x[1::2], x[2::2])
    at = jnp.asarray(lengths, dtype), half, stages(flow), stages(rate)
    _, found = jax.lax.scan(advance, causes.start, at)
    fit = time_basis.fit(times[2::2], problem.degree, problem.length)
    d = time_basis.mix(jnp.asarray(fit, problem.dtype), found - causes.start[None])
    band = grid.mask("2/3")
    return jnp.moveaxis(scaled(d, jnp.broadcast_to(band, d.shape)), 0, 1)


def in_turn(
    make: Make, steps: int, theta: Array, pieces: Pieces, causes: Causes
) -> Pieces:
    """Responses in all slabs, one after another; each with an axis of columns.

    Slabs are joined: where one ends, the next one begins.
    """
    problem = make(theta)
    part = causes.defect

    def slab(start: Array, at: Any) -> tuple[Array, tuple[Array, Array]]:
        begin, c, following = at
        here = causes._replace(start=start)
        d = march(make, steps, theta, begin, c, here)
        gap = begin + at_end(problem, c) - following
        ends = jax.vmap(lambda d: at_end(problem, d))(d)
        onward = start + ends + jax.vmap(lambda p: scaled(gap, p))(part)
        return onward, (start, d)

    starts, c = pieces
    following = jnp.concatenate([starts[1:], starts[-1:]])  # the last goes unused
    _, (begins, d) = jax.lax.scan(slab, causes.start, (starts, c, following))
    return Pieces(begins, d)


class Propagators(NamedTuple):
    """Responses of all slabs apart, each by itself, and how slabs fail to join.

    Columns are the defect's, one for each parameter in `named`, and two for each mode
    of the band in `inside`.
    """

    causes: Causes
    found: Complex[Array, "slabs columns degree *half"]
    gaps: Complex[Array, "slabs *half"]
    inside: Int[np.ndarray, " modes"]
    named: Int[np.ndarray, " named"]

    def coordinates(self, spectra: Array) -> Float[Array, "columns n"]:
        """Real ones, of modes in the band."""
        flat = spectra.reshape(len(spectra), -1)[:, self.inside]
        return jnp.concatenate([flat.real, flat.imag], axis=1)

    def spectra(self, coordinates: Array) -> Complex[Array, "columns *half"]:
        """The inverse."""
        units = self.causes.start[1 + self.named.size :]
        return time_basis.mix(coordinates, units)


def propagators(
    make: Make, steps: int, theta: Array, pieces: Pieces, explicit: np.ndarray
) -> Propagators:
    """Of all slabs together; parameters are those that the equation depends on."""
    problem = make(theta)
    inside = np.flatnonzero(problem.grid.mask("2/3").reshape(-1))
    shape, dtype = problem.initial.shape, problem.initial.dtype
    count, named = inside.size, np.flatnonzero(explicit)
    units = np.zeros((2 * count, int(np.prod(shape))), complex)
    units[np.arange(count), inside] = 1
    units[count + np.arange(count), inside] = 1j
    zero = jnp.zeros((1 + named.size, *shape), dtype)
    eye = np.zeros((1 + named.size + 2 * count, theta.size))
    eye[1 + np.arange(named.size), named] = 1
    causes = Causes(
        jnp.asarray(eye, theta.dtype),
        jnp.concatenate([zero, jnp.asarray(units, dtype).reshape(-1, *shape)]),
        jnp.zeros((len(eye),), theta.dtype).at[0].set(1),
    )
    respond = lambda start, c: march(make, steps, theta, start, c, causes)
    found = jax.vmap(respond)(*pieces)
    gaps = jax.vmap(lambda c: at_end(problem, c))(pieces.coefficients)
    gaps = pieces.starts + gaps - jnp.roll(pieces.starts, -1, axis=0)
    return Propagators(causes, found, gaps, inside, named)


def chained(problem: SpaceTimeProblem, by: Propagators, causes: Causes) -> Pieces:
    """What `in_turn` finds, from propagators: only products of matrices in turn."""
    known = [causes.defect[:, None], causes.theta[:, by.named]]

    def slab(start: Array, at: Any) -> tuple[Array, tuple[Array, Array]]:
        answers, gap = at
        weights = jnp.concatenate([*known, by.coordinates(start)], axis=1)
        d = time_basis.mix(weights, answers)
        ends = jax.vmap(lambda d: at_end(problem, d))(d)
        onward = start + ends + jax.vmap(lambda p: scaled(gap, p))(causes.defect)
        return onward, (start, d)

    _, (begins, d) = jax.lax.scan(slab, causes.start, (by.found, by.gaps))
    return Pieces(begins, d)


def reached(function: Callable, *leaves: Any) -> list[bool]:
    """Which arguments a result depends on, read off the program."""
    jaxpr = jax.make_jaxpr(function)(*leaves).jaxpr

    def reaches(argument: Any) -> bool:
        marked = {argument}
        known = lambda v: not hasattr(v, "val") and v in marked  # no literal
        for equation in jaxpr.eqns:
            if any(known(v) for v in equation.invars):
                marked |= set(equation.outvars)
        return any(known(v) for v in jaxpr.outvars)

    return [reaches(v) for v in jaxpr.invars]
