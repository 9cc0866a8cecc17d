"""Prices of bonds by simulation, beside the closed form."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp

import pathax as px

from .._case import Case, Config


# A rate of four percent that stays away from zero, and one that touches it.
MODELS = {"calm": (0.5, 0.04, 0.08), "touching zero": (0.5, 0.04, 0.3)}
YEARS, STEPS, RATE = 5.0, 64, 0.04


def _discount(cir: px.solvers.CIR, key: jax.Array) -> jax.Array:
    """`exp(-integral of X)` by the trapezoidal rule on the steps."""
    path = px.brownian.VirtualBrownianTree(
        0.0, YEARS, YEARS * 2**-12, (), key, dfx.SpaceTimeLevyArea
    )
    times = jnp.linspace(0.0, YEARS, STEPS + 1)
    found = dfx.diffeqsolve(
        cir.terms(path),
        px.solvers.HOStS.of(cir),
        0.0,
        YEARS,
        None,
        jnp.asarray(RATE),
        stepsize_controller=dfx.StepTo(times),
        saveat=dfx.SaveAt(ts=times),
        max_steps=STEPS,
    )
    return jnp.exp(-jnp.trapezoid(found.ys, times))


def _measure(name: str, paths: int) -> dict[str, Any]:
    cir = px.solvers.CIR(*MODELS[name])
    with jax.enable_x64(True):
        found = px.simulation.ensemble(
            lambda key: _discount(cir, key), jax.random.key(1), paths, chunk=2000
        )
        exact = float(cir.bond_price(jnp.asarray(RATE), YEARS))
    mean, error = float(found.mean), float(found.standard_error)
    return {"price": mean, "exact": exact, "off": (mean - exact) / error}


def bond_cases(config: Config) -> list[Case]:
    """Both models; fewer paths in a fast run."""
    paths = 4_000 if config.fast else 100_000
    return [
        Case(
            name=f"bond/{name}",
            parameters={"paths": paths, "steps": STEPS},
            measure=lambda _, name=name: _measure(name, paths),
        )
        for name in MODELS
    ]
