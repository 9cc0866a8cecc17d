"""Frames that were seen of a trajectory, and trajectories to begin with."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from . import _time_basis as time_basis
from ._grid import Grid
from ._refine import fitted
from ._responses import Pieces
from ._semilinear import banded
from ._space_time import SpaceTimeProblem


def pieces_of(problem: SpaceTimeProblem, start: Any) -> Pieces:
    """A trajectory to begin with, as polynomials that need not join."""
    function: Any = _between(*start) if isinstance(start, tuple | list) else start
    starts, c = fitted(problem, function)
    inside = jax.vmap(lambda w: banded(problem.grid, w))
    return Pieces(inside(starts), jax.vmap(inside)(c))


def _between(times: Any, frames: Any) -> Callable[[Array], Array]:
    """Frames and what lies linearly between them."""
    times, frames = jnp.asarray(times), jnp.asarray(frames)

    def at(t: Array) -> Array:
        flat = frames.reshape(len(times), -1)
        found = jax.vmap(lambda f: jnp.interp(t, times, f), 1, 1)(flat)
        return found.reshape(t.shape + frames.shape[1:])

    return at


class Observations(eqx.Module):
    """Frames, and what a trajectory would have shown instead."""

    slabs: Int[Array, " times"]
    table: Float[Array, "times degree"]
    frames: Float[Array, "times ..."]
    noise: Any
    observe: Callable[[Array], Array] = eqx.field(static=True)

    def spectra(self, pieces: Pieces) -> Complex[Array, "times *half"]:
        """Of the trajectory at the times of frames."""
        row = lambda c, row: time_basis.mix(row[None], c)[0]
        change = jax.vmap(row)(pieces.coefficients[self.slabs], self.table)
        return pieces.starts[self.slabs] + change

    def misfit(self, grid: Grid, pieces: Pieces) -> Float[Array, " data"]:
        """Over the noise, flattened."""
        return self.each(grid, pieces).reshape(-1)

    def each(self, grid: Grid, pieces: Pieces) -> Float[Array, "times data"]:
        """The same, frame by frame."""
        spectra = self.spectra(pieces)
        seen = jax.vmap(lambda w: self.observe(grid.irfft(w)))(spectra)
        return ((seen - self.frames) / self.noise).reshape(len(spectra), -1)


def slabs_of(times: np.ndarray, problem: SpaceTimeProblem) -> np.ndarray:
    slabs = np.ceil(times / problem.length - 1e-9).astype(int) - 1
    return np.clip(slabs, 0, problem.slabs - 1)


def members(times: np.ndarray, problem: SpaceTimeProblem):
    slabs = slabs_of(times, problem)
    found = [np.flatnonzero(slabs == i).tolist() for i in range(problem.slabs)]
    most = max(map(len, found))
    return tuple(tuple(m + [-1] * (most - len(m))) for m in found)


def observations(problem, times, frames, noise, observe) -> Observations:
    slabs = slabs_of(times, problem)
    local = times - slabs * problem.length
    table = time_basis.table("values", local, problem.degree, problem.length)
    table = jnp.asarray(table, problem.dtype)
    return Observations(jnp.asarray(slabs), table, frames, noise, observe)
