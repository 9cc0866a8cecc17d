"""What the spatiotemporal operator was published with: its last layer and its residual.

Facts of torch-cfd 0.1.0, written down anew to be compared with. Neither is part of the
library: what the layer returns depends on how many frames are asked for, and the
residual is small for every field.
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px
from pathax.operators._spectral_conv import as_complex, restored, retained


class PublishedSTFNO(eqx.Module):
    """Our trunk with the published head, which samples a padded period."""

    trunk: px.operators.STFNO
    weight: jax.Array
    bias: jax.Array
    modes: tuple[int, ...] = eqx.field(static=True)
    delta: float = eqx.field(static=True, default=0.1)

    @classmethod
    def make(cls, modes: tuple[int, ...], *, key: Any, **options: Any):
        """Random parameters, as published: positive weights, no offset."""
        keys = jax.random.split(key)
        trunk = px.operators.STFNO(modes, key=keys[0], **options)
        shape = (*(2 * m for m in modes[:-1]), modes[-1], 2)
        weight = jax.random.uniform(keys[1], shape, maxval=0.5)
        trunk = eqx.tree_at(lambda t: t.head, trunk, None)
        return cls(trunk, weight, jnp.zeros(shape), tuple(modes))

    def __call__(self, frames: jax.Array, count: int) -> jax.Array:
        """The next `count` frames."""
        latent = self.trunk.latent(frames)
        z = jnp.concatenate([frames[-1:], latent])
        half = z.shape[0]
        z = jnp.moveaxis(jnp.concatenate([jnp.zeros_like(z), z]), 0, -1)[None]
        sums = math.prod(z.shape)  # the forward transform is a sum, the other a mean
        y = as_complex(self.weight) * (retained(z, self.modes)[0] * sums)
        y = y + self.delta * as_complex(self.bias)
        shape = (*z.shape[1:-1], count + 1 + half)
        y = restored((y / math.prod(shape))[None], self.modes, shape)[0]
        return frames[-1] + jnp.moveaxis(y[..., -count:], -1, 0)


@functools.partial(jax.jit, static_argnums=(1,))
def micro_step_residual(w: jax.Array, dt: float = 1e-6) -> jax.Array:
    """Mean square of the published residual in the dual norm, of one field.

    A step of the solver gives the time derivative that the same equation is then asked
    about: O(dt^2), whatever the field.
    """
    half = [_stepped(w, s * dt) for s in (-1.0, 1.0)]
    rate = (half[1][1] + half[0][1]) / 2
    mean = (half[1][0] + half[0][0]) / 2
    return dual_norm(rate - right_hand_side(mean))


def dual_norm(r: jax.Array) -> jax.Array:
    """The H^-1 norm of a spectrum, mean-normalized, without its mean."""
    n = r.shape[0]
    square = _numbers(n)[2]
    weight = np.where(square > 0, 1 / np.where(square > 0, square, 1), 0)
    weight[:, 1 : (n + 1) // 2] *= 2
    return jnp.sqrt(jnp.sum(weight * jnp.abs(r / n**2) ** 2))


def right_hand_side(w: jax.Array) -> jax.Array:
    """Of the forced vorticity equation, in spectra; viscosity 1e-3, unit torus."""
    square = _numbers(w.shape[0])[2]
    return _explicit(w) - 1e-3 * square * w


def _stepped(w: jax.Array, dt: float) -> tuple[jax.Array, jax.Array]:
    """One Crank-Nicolson step, and the difference over its length."""
    square = _numbers(w.shape[0])[2]
    decay = 1e-3 * dt / 2 * square
    new = ((1 - decay) * w + dt * _explicit(w)) / (1 + decay)
    return new, (new - w) / dt


def _numbers(n: int):
    kx = 2 * np.pi * np.fft.fftfreq(n, 1 / n)[:, None]
    ky = 2 * np.pi * np.arange(n // 2 + 1)[None]
    return kx, ky, kx**2 + ky**2


def _explicit(w: jax.Array) -> jax.Array:
    n = w.shape[0]
    kx, ky, square = _numbers(n)
    inverse = np.where(square > 0, 1 / np.where(square > 0, square, 1), 0)
    keep = (abs(kx) < 2 * np.pi * n / 3) & (ky < 2 * np.pi * n / 3)
    back = lambda y: jnp.fft.irfft2(y, (n, n))
    u, v = back(1j * ky * inverse * w), back(-1j * kx * inverse * w)
    advected = u * back(1j * kx * w) + v * back(1j * ky * w)
    x = np.arange(n) / n
    phase = 2 * np.pi * (x[:, None] + x[None])
    force = np.fft.rfft2(0.1 * (np.sin(phase) + np.cos(phase)))
    return jnp.where(keep, force - jnp.fft.rfft2(advected), 0)
