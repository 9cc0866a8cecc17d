"""A network of linear layers, whose inputs have condition number 10^4."""

import functools

import jax.numpy as jnp
import numpy as np

from ._task import Task, network


@functools.cache
def deep_linear() -> Task:
    """Three linear layers that learn a random linear map; part of the variance left."""
    init, apply = network((16, 16, 16), 2, lambda x: x)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(256, 16)) * np.geomspace(1, 1e-2, 16)
    y = x @ rng.normal(size=(16, 16)) * 4 ** np.linspace(0, 1, 16)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    scale = float(jnp.mean(y**2))

    def residual(params, batch):
        return (apply(params, batch[0]) - batch[1]).ravel()

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    return Task(
        name="deep-linear",
        init=init,
        loss=loss,
        sample=lambda key: (x, y),
        metric=lambda params: 2 * loss(params, (x, y)) / scale,
        target=1e-5,
        limit=20_000,
        residual=residual,
        likelihood="gaussian",
    )
