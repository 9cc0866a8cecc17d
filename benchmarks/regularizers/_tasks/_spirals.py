"""The equations of a spiral, ordinary and stochastic, learned from its points."""

import functools
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pathax as px

from ._task import Data, Task, explained, parts


POINTS = 30


class Field(eqx.Module):
    """One hidden layer, of the cubes, as published."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key)
        self.inner = eqx.nn.Linear(2, 50, key=keys[0])
        self.outer = eqx.nn.Linear(50, 2, key=keys[1])

    def __call__(self, x: Any) -> Any:
        """Of one state."""
        return self.outer(jnp.tanh(self.inner(x**3)))


def _grid(end: float) -> np.ndarray:
    return np.linspace(0, end, POINTS)


def _true(u: np.ndarray, a: float = 0.1, b: float = 2.0) -> np.ndarray:
    cube = u**3
    return np.stack(
        [-a * cube[:, 0] + b * cube[:, 1], -b * cube[:, 0] - a * cube[:, 1]], 1
    )


def _trajectories(seed: int) -> Data:
    """From a ring of initial points, by RK4 with steps that are short."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, 256), rng.uniform(1.0, 2.0, 256)
    u = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    start, out, fine = u, [u], 40
    h = 1.5 / (POINTS - 1) / fine
    for _ in range(POINTS - 1):
        for _ in range(fine):
            k1 = _true(u)
            k2 = _true(u + h / 2 * k1)
            k3 = _true(u + h / 2 * k2)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + _true(u + h * k3))
        out.append(u)
    return parts((start, np.stack(out, 1)), 64, 128)


def _predict(model: Field, batch: tuple, key: Any, run: Any) -> tuple:
    drift = dfx.ODETerm(lambda t, y, args: jax.vmap(model)(y))
    ts = jnp.asarray(_grid(1.5), batch[0].dtype)
    sol, record = run(drift, batch[0], end=1.5, ts=ts, key=key)
    return jnp.swapaxes(sol.ys, 0, 1), record


SPIRAL_ODE = Task(
    _trajectories,
    Field,
    _predict,
    lambda found, batch: jnp.mean((found - batch[1]) ** 2),
    lambda found, batch: explained(found, batch[1]),
    tolerance=1.4e-8,
    batch=16,
    learning_rate=1e-2,
    scale=0.03,
    max_steps=256,
    right=False,
)


class NoisyField(eqx.Module):
    """A drift of cubes and a linear, diagonal diffusion."""

    drift: Field
    noise: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key)
        self.drift = Field(keys[0])
        self.noise = eqx.nn.Linear(2, 2, key=keys[1])


@functools.cache
def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of 10,000 paths, by the Euler-Maruyama method."""
    rng, u, fine = np.random.default_rng(0), np.tile([2.0, 0.0], (10_000, 1)), 40
    h, out = 1 / (POINTS - 1) / fine, [u]
    for _ in range(POINTS - 1):
        for _ in range(fine):
            u = u + h * _true(u) + 0.2 * u * np.sqrt(h) * rng.normal(size=u.shape)
        out.append(u)
    paths = np.stack(out)
    return paths.mean(1), paths.var(1)


def _starts(seed: int) -> Data:
    """The same point for all paths: parts differ by their noise alone."""
    del seed
    return parts((np.tile([2.0, 0.0], (100 + 400 + 400, 1)),), 100, 500)


def _simulate(model: NoisyField, batch: tuple, key: Any, run: Any) -> tuple:
    y0 = batch[0]
    own, key = jax.random.split(key)
    path = px.brownian.VirtualBrownianTree(
        0.0, 2.0, 2.0**-11, y0.shape, own, levy_area=dfx.SpaceTimeLevyArea
    )
    drift = dfx.ODETerm(lambda t, y, args: jax.vmap(model.drift)(y))
    diffusion = lambda t, y, args: lx.DiagonalLinearOperator(jax.vmap(model.noise)(y))
    terms = dfx.MultiTerm(drift, dfx.ControlTerm(diffusion, path))
    sol, record = run(terms, y0, ts=jnp.asarray(_grid(1.0), y0.dtype), key=key)
    return (sol.ys.mean(1), sol.ys.var(1)), record


def _moment_loss(found: tuple, batch: tuple) -> Any:
    mean, variance = (jnp.asarray(x, batch[0].dtype) for x in _moments())
    return jnp.mean((found[0] - mean) ** 2) + jnp.mean((found[1] - variance) ** 2)


def _moment_score(found: tuple, batch: tuple) -> Any:
    target = (jnp.asarray(x, batch[0].dtype) for x in _moments())
    return explained(jnp.concatenate(found), jnp.concatenate(list(target)))


SPIRAL_SDE = Task(
    _starts,
    NoisyField,
    _simulate,
    _moment_loss,
    _moment_score,
    tolerance=1e-2,
    batch=100,
    learning_rate=1e-2,
    scale=0.03,
    double=False,
    noisy=True,
    chunk=400,
    max_steps=512,
    right=False,
)
