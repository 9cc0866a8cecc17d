"""The head of the spatiotemporal operator beside the published one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._fno import relative
from ._problems import forced_flow
from ._published import (
    PublishedSTFNO,
    dual_norm,
    micro_step_residual,
    right_hand_side,
)


MODES, OPTIONS = (6, 6, 4), {"width": 8, "depth": 3, "frames": 10}
GAP, WINDOW, GRID = 0.05, 2.0, 32  # frames come in every fourth


def _data(count: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten frames every 0.2, and the forty, every 0.05, that follow."""
    flows = forced_flow(count, 64, 77, GAP)
    if n != 64:
        spectrum = np.fft.fft2(flows, norm="forward")
        keep = np.r_[0 : n // 2, -(n // 2) + 1 : 0]
        half = np.zeros((*flows.shape[:2], n, n), complex)
        half[..., keep[:, None], keep[None]] = spectrum[..., keep[:, None], keep[None]]
        flows = np.fft.ifft2(half, norm="forward").real.astype(np.float32)
    return flows[:, :37:4], flows[:, 37:]


def _train(predict: Any, model: Any, steps: int, data: tuple) -> Any:
    """Adam with a warm-up and a cosine, on ten frames."""
    x, y = data[0], data[1][:, 3::4]
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = optax.adam(optax.cosine_onecycle_schedule(steps, 1e-2))

    def loss(params, x, y):
        found = predict(eqx.combine(params, static), x, 10)
        return jnp.mean(jnp.sum((found - y) ** 2, (1, 2, 3)) / jnp.sum(y**2, (1, 2, 3)))

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(steps):
        pick = rng.integers(len(x), size=4)
        params, state = step(params, state, x[pick], y[pick])
    return eqx.combine(params, static)


def _ours(model, x, count):
    times = jnp.arange(1, count + 1) * (WINDOW / count)
    return jax.vmap(lambda f: model(f, times))(x)


def _published(model, x, count):
    return jax.vmap(lambda f: model(f, count))(x)


def _measure(steps: int, flows: int, _: int) -> dict[str, Any]:
    x, y = _data(flows + 8, GRID)
    fine_x, fine_y = _data(flows + 8, 64)
    key, out = jax.random.key(0), {}
    sides = {
        "pathax": (
            _ours,
            px.operators.STFNO(MODES, horizon=WINDOW, key=key, **OPTIONS),
        ),
        "published": (_published, PublishedSTFNO.make(MODES, key=key, **OPTIONS)),
    }
    stay = np.repeat(x[-8:, -1:], 10, 1)
    out["error of no change"] = relative(stay, y[-8:, 3::4])
    for name, (predict, start) in sides.items():
        model = _train(predict, start, steps, (x[:-8], y[:-8]))
        run = eqx.filter_jit(predict)
        for count in (10, 20, 40):
            found = np.asarray(run(model, x[-8:], count))
            wanted = y[-8:, 40 // count - 1 :: 40 // count]
            out[f"error {name}, {count} frames"] = relative(found, wanted)
        found = np.asarray(run(model, fine_x[-8:], 10))
        out[f"error {name}, finer grid"] = relative(found, fine_y[-8:, 3::4])
    return out


def _residual(_: int) -> dict[str, Any]:
    """The published residual of noise and of a flow, over the step it takes."""
    with jax.enable_x64(True):
        flow = np.asarray(forced_flow(9, 64, 1)[0, 0], np.float64)
        noise = np.random.default_rng(0).normal(size=(64, 64))
        noise = np.fft.rfft2(noise)
        square = np.fft.fftfreq(64, 1 / 64)[:, None] ** 2 + np.arange(33)[None] ** 2
        noise = noise / (1 + square)
        noise[0, 0] = 0
        fields = {"noise": noise, "a flow": np.fft.rfft2(flow)}
        out: dict[str, Any] = {}
        for name, field in fields.items():
            w = jnp.asarray(field)
            out[f"{name}, static residual"] = float(dual_norm(right_hand_side(w)))
            for dt in (1e-3, 1e-4, 1e-5):
                value = float(micro_step_residual(w, dt))
                out[f"{name}, micro-step {dt:g}"] = value
    return out


def head_cases(config: Config) -> list[Case]:
    """Both heads trained alike and asked for other frames; the published residual."""
    steps, flows = (150, 24) if config.fast else (600, 64)
    parameters = {"steps": steps, "flows": flows, "modes": list(MODES), "grid": GRID}
    return [
        Case(
            name="head/forced flow",
            parameters={**parameters, **OPTIONS},
            measure=lambda index: _measure(steps, flows, index),
            packages=("optax",),
        ),
        Case(name="residual/micro-step", parameters={"n": 64}, measure=_residual),
    ]
