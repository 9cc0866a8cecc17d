"""Curvature in float32 against dense algebra in double precision."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case


SIZE, WINDOW = 12, 6


def _error(found, exact) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _gradients(rows: int = WINDOW, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)


def mfac() -> float:
    """The last update of a full window; gradients 10^6 above the damping, squared."""
    import pathax as px

    gradients = _gradients()
    damping = float((gradients[-1] ** 2).sum()) / (WINDOW * 1e6)
    tx = px.optimizers.scale_by_mfac(WINDOW, damping)
    state = tx.init(jnp.asarray(gradients[0]))
    for g in gradients:
        update, state = tx.update(jnp.asarray(g), state)
    wide = gradients.astype(np.float64)
    fisher = damping * np.eye(SIZE) + wide.T @ wide / WINDOW
    return _error(update, np.linalg.solve(fisher, wide[-1]))


def window_fisher() -> float:
    """Natural GaLore's preconditioner of a matrix."""
    import pathax as px

    gradients = _gradients()
    tx = px.optimizers.scale_by_window_fisher(WINDOW, 1e-3)
    state = tx.init(jnp.zeros((3, 4)))
    for g in gradients:
        update, state = tx.update(jnp.asarray(g.reshape(3, 4)), state)
    wide = gradients.astype(np.float64)
    fisher = 1e-3 * np.eye(SIZE) + wide.T @ wide
    return _error(np.ravel(update), np.linalg.solve(fisher, wide[-1]))


def hutchinson() -> float:
    """A diagonal Hessian, which one probe finds exactly."""
    import pathax as px

    scales = np.logspace(-3, 3, SIZE).astype(np.float32)
    loss = lambda x: jnp.sum(jnp.asarray(scales) * jnp.sin(x))
    x = jnp.asarray(_gradients()[0])
    found = px.curvature.hutchinson_diagonal(loss, x, jax.random.key(0))
    return _error(found, -scales * np.sin(np.asarray(x, np.float64)))


def newton() -> float:
    """A step of gradient-normalized Newton, from rows of a Jacobian."""
    import pathax as px

    jacobian = _gradients()
    r = np.random.default_rng(1).normal(size=WINDOW).astype(np.float32)
    residual = lambda x: jnp.asarray(jacobian) @ x + jnp.asarray(r)
    loss = lambda x: jnp.mean(residual(x) ** 2) / 2
    tx = px.optimizers.gradient_normalized_newton(
        curvature="ggn", solver="rows", mode="fixed", gamma0=0.5
    )
    x = jnp.zeros(SIZE)
    value, grad = jax.value_and_grad(loss)(x)
    step, _ = tx.update(
        grad,
        tx.init(x),
        x,
        value=value,
        grad=grad,
        value_fn=loss,
        residual_fn=residual,
    )
    wide = jacobian.astype(np.float64)
    g = wide.T @ r / WINDOW
    shift = np.linalg.norm(g) / 0.5
    matrix = wide.T @ wide / WINDOW + shift * np.eye(SIZE)
    return _error(step, -np.linalg.solve(matrix, g))


def _layer():
    """One linear layer, a batch, and its statistics in double precision."""
    import pathax as px

    rng = np.random.default_rng(2)
    layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    model = px.curvature.kron.instrument(layer)
    x, y = (rng.normal(size=(16, n)).astype(np.float32) for n in (4, 3))

    def loss(model):
        return jnp.mean(jnp.sum((jax.vmap(model)(x) - y) ** 2, axis=1)) / 2

    a = np.concatenate([x, np.ones((16, 1))], axis=1)
    weight = np.concatenate(
        [np.asarray(layer.weight), np.asarray(layer.bias)[:, None]], axis=1
    )
    g = a @ weight.T - y
    return model, loss, a, g


def mkor() -> float:
    """The inverse factor of the inputs after forty refreshes."""
    import pathax as px

    model, loss, a, _ = _layer()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    objective = lambda p: loss(eqx.combine(p, static))
    (_, stats), grads = px.curvature.kron.value_and_grad(objective)(params)
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
    import pathax as px

    model, loss, a, g = _layer()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    objective = lambda p: loss(eqx.combine(p, static))
    tx = px.optimizers.scale_by_kfac(damping=1e-2, damping_rule="exact", kl_clip=None)
    prepare = px.optimizers.extras(tx, objective)
    _, grads, extra = prepare(params)
    updates, _ = tx.update(grads, tx.init(params), params, **extra)
    gradient = g.T @ a / 16
    block = np.kron(g.T @ g / 16, a.T @ a / 16) + 1e-2 * np.eye(15)
    exact = np.linalg.solve(block, gradient.ravel()).reshape(3, 5)
    found = np.concatenate(
        [np.asarray(updates.weight), np.asarray(updates.bias)[:, None]], axis=1
    )
    return _error(found, exact)


CHECKS: dict[str, Callable[[], float]] = {
    "hutchinson": hutchinson,
    "mfac": mfac,
    "window fisher": window_fisher,
    "newton": newton,
    "mkor": mkor,
    "kfac": kfac,
}


def _measure(_: int) -> dict[str, float]:
    return {name: check() for name, check in CHECKS.items()}


def exactness_cases() -> list[Case]:
    """Largest error of each, relative to the largest entry."""
    return [Case(name="exactness/float32", measure=_measure)]
