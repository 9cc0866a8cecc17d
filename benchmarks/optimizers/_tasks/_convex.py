"""Convex problems, whose optimum is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ._task import Task


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    """569 tumors with 30 standardized features and a one; signs of the class."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    if x.shape != (569, 30) or y.sum() != 357:
        raise ValueError(f"expected 569 tumors, 357 benign; got {x.shape}, {y.sum()}")
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.concatenate([x, np.ones((569, 1))], axis=1), 2.0 * y - 1


@functools.cache
def logistic(weight: float) -> Task:
    """Logistic regression on real data; `weight` is that of half the squared norm."""
    x, y = _cancer()
    rows = x * y[:, None]
    best = least_logistic(rows, weight)
    data = jnp.asarray(rows, jnp.float32)
    size = data.shape[1]

    def loss(w, batch):
        values = jax.nn.softplus(-(batch @ w))
        return jnp.mean(values) + weight / 2 * jnp.sum(w**2)

    def curvature(w):
        p = jax.nn.sigmoid(-(data @ w))
        scaled = data * (p * (1 - p))[:, None]
        return data.T @ scaled / len(data) + weight * jnp.eye(size)

    return Task(
        name=f"logistic {weight:g}",
        init=lambda key: 0.1 * jax.random.normal(key, (size,)),
        loss=loss,
        sample=lambda key: data,
        metric=lambda w: loss(w, data) - best,
        target=1e-6,
        limit=20_000,
        curvature=curvature,
    )


def least_logistic(rows: np.ndarray, weight: float) -> float:
    """The least value of a regularized logistic loss, in double precision."""
    w = np.zeros(rows.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(rows @ w))
        grad = -rows.T @ p / len(rows) + weight * w
        hess = (rows * (p * (1 - p))[:, None]).T @ rows / len(rows)
        step = np.linalg.solve(hess + weight * np.eye(len(w)), grad)
        w = w - step / (1 + np.sqrt(max(step @ grad, 0)))
    values = np.logaddexp(0, -(rows @ w))
    return float(values.mean() + weight / 2 * (w @ w))


@functools.cache
def log_sum_exp() -> Task:
    """A smooth maximum of 60 affine functions of 20 variables; norm of the gradient."""
    rng = np.random.default_rng(1)
    slopes, b = rng.normal(size=(60, 20)), rng.normal(size=60)
    a = jnp.asarray(slopes - slopes.mean(axis=0), jnp.float32)
    b, mu = jnp.asarray(b, jnp.float32), 0.1

    def loss(x, batch):
        del batch
        return mu * jax.nn.logsumexp((a @ x - b) / mu)

    def curvature(x):
        p = jax.nn.softmax((a @ x - b) / mu)
        mean = a.T @ p
        return (a.T @ (a * p[:, None]) - jnp.outer(mean, mean)) / mu

    slope = jax.grad(loss)
    return Task(
        name="log-sum-exp",
        init=lambda key: jax.random.normal(key, (20,)),
        loss=loss,
        sample=lambda key: None,
        metric=lambda x: jnp.linalg.norm(slope(x, None)),
        target=1e-4,
        limit=20_000,
        curvature=curvature,
    )


def quadratic_matrix(size: int = 100, condition: float = 1e4) -> np.ndarray:
    """Eigenvalues from 1 down to 1 / `condition`, in directions drawn at random."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (basis * np.geomspace(1, 1 / condition, size)) @ basis.T


@functools.cache
def quadratic() -> Task:
    """A quadratic of 100 variables with condition number 10^4."""
    matrix = jnp.asarray(quadratic_matrix(), jnp.float32)
    loss = lambda x, batch: jnp.vdot(x, matrix @ x) / 2
    return Task(
        name="quadratic",
        init=lambda key: jax.random.normal(key, (100,)),
        loss=loss,
        sample=lambda key: None,
        metric=lambda x: loss(x, None),
        target=1e-6,
        limit=20_000,
        curvature=lambda x: matrix,
    )
