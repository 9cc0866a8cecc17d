"""The FNO beside that of `neuraloperator`: same weights, same data, same rule."""

import os
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._case import Case, Config
from ._neuraloperator import ours, require, theirs
from ._problems import burgers


RATE, BATCH = 1e-3, 16


class _Ours:
    """Our training step, compiled."""

    def __init__(self, model: Any):
        self.params, static = eqx.partition(model, eqx.is_inexact_array)
        tx = optax.adam(RATE)
        self.state = tx.init(self.params)
        predict = lambda params, x: jax.vmap(eqx.combine(params, static))(x)

        def loss(params, x, y):
            return jnp.mean((predict(params, x) - y) ** 2)

        def step(params, state, x, y):
            value, grads = jax.value_and_grad(loss)(params, x, y)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        self._step, self._predict = jax.jit(step, donate_argnums=(0, 1)), predict

    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        """One step of Adam, awaited."""
        out = self._step(self.params, self.state, x, y)
        self.params, self.state, value = out
        value.block_until_ready()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs of a batch."""
        return np.asarray(jax.jit(self._predict)(self.params, x))


class _Theirs:
    """The same in PyTorch."""

    def __init__(self, net: Any):
        import torch

        self.net, self.tensor = net, torch.tensor
        self.adam = torch.optim.Adam(net.parameters(), lr=RATE)

    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        """One step of Adam."""
        self.adam.zero_grad()
        loss = ((self.net(self.tensor(x)) - self.tensor(y)) ** 2).mean()
        loss.backward()
        self.adam.step()
        loss.item()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs of a batch."""
        return self.net(self.tensor(x)).detach().numpy()


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over examples of the relative error in the L2 norm."""
    axes = tuple(range(1, wanted.ndim))
    errors = np.sqrt(((found - wanted) ** 2).sum(axes) / (wanted**2).sum(axes))
    return float(errors.mean())


def _sides(channels, modes, width, depth) -> dict[str, Any]:
    require()
    model = ours(channels, modes, width, depth)
    return {"neuraloperator": _Theirs(theirs(model, channels)), "pathax": _Ours(model)}


def _choose_threads(sides: dict[str, Any], batch: tuple) -> int:
    """Let PyTorch have one thread or all, whichever is faster; beside other work
    its threads wait for each other, and one may beat two by far.
    """
    import torch

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        return min(_clocked(sides["neuraloperator"], batch) for _ in range(4))

    best = min({1, os.cpu_count() or 1}, key=seconds)
    torch.set_num_threads(best)
    return best


def _clocked(side: Any, batch: tuple) -> float:
    start = time.perf_counter()
    side.step(*batch)
    return time.perf_counter() - start


def _times(sides: dict[str, Any], batch: tuple, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each, taken in turns, and of their ratio."""
    threads = _choose_threads(sides, batch)
    found = {name: [] for name in sides}
    for _ in range(rounds + 3):
        for name, side in sides.items():
            found[name].append(_clocked(side, batch))
    kept = {name: np.array(t[3:]) for name, t in found.items()}
    ratio = kept["neuraloperator"] / kept["pathax"]
    low, mid, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    return {
        "speedup": float(mid),
        "speedup quartiles": [float(low), float(high)],
        "threads of PyTorch": threads,
        **{f"ms {name}": 1e3 * float(np.median(t)) for name, t in kept.items()},
    }


def _race(steps: int, train: int, test: int, rounds: int, _: int) -> dict[str, Any]:
    x, y = (a[:, None] for a in burgers(train + test))
    sides = _sides((1, 1), (16,), 32, 4)
    same = relative(*(side.predict(x[-test:]) for side in sides.values()))
    _choose_threads(
        {"neuraloperator": _sides((1, 1), (16,), 32, 4)["neuraloperator"]},
        (x[:BATCH], y[:BATCH]),
    )
    rng = np.random.default_rng(1)
    picks = [rng.integers(train, size=BATCH) for _ in range(steps)]
    for side in sides.values():
        for pick in picks:
            side.step(x[pick], y[pick])
    errors = {
        f"error {name}": relative(side.predict(x[-test:]), y[-test:])
        for name, side in sides.items()
    }
    timed = _times(sides, (x[:BATCH], y[:BATCH]), rounds)
    return {"difference at start": same, **errors, **timed}


def _step(modes: tuple, grid: tuple, width: int, rounds: int, _: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1, *grid)).astype(np.float32)
    return _times(_sides((1, 1), modes, width, 4), (x, x), rounds)


SIZES = {
    "1d": ((16,), (1024,), 64),
    "2d": ((12, 12), (64, 64), 32),
    "3d": ((6, 6, 6), (24, 24, 24), 16),
}


def fno_cases(config: Config) -> list[Case]:
    """Error on one problem, and time of a step in one to three dimensions."""
    steps, train, rounds = (400, 512, 30) if config.fast else (3000, 1024, 60)
    parameters = {"steps": steps, "train": train, "test": 64, "rate": RATE}
    packages = ("torch", "neuraloperator", "optax")
    found = [
        Case(
            name="fno/burgers",
            parameters=parameters,
            measure=lambda index: _race(steps, train, 64, rounds, index),
            packages=packages,
        )
    ]
    for name, (modes, grid, width) in SIZES.items():
        found.append(
            Case(
                name=f"fno-step/{name}",
                parameters={"modes": list(modes), "grid": list(grid), "width": width},
                measure=lambda index, s=(modes, grid, width): _step(*s, rounds, index),
                packages=packages,
            )
        )
    return found
