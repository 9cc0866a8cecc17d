"""Flows to refine: made on the spot, with their ends from a solver of high order."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px


ops = px.operators


class Flow(NamedTuple):
    """Frames of one kind of flow, the window after the last of those that come in."""

    equation: ops.NavierStokes
    grid: ops.Grid
    horizon: float
    frames: np.ndarray  # (flows, t_in, *grid), the last at time zero
    after: np.ndarray  # (flows, t_out, *grid)


FRAMES, GAP = 10, 0.2


@functools.cache
def forced(flows: int, size: int = 64, warm_up: float = 10.0) -> Flow:
    """The forced flow that operators are trained on: ten frames in, ten out."""
    with jax.enable_x64(True):
        grid = ops.Grid((size, size), (1.0, 1.0))
        equation = ops.NavierStokes(1e-3, source=ops.diagonal_forcing(grid))
        times = warm_up + GAP * np.arange(2 * FRAMES)
        run = jax.jit(
            lambda key: ops.integrate(
                equation, grid, ops.gaussian_field(key, grid), times, dt=0.02
            )
        )
        every = np.stack(
            [run(key) for key in jax.random.split(jax.random.key(0), flows)]
        )
        return Flow(equation, grid, FRAMES * GAP, every[:, :FRAMES], every[:, FRAMES:])


@functools.cache
def decaying(size: int, seed: int = 0) -> Flow:
    """Decaying turbulence over ten frames, of one flow."""
    with jax.enable_x64(True):
        grid = ops.Grid((size, size), (2 * np.pi, 2 * np.pi))
        equation = ops.NavierStokes(1e-3)
        initial = ops.mcwilliams_vorticity(jax.random.key(seed), grid)
        start = ops.integrate(equation, grid, initial, [4.5], dt=4e-3)
        times = 0.055 * np.arange(1, 11)
        end = ops.integrate(equation, grid, start[0], times, dt=0.055 / 20)
        return Flow(
            equation, grid, 0.55, np.asarray(start)[None], np.asarray(end)[None]
        )


def problem(
    flow: Flow, index: int, degree: int, slabs: int = 1
) -> ops.SpaceTimeProblem:
    """Of one flow, from its last frame that comes in."""
    return ops.SpaceTimeProblem(
        flow.equation,
        flow.grid,
        jnp.asarray(flow.frames[index, -1]),
        flow.horizon,
        degree=degree,
        slabs=slabs,
    )


def frame_times(flow: Flow) -> np.ndarray:
    """Of what comes after."""
    count = flow.after.shape[1]
    return flow.horizon * np.arange(1, count + 1) / count


def error(flow: Flow, index: int, trajectory) -> float:
    """Relative, in L2, over all frames that come after."""
    found = np.asarray(trajectory(jnp.asarray(frame_times(flow))))
    wanted = flow.after[index]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
