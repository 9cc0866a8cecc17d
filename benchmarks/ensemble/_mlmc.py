"""What multilevel Monte Carlo costs for the error that is asked for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config


DRIFT, NOISE = 0.05, 0.4


def _path(key: jax.Array):
    return px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-13, (), key)


def _scheme(path: Any, level: int, order: float) -> jax.Array:
    """Euler or Milstein for dX = DRIFT X dt + NOISE X dW, X = 1, to time one."""
    n = 2**level
    ts = jnp.linspace(0.0, 1.0, n + 1)
    dw = jax.vmap(path.evaluate)(ts[:-1], ts[1:])
    extra = NOISE**2 / 2 * (dw**2 - 1 / n) if order == 1 else 0.0
    return jnp.prod(1 + DRIFT / n + NOISE * dw + extra)


def _measure(order: float, errors: tuple[float, ...], _: int) -> dict[str, Any]:
    rows, solve = [], lambda path, level: _scheme(path, level, order)
    for rmse in errors:
        found = px.simulation.mlmc(
            solve, _path, jax.random.key(0), rmse=rmse, first=128, chunk=512
        )
        rows.append(
            {
                "asked": rmse,
                "error": abs(float(found.mean) - float(np.exp(DRIFT))),
                "cost": found.cost,
                "plain cost": found.plain_cost,
                "levels": len(found.levels),
                "beta": found.beta,
            }
        )
    costs = [row["cost"] for row in rows]
    slope = np.polyfit(np.log(errors), np.log(costs), 1)[0]
    return {"slope": float(slope), "rows": rows}


def mlmc_cases(config: Config) -> list[Case]:
    """Euler, whose corrections fall as fast as they cost, and Milstein, faster."""
    errors = (4e-3, 2e-3, 1e-3) if config.fast else (4e-3, 2e-3, 1e-3, 5e-4)
    return [
        Case(
            f"mlmc/{name}",
            {"errors": list(errors)},
            measure=lambda index, order=order: _measure(order, errors, index),
        )
        for name, order in (("euler", 0.5), ("milstein", 1.0))
    ]
