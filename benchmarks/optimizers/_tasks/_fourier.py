"""Fourier layers with complex weights that learn Burgers' equation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ._task import Task


WIDTH, MODES, POINTS = 16, 8, 64
TRAINED, BATCH, FIELDS = 256, 32, 320


def _init(key):
    keys = iter(jax.random.split(key, 8))
    real = lambda *shape: jax.random.normal(next(keys), shape)

    def mixed():
        shape = (MODES, WIDTH, WIDTH)
        return jax.lax.complex(real(*shape), real(*shape)) / WIDTH

    layer = lambda: {"modes": mixed(), "local": real(WIDTH, WIDTH) / WIDTH**0.5}
    return {
        "in": real(2, WIDTH),
        "layers": [layer() for _ in range(2)],
        "out": real(WIDTH, 1) / WIDTH,
    }


def _apply(params, u):
    place = jnp.linspace(0.0, 1.0, POINTS, endpoint=False)
    h = jnp.stack([u, place], axis=-1) @ params["in"]
    for layer in params["layers"]:
        spectrum = jnp.fft.rfft(h, axis=0)[:MODES]
        mixed = jnp.einsum("kio,ki->ko", layer["modes"], spectrum)
        rest = jnp.zeros((POINTS // 2 + 1 - MODES, WIDTH), mixed.dtype)
        mixed = jnp.concatenate([mixed, rest])
        h = jax.nn.gelu(jnp.fft.irfft(mixed, POINTS, axis=0) + h @ layer["local"])
    return (h @ params["out"])[:, 0]


@functools.cache
def fourier() -> Task:
    """Two layers; part of the variance that is left of fields kept apart."""
    x, y = _burgers_data()

    def residual(params, batch):
        found = jax.vmap(lambda u: _apply(params, u))(batch[0])
        return (found - batch[1]).ravel()

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    def sample(key):
        rows = jax.random.randint(key, (BATCH,), 0, TRAINED)
        return x[rows], y[rows]

    scale = float(jnp.mean(y[TRAINED:] ** 2))
    return Task(
        name="fourier",
        init=_init,
        loss=loss,
        sample=sample,
        metric=lambda params: 2 * loss(params, (x[TRAINED:], y[TRAINED:])) / scale,
        target=2e-3,
        every=10,
        limit=1_000,
        residual=residual,
        likelihood="gaussian",
    )


@functools.cache
def _burgers_data() -> tuple[jax.Array, jax.Array]:
    """Smooth random fields and what Burgers' equation makes of them by t = 0.3."""
    rng, viscosity, steps = np.random.default_rng(4), 0.02, 600
    modes = np.arange(POINTS // 2 + 1)
    wave = 2 * np.pi * modes
    size = np.exp(-0.5 * modes) * (modes > 0)
    noise = rng.normal(size=(2, FIELDS, len(modes)))
    start = np.fft.irfft((noise[0] + 1j * noise[1]) * size * POINTS, POINTS) / 2

    def slope(spectrum):
        flux = np.fft.rfft(np.fft.irfft(spectrum, POINTS) ** 2 / 2)
        flux = flux * (modes < POINTS // 3 + 1)  # against aliasing
        return -1j * wave * flux - viscosity * wave**2 * spectrum

    spectrum, dt = np.fft.rfft(start), 0.3 / steps
    for _ in range(steps):
        k1 = slope(spectrum)
        k2 = slope(spectrum + dt / 2 * k1)
        k3 = slope(spectrum + dt / 2 * k2)
        k4 = slope(spectrum + dt * k3)
        spectrum = spectrum + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    end = np.fft.irfft(spectrum, POINTS)
    return jnp.asarray(start, jnp.float32), jnp.asarray(end, jnp.float32)
