"""Classifiers of small images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from ._task import Task, network


def classifier(name: str, x: jax.Array, y: jax.Array, width: int, **options) -> Task:
    """Two hidden layers of rectifiers; mean loss over all examples."""
    init, apply = network((x.shape[1], 10, width), 2, jax.nn.relu)
    batch = 128

    def loss(params, batch):
        logits = apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def sample(key):
        rows = jax.random.randint(key, (batch,), 0, len(x))
        return x[rows], y[rows]

    return Task(
        name=name,
        init=init,
        loss=loss,
        sample=sample,
        metric=lambda params: loss(params, (x, y)),
        predict=lambda params, batch: apply(params, batch[0]),
        labels=lambda batch: batch[1],
        whole=(x, y),
        **options,
    )


@functools.cache
def digits_data() -> tuple[jax.Array, jax.Array]:
    """1797 images of 8 x 8 digits, as scikit-learn ships them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if x.shape != (1797, 64):
        raise ValueError(f"expected 1797 digits of 64 pixels; got {x.shape}")
    return jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)


@functools.cache
def digits() -> Task:
    """A classifier of 8 x 8 digits with 26k parameters."""
    x, y = digits_data()
    return classifier("digits", x, y, 128, target=0.02, every=5, limit=2_000)


@functools.cache
def random_images(width: int) -> Task:
    """Random images and labels, where only the time matters."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (128, 64))
    y = jax.random.randint(keys[1], (128,), 0, 10)
    task = classifier("images", x, y, width, target=0.0)
    return dataclasses.replace(task, sample=lambda key: (x, y))
