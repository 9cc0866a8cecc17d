"""Preconditioned gradients beside a dense inverse, over training.

One trajectory, of Adam on batches, is the same for all. Every optimizer sees its
gradients; now and then it is asked what it would do with the gradient of all the data,
and this is compared with `(C + damping)^-1 g`, from a dense Gauss-Newton matrix `C` in
double precision. Compared are directions alone: the error is the sine of the angle, the
relative error after the best rescaling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import pathax as px

from .._case import Case, Config
from ._tasks import Task, digits_data, network


o = px.optimizers

LOOKS = (0, 10, 30, 100, 200, 400)
DAMPING = 1e-3
BATCH = 64
RATE = 1e-2


@dataclass(frozen=True)
class Problem:
    """A small task, all its data as one batch, and the output Hessian of a row."""

    task: Task
    data: Any
    output_hessian: Callable[[np.ndarray], np.ndarray]


def _classifier() -> Problem:
    """Digits of 4 x 4 pixels and ten hidden units: 280 parameters."""
    x, y = digits_data()
    x = x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)[:512]
    y = y[:512]
    init, apply = network((16, 10, 10), 1, jnp.tanh)

    def loss(params, batch):
        logits = apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def hessian(logits):
        p = np.exp(logits - logits.max())
        p = p / p.sum()
        return np.diag(p) - np.outer(p, p)

    predict = lambda params, batch: apply(params, batch[0])
    return Problem(_task("classifier", init, loss, predict, (x, y)), (x, y), hessian)


def _regression() -> Problem:
    """One linear layer of 100 inputs whose covariance has condition number 10^4."""
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    x = (rng.normal(size=(1024, 100)) * np.geomspace(1, 1e-2, 100)) @ basis.T
    y = x @ rng.normal(size=(100, 1)) + rng.normal(size=(1024, 1))
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    init, apply = network((100, 1, 1), 0, jnp.tanh, use_final_bias=False)

    def loss(params, batch):
        return jnp.mean((apply(params, batch[0]) - batch[1]) ** 2) / 2

    predict = lambda params, batch: apply(params, batch[0])
    task = _task("regression", init, loss, predict, data, likelihood="gaussian")
    return Problem(task, data, lambda row: np.ones((1, 1)))


def _task(name, init, loss, predict, data, **options) -> Task:
    def sample(key):
        rows = jax.random.randint(key, (BATCH,), 0, len(data[0]))
        return data[0][rows], data[1][rows]

    metric = lambda params: loss(params, data)
    common = {"metric": metric, "target": 0.0, "predict": predict, **options}
    return Task(name=name, init=init, loss=loss, sample=sample, **common)


PROBLEMS = {"classifier": _classifier, "regression": _regression}

# No momentum anywhere: what is compared is the matrix. What is stored of earlier
# gradients, and how it is averaged, is as by default.
METHODS: dict[str, Callable[[Task], optax.GradientTransformation]] = {
    "gradient": lambda t: optax.identity(),
    "adam": lambda t: optax.scale_by_adam(b1=0.0),
    "adahessian": lambda t: o.scale_by_adahessian(b1=0.0),
    "adahessian, no blocks": lambda t: o.scale_by_adahessian(
        b1=0.0, block_average=None
    ),
    "sophia_h": lambda t: o.scale_by_sophia(b1=0.0, gamma=1.0, clip_threshold=None),
    "mfac w=64": lambda t: o.scale_by_mfac(64, DAMPING),
    "mkor": lambda t: o.scale_by_mkor(update_interval=1),
    "kfac": lambda t: o.scale_by_kfac(damping=DAMPING),
    "ekfac": lambda t: o.scale_by_ekfac(damping=DAMPING),
    "soap": lambda t: o.scale_by_soap(b1=0.0, skip_first=False),
    "shampoo": lambda t: o.scale_by_shampoo(),
    "newton lanczos": lambda t: o.gradient_normalized_newton(
        curvature="ggn",
        likelihood=t.likelihood,
        solver="lanczos",
        krylov_size=20,
        mode="power",
        power=1.0,
        constant=DAMPING,
    ),
}


def trajectory(problem: Problem) -> list[Any]:
    """Parameters before each step of Adam."""
    task, tx = problem.task, optax.adam(RATE)
    params = task.init(jax.random.key(0))

    def body(carry, key):
        params, state = carry
        grads = jax.grad(task.loss)(params, task.sample(key))
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), params

    keys = jax.random.split(jax.random.key(1), LOOKS[-1] + 1)
    run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), keys)[1])
    path = run(params)
    return [jax.tree.map(lambda x, i=i: x[i], path) for i in range(LOOKS[-1] + 1)]


def dense_direction(problem: Problem, params: Any) -> np.ndarray:
    """`(C + damping)^-1 g` in double precision."""
    flat, unravel = ravel_pytree(params)
    task = problem.task
    outputs = lambda w: task.predict(unravel(w), problem.data)
    jacobian = np.asarray(jax.jit(jax.jacrev(outputs))(flat), np.float64)
    hessians = [problem.output_hessian(row) for row in np.asarray(outputs(flat))]
    weighed = np.stack(hessians) @ jacobian
    matrix = np.einsum("ncp,ncq->pq", jacobian, weighed) / len(jacobian)
    grads = jax.jit(jax.grad(task.loss))(params, problem.data)
    g = np.asarray(ravel_pytree(grads)[0], np.float64)
    return np.linalg.solve(matrix + DAMPING * np.eye(g.size), g)


def sine(found: np.ndarray, exact: np.ndarray) -> float:
    """Of the angle between two lines."""
    u = found / np.linalg.norm(found)
    v = exact / np.linalg.norm(exact)
    return float(np.linalg.norm(u - (u @ v) * v))


def directions(
    problem: Problem, tx: optax.GradientTransformation, path: list[Any]
) -> list[np.ndarray]:
    """What a transformation makes of the full gradient at each look."""
    task = problem.task
    tx = optax.with_extra_args_support(tx)
    prepare = o.extras(tx, task.loss, predict=task.predict)

    @jax.jit
    def update(params, state, batch, key):
        _, grads, extra = prepare(params, batch, key=key, state=state)
        return tx.update(grads, state, params, **extra)

    state, found = tx.init(path[0]), []
    keys = jax.random.split(jax.random.key(1), len(path))
    for i, (params, key) in enumerate(zip(path, keys, strict=True)):
        if i in LOOKS:
            updates, _ = update(params, state, problem.data, key)
            found.append(np.asarray(ravel_pytree(updates)[0], np.float64))
        _, state = update(params, state, task.sample(key), key)
    return found


def _measure(name: str, _: int) -> dict[str, Any]:
    problem = PROBLEMS[name]()
    path = trajectory(problem)
    exact = [dense_direction(problem, path[i]) for i in LOOKS]
    errors = {}
    for method, make in METHODS.items():
        found = directions(problem, make(problem.task), path)
        errors[method] = [sine(a, b) for a, b in zip(found, exact, strict=True)]
    return {"steps": list(LOOKS), "errors": errors}


def direction_cases(config: Config) -> list[Case]:
    """One case a problem."""
    if config.fast:
        return []
    return [
        Case(
            name=f"direction/{name}",
            parameters={"damping": DAMPING, "batch": BATCH, "steps": list(LOOKS)},
            measure=lambda run, name=name: _measure(name, run),
            packages=("optax",),
        )
        for name in PROBLEMS
    ]
