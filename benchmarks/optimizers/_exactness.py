"""Curvature in float32 against dense algebra in double precision."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case


SIZE, WINDOW = 12, 6
UPDATES = 3 * WINDOW + 1  # so that the ring of gradients is in the middle of a turn


def _error(found, exact) -> float:
    """Largest difference over the largest entry."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _gradients(rows: int = UPDATES, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)


def _last_update(tx: optax.GradientTransformation, gradients: np.ndarray):
    state = tx.init(jnp.zeros(gradients.shape[1:]))
    update = jax.jit(tx.update)
    for g in gradients:
        out, state = update(jnp.asarray(g), state)
    return out


def mfac() -> float:
    """Squares of gradients 10^6 above the damping."""
    gradients = _gradients()
    damping = float((gradients[-1] ** 2).sum()) / (WINDOW * 1e6)
    found = _last_update(px.optimizers.scale_by_mfac(WINDOW, damping), gradients)
    wide = gradients[-WINDOW:].astype(np.float64)
    fisher = damping * np.eye(SIZE) + wide.T @ wide / WINDOW
    return _error(found, np.linalg.solve(fisher, wide[-1]))


def natural_galore() -> float:
    """The natural gradient of a matrix, as it is taken in the space of low rank."""
    gradients = _gradients()
    tx = px.optimizers.scale_by_window_fisher(WINDOW, 1e-3)
    found = _last_update(tx, gradients.reshape(-1, 3, 4))
    wide = gradients[-WINDOW:].astype(np.float64)
    fisher = 1e-3 * np.eye(SIZE) + wide.T @ wide
    return _error(np.ravel(found), np.linalg.solve(fisher, wide[-1]))


def hutchinson() -> float:
    """A diagonal Hessian over six decades, which one probe finds exactly."""
    scales = np.logspace(-3, 3, SIZE).astype(np.float32)
    loss = lambda x: jnp.sum(jnp.asarray(scales) * jnp.sin(x))
    x = jnp.asarray(_gradients()[0])
    found = px.curvature.hutchinson_diagonal(loss, x, jax.random.key(0))
    return _error(found, -scales * np.sin(np.asarray(x, np.float64)))


def newton() -> float:
    """A step of gradient-normalized Newton, from rows of a Jacobian."""
    jacobian = _gradients(WINDOW)
    r = np.random.default_rng(1).normal(size=WINDOW).astype(np.float32)
    residual = lambda x: jnp.asarray(jacobian) @ x + jnp.asarray(r)
    loss = lambda x: jnp.mean(residual(x) ** 2) / 2
    tx = px.optimizers.gradient_normalized_newton(
        curvature="ggn", solver="rows", mode="fixed", gamma0=0.5
    )
    x = jnp.zeros(SIZE)
    grad = jax.grad(loss)(x)
    step, _ = tx.update(grad, tx.init(x), x, residual_fn=residual)
    wide = jacobian.astype(np.float64)
    g = wide.T @ r / WINDOW
    matrix = wide.T @ wide / WINDOW + np.linalg.norm(g) / 0.5 * np.eye(SIZE)
    return _error(step, -np.linalg.solve(matrix, g))


def _layer():
    """One linear layer with its loss; inputs with a one, and output gradients."""
    rng = np.random.default_rng(2)
    layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    model = px.curvature.kron.instrument(layer)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, y = (rng.normal(size=(16, n)).astype(np.float32) for n in (4, 3))

    def loss(params):
        model = eqx.combine(params, static)
        return jnp.mean(jnp.sum((jax.vmap(model)(x) - y) ** 2, axis=1)) / 2

    a = np.concatenate([x, np.ones((16, 1))], axis=1)
    parts = np.asarray(layer.weight), np.asarray(layer.bias)[:, None]
    return params, loss, a, a @ np.concatenate(parts, axis=1).T - y


def mkor() -> float:
    """The inverse factor of the inputs after forty refreshes."""
    params, loss, a, _ = _layer()
    (_, stats), grads = px.curvature.kron.value_and_grad(loss)(params)
    tx = px.optimizers.scale_by_mkor(update_interval=1, threshold=1e30)
    state = tx.init(params)
    update = jax.jit(lambda g, s: tx.update(g, s, params, kron=stats))
    mean = a.mean(axis=0)
    dense = np.eye(5)
    for _ in range(40):
        _, state = update(grads, state)
        dense = 0.95 * dense + 0.05 * np.outer(mean, mean)
    return _error(state.inv_right[0], np.linalg.inv(dense))


def kfac() -> float:
    """A step with exact damping against the dense Kronecker product."""
    params, loss, a, g = _layer()
    tx = px.optimizers.scale_by_kfac(damping=1e-2, damping_rule="exact", kl_clip=None)
    _, grads, extra = px.optimizers.extras(tx, loss)(params)
    updates, _ = tx.update(grads, tx.init(params), params, **extra)
    block = np.kron(g.T @ g / 16, a.T @ a / 16) + 1e-2 * np.eye(15)
    exact = np.linalg.solve(block, (g.T @ a / 16).ravel()).reshape(3, 5)
    parts = np.asarray(updates.weight), np.asarray(updates.bias)[:, None]
    return _error(np.concatenate(parts, axis=1), exact)


CHECKS: dict[str, Callable[[], float]] = {
    "hutchinson": hutchinson,
    "mfac": mfac,
    "natural_galore": natural_galore,
    "newton": newton,
    "mkor": mkor,
    "kfac": kfac,
}


def _measure(_: int) -> dict[str, float]:
    return {name: check() for name, check in CHECKS.items()}


def exactness_cases() -> list[Case]:
    """Largest error of each, relative to the largest entry."""
    return [
        Case(
            name="exactness/float32", measure=_measure, packages=("optax",), revision=2
        )
    ]
