"""What exact numbers of evaluations cost: the same solve with and without them."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp

import pathax as px

from .._case import Case, Config, Contender


PATHS = 100


def _sde(key: Any) -> tuple[Any, Any, Any]:
    """Geometric Brownian motion, and how it is solved."""
    path = px.brownian.VirtualBrownianTree(
        0.0, 1.0, 2.0**-14, (), key, dfx.SpaceTimeLevyArea
    )
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, x, args: 0.1 * x),
        dfx.ControlTerm(lambda t, x, args: 0.5 * x, path),
    )
    pid = dfx.PIDController(rtol=0.0, atol=1e-3, dtmin=2.0**-13)
    return terms, px.solvers.SRIW1(), pid


def _ode(key: Any) -> tuple[Any, Any, Any]:
    """An oscillator that starts anywhere."""
    speed = jax.random.uniform(key, (), minval=1.0, maxval=2.0)
    terms = dfx.ODETerm(lambda t, x, args: -speed * jnp.sin(20 * t) * x)
    return terms, dfx.Tsit5(), dfx.PIDController(rtol=1e-5, atol=1e-5)


def _solve(problem: Callable, counted: bool) -> Callable:
    def make():
        def one(key):
            terms, solver, controller = problem(key)
            if counted:
                solver, controller = px.solvers.counting(solver, controller)
            found = dfx.diffeqsolve(
                terms,
                solver,
                0.0,
                1.0,
                0.01,
                jnp.ones(()),
                stepsize_controller=controller,
                saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
                max_steps=None,
                adjoint=dfx.ForwardMode(),
            )
            steps = found.stats["num_steps"]
            made = px.solvers.evaluations(found).total.drift if counted else steps
            return found.ys, made

        keys = jax.random.split(jax.random.key(0), PATHS)
        return jax.vmap(one), (keys,)

    return make


def counting_cases(config: Config) -> list[Case]:
    """An SDE on a tree and an ODE whose steps cost next to nothing."""
    del config
    return [
        Case(
            name=f"counting/{name}",
            parameters={"paths": PATHS},
            contenders=(
                Contender("counted", _solve(problem, True)),
                Contender("plain", _solve(problem, False)),
            ),
            ratios={"counted over plain": ("counted", "plain")},
        )
        for name, problem in (("sde", _sde), ("ode", _ode))
    ]
