"""Pruning: optimal brain surgeon beside removing the smallest weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._case import Case, Config
from ._tasks import digits, digits_data


SPARSITIES = (0.5, 0.75, 0.9, 0.95)


def _trained(seed: int):
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


def _by_size(params, sparsity: float):
    """The smallest weights set to zero."""
    flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])
    limit = jnp.sort(jnp.abs(flat))[round(sparsity * flat.size) - 1]
    return jax.tree.map(lambda x: jnp.where(jnp.abs(x) > limit, x, 0.0), params)


def _by_surgery(task, params, sparsity: float, block: int, rounds: int = 4):
    """In a few rounds, each with new gradients, as the schedule says."""
    import pathax as px

    x, y = digits_data()
    one = lambda params, example: task.loss(
        params, jax.tree.map(lambda v: v[None], example)
    )
    mask = None
    for i in range(1, rounds + 1):
        rows = px.curvature.empirical_fisher_rows(one, params, (x[:256], y[:256]))
        inverse = px.curvature.mfac_ihvp(rows, 1e-4, blocks=block, mask=mask)
        now = px.curvature.pruning_schedule(i, rounds, sparsity)
        params, mask = px.curvature.optimal_brain_surgeon(
            params, inverse, now, mask=mask
        )
    return params


def _measure(blocks: tuple[int, ...], seeds: int, index: int) -> dict:
    x, y = digits_data()
    rows = []
    for seed in range(seeds):
        task, params = _trained(seed)
        right = lambda p, task=task: float(
            jnp.mean(jnp.argmax(task.predict(p, (x, y)), axis=1) == y)
        )
        for sparsity in SPARSITIES:
            row = {"seed": seed, "sparsity": sparsity, "dense": right(params)}
            row["smallest weights"] = right(_by_size(params, sparsity))
            for block in blocks:
                pruned = _by_surgery(task, params, sparsity, block)
                row[f"surgeon, blocks of {block}"] = right(pruned)
            rows.append(row)
    kinds = [k for k in rows[0] if k not in ("seed", "sparsity")]
    means = {
        f"{kind} at {s:g}": float(
            np.mean([r[kind] for r in rows if r["sparsity"] == s])
        )
        for kind in kinds
        for s in SPARSITIES
    }
    return {"rows": rows, **means}


def pruning_cases(config: Config) -> list[Case]:
    """Accuracy on the digits without any training after pruning."""
    if config.fast:
        return []
    blocks, seeds = (32, 512), 3
    return [
        Case(
            name="pruning/digits",
            parameters={"blocks": list(blocks), "seeds": seeds, "rows": 256},
            measure=lambda index: _measure(blocks, seeds, index),
        )
    ]
