"""Pruning: optimal brain surgeon beside removing the smallest weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px

from .._case import Case, Config
from ._tasks import Task, digits, digits_data


SPARSITIES = (0.5, 0.75, 0.9, 0.95)
ROWS, ROUNDS, DAMPING = 64, 4, 1e-4


def _trained(seed: int) -> tuple[Task, Any]:
    task = digits()
    tx = optax.adam(3e-3)
    params = task.init(jax.random.key(seed))

    def step(carry, key):
        params, state = carry
        grads = jax.grad(task.loss)(params, task.sample(key))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(100 + seed), 600)
    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys)[0][0])
    return task, run(params)


def by_size(params: Any, sparsity: float) -> Any:
    """The smallest weights set to zero."""
    flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])
    limit = jnp.sort(jnp.abs(flat))[round(sparsity * flat.size) - 1]
    return jax.tree.map(lambda x: jnp.where(jnp.abs(x) > limit, x, 0.0), params)


def _by_surgery(task: Task, params: Any, sparsity: float, block: int) -> Any:
    """In a few rounds, each with new gradients, as the schedule says."""
    x, y = digits_data()
    one = lambda params, example: task.loss(
        params, jax.tree.map(lambda v: v[None], example)
    )
    mask = None
    for i in range(1, ROUNDS + 1):
        rows = px.curvature.empirical_fisher_rows(one, params, (x[:ROWS], y[:ROWS]))
        inverse = px.curvature.mfac_ihvp(rows, DAMPING, blocks=block, mask=mask)
        now = px.curvature.pruning_schedule(i, ROUNDS, sparsity)
        params, mask = px.curvature.optimal_brain_surgeon(
            params, inverse, now, mask=mask
        )
    return params


def _measure(blocks: tuple[int, ...], seeds: int, _: int) -> dict[str, Any]:
    x, y = digits_data()
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        task, params = _trained(seed)
        assert task.predict is not None
        logits = jax.jit(task.predict)
        right = lambda p, f=logits: float(jnp.mean(jnp.argmax(f(p, (x, y)), 1) == y))
        for sparsity in SPARSITIES:
            pruned = {"dense": params, "smallest weights": by_size(params, sparsity)}
            for block in blocks:
                name = f"surgeon, blocks of {block}"
                pruned[name] = _by_surgery(task, params, sparsity, block)
            for kind, p in pruned.items():
                at = found.setdefault(kind, {}).setdefault(f"{sparsity:g}", [])
                at.append(right(p))
    means = {k: {s: float(np.mean(v)) for s, v in d.items()} for k, d in found.items()}
    return {"means": means, "all": found}


def pruning_cases(config: Config) -> list[Case]:
    """Accuracy on the digits without any training after pruning."""
    if config.fast:
        return []
    blocks, seeds = (16, 128, 512), 5
    parameters = {"blocks": list(blocks), "seeds": seeds, "rows": ROWS}
    return [
        Case(
            name="pruning/digits",
            parameters={**parameters, "rounds": ROUNDS, "damping": DAMPING},
            measure=lambda index: _measure(blocks, seeds, index),
            packages=("optax",),
        )
    ]
