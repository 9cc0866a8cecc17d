"""Data that operators are trained on, made on the spot with an integrating factor."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def _march(rate, nonlinear, dt: float, steps: int):
    """Fourth-order Runge-Kutta steps of `y' = rate y + nonlinear(y)`, in spectra."""
    half = np.exp(rate * dt / 2)
    whole = half * half

    def step(_, y):
        a = nonlinear(y)
        b = nonlinear(half * (y + dt / 2 * a))
        c = nonlinear(half * y + dt / 2 * b)
        d = nonlinear(whole * y + dt * half * c)
        return whole * y + dt / 6 * (whole * a + 2 * half * (b + c) + d)

    return lambda y: jax.lax.fori_loop(0, steps, step, y)


# Burgers ------------------------------------------------------------------------------


@functools.cache
def burgers(count: int, n: int = 256, viscosity: float = 0.01, seed: int = 0):
    """Smooth random fields on the unit circle and Burgers' solution at time one."""
    k = 2 * np.pi * np.arange(n // 2 + 1)
    keep = k < 2 * np.pi * n / 3

    def nonlinear(y):
        u = jnp.fft.irfft(y, n)
        return jnp.where(keep, -0.5j * k * jnp.fft.rfft(u * u), 0)

    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        modes = np.arange(1, 9)
        shape = (count, modes.size, 1)
        scale = (1 / (1 + (modes / 3) ** 2))[None, :, None]
        waves = 2 * np.pi * modes[:, None] * np.arange(n) / n
        a, b = rng.normal(size=(2, *shape)) * scale
        start = 0.7 * (a * np.cos(waves) + b * np.sin(waves)).sum(1)
        solve = _march(-viscosity * k**2, nonlinear, 1 / 800, 800)
        end = jax.jit(jax.vmap(lambda u: jnp.fft.irfft(solve(jnp.fft.rfft(u)), n)))
        return np.float32(start), np.asarray(end(start), np.float32)


# Forced flow --------------------------------------------------------------------------


def _frequencies(n: int):
    kx = 2 * np.pi * np.fft.fftfreq(n, 1 / n)[:, None]
    ky = 2 * np.pi * np.arange(n // 2 + 1)[None]
    return kx, ky, kx**2 + ky**2


def _start(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Gaussian random fields of mean zero, decaying like |m|^-2.5 beyond 7."""
    _, _, square = _frequencies(n)
    noise = np.fft.rfft2(rng.normal(size=(count, n, n)))
    spectrum = math.sqrt(2) * 7**1.5 * (square + 49) ** -1.25
    spectrum[0, 0] = 0
    return np.fft.irfft2(noise * spectrum, (n, n)) * n


@functools.cache
def forced_flow(
    count: int, n: int, frames: int = 50, gap: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Vorticity of forced two-dimensional flow, `(count, frames, n, n)`.

    Viscosity 1e-3, forcing 0.1 (sin + cos)(2 pi (x + y)) on the unit torus, after ten
    units of time.
    """
    kx, ky, square = _frequencies(n)
    inverse = np.where(square > 0, 1 / np.where(square > 0, square, 1), 0)
    keep = (abs(kx) < 2 * np.pi * n / 3) & (ky < 2 * np.pi * n / 3)
    grid = np.arange(n) / n
    phase = 2 * np.pi * (grid[:, None] + grid[None])
    force = np.fft.rfft2(0.1 * (np.sin(phase) + np.cos(phase)))

    def nonlinear(w):
        back = lambda y: jnp.fft.irfft2(y, (n, n))
        u, v = back(1j * ky * inverse * w), back(-1j * kx * inverse * w)
        advected = u * back(1j * kx * w) + v * back(1j * ky * w)
        return jnp.where(keep, force - jnp.fft.rfft2(advected), 0)

    with jax.enable_x64(True):
        start = np.fft.rfft2(_start(np.random.default_rng(seed), count, n))
        steps = max(1, round(gap / 0.02))
        warm = _march(-1e-3 * square, nonlinear, 0.02, 500)
        step = _march(-1e-3 * square, nonlinear, gap / steps, steps)

        def solve(w):
            scan = lambda w, _: (step(w), jnp.fft.irfft2(w, (n, n)))
            return jax.lax.scan(scan, warm(w), None, frames)[1]

        return np.asarray(jax.jit(lambda w: jax.lax.map(solve, w))(start), np.float32)
