"""MKOR: its authors' package trains a network beside `variant="leaky"`.

Their code is used as it is, in single precision. Where the two differ by design ours is
set to theirs: norms of weight and bias are added up (`rescale="sum"`), and the first
refresh only makes identities, so here it is left out.
"""

import contextlib
import importlib
import io
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px


STEPS, BATCH, RATE = 20, 16, 0.05


def check(official: Path) -> dict[str, float]:
    """The largest difference of parameters and of factors, relative to the largest."""
    if not (official / "mkor" / "mkor" / "mkor.py").exists():
        raise FileNotFoundError(
            f"no clone of Mohammad-Mozaffari/mkor at {official / 'mkor'}"
        )
    package = _load(official / "mkor")
    found = {}
    for interval in (1, 4):
        theirs, their_factors = _theirs(package, interval)
        ours, our_factors = _ours(interval)
        found |= {
            f"MKOR: parameters, refreshed every {interval}": _distance(ours, theirs),
            f"MKOR: inverse factors, refreshed every {interval}": _distance(
                our_factors, their_factors
            ),
        }
    return found


def _load(folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("mkor")
    finally:
        sys.path.remove(str(folder))


def _distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


# The problem ------------------------------------------------------------------------


def _weights() -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Of a strided convolution, a layer with a bias and one without."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 3
    return [(draw(4, 2, 3, 2), draw(4)), (draw(6, 36), draw(6)), (draw(3, 6), None)]


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, 2, 6, 4)).astype(np.float32)
    return x, rng.normal(size=(BATCH, 3)).astype(np.float32)


# Theirs -----------------------------------------------------------------------------


def _theirs(package: Any, interval: int) -> tuple[list, list]:
    import torch

    (conv, conv_bias), (first, first_bias), (last, _) = _weights()

    class Net(torch.nn.Module):
        device = "cpu"

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0))
            self.first = torch.nn.Linear(36, 6)
            self.last = torch.nn.Linear(6, 3, bias=False)

        def forward(self, x):
            x = torch.tanh(self.conv(x)).reshape(len(x), -1)
            return self.last(torch.tanh(self.first(x)))

    net = Net()
    values = (conv, conv_bias, first, first_bias, last)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    options = {"inv_freq": interval, "half_precision": False}
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = package.MKOR(net, lr=RATE, momentum=0.9, **options)
    x, y = map(torch.tensor, _batch())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old kind of hook
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = ((net(x) - y) ** 2).sum(1).mean()
            loss.backward()
            optimizer.step()
    factors = [*optimizer.GG_inv, *optimizer.AA_inv]
    return (
        [p.detach().numpy() for p in net.parameters()],
        [f.numpy() for f in factors],
    )


# Ours -------------------------------------------------------------------------------


def _ours(interval: int) -> tuple[list, list]:
    key = jax.random.key(0)
    layers = [
        eqx.nn.Conv2d(2, 4, (3, 2), (2, 1), ((1, 1), (0, 0)), key=key),
        eqx.nn.Linear(36, 6, key=key),
        eqx.nn.Linear(6, 3, use_bias=False, key=key),
    ]
    for i, (weight, bias) in enumerate(_weights()):
        where = lambda layer: layer.weight
        layers[i] = eqx.tree_at(where, layers[i], jnp.asarray(weight))
        if bias is not None:
            new = jnp.asarray(bias).reshape(layers[i].bias.shape)
            layers[i] = eqx.tree_at(lambda layer: layer.bias, layers[i], new)
    model = px.curvature.kron.instrument(layers)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, y = map(jnp.asarray, _batch())

    def loss(params):
        conv, first, last = eqx.combine(params, static)

        def predict(x):
            return last(jnp.tanh(first(jnp.tanh(conv(x)).ravel())))

        return jnp.mean(jnp.sum((jax.vmap(predict)(x) - y) ** 2, axis=1))

    tx = px.optimizers.mkor(RATE, variant="leaky", rescale="sum")

    @jax.jit
    def step(params, state, due):
        f = px.curvature.kron.value_and_grad(loss, terms=BATCH)
        (_, stats), grads = f(params)
        updates, state = tx.update(
            grads, state, params, kron=stats, update_curvature=due
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(STEPS):
        params, state = step(params, state, jnp.asarray(t > 0 and t % interval == 0))
    factors = optax.tree_utils.tree_get(state, "inv_left")
    factors += optax.tree_utils.tree_get(state, "inv_right")
    leaves = [layer for layer in params for layer in (layer.weight, layer.bias)]
    flat = [np.asarray(leaf) for leaf in leaves if leaf is not None]
    flat[1] = flat[1].ravel()  # ours has axes of positions
    return flat, [np.asarray(f) for f in factors]
