"""What penalties cost: in a solve, and in a step of training."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

import pathax as px

from .._case import Case, Config, Contender
from ._tasks import TASKS, Model, loss_of


def _solve(penalties: dict | None):
    """A solve of many steps with a 100-unit network at batch 256."""

    def contender():
        net = eqx.nn.MLP(64, 64, 100, 1, jnp.tanh, key=jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (256, 64))
        term = dfx.ODETerm(lambda t, y, net: jax.vmap(net)(y))
        controller = dfx.PIDController(rtol=1e-5, atol=1e-5)
        params, static = eqx.partition(net, eqx.is_array)

        def solve(params, x):
            args = eqx.combine(params, static)
            if penalties is None:
                sol = dfx.diffeqsolve(
                    term,
                    dfx.Tsit5(),
                    0.0,
                    8.0,
                    0.1,
                    x,
                    args,
                    stepsize_controller=controller,
                    max_steps=256,
                )
                return sol.ys, ()
            sol, record = px.regularizers.solve(
                term,
                dfx.Tsit5(),
                0.0,
                8.0,
                0.1,
                x,
                args,
                stepsize_controller=controller,
                penalties=penalties,
                max_steps=256,
            )
            return sol.ys, record.penalties

        return solve, (params, x)

    return contender


def _step(method: str):
    """A gradient of the loss on digits, of a field as hard as a trained one."""

    def contender():
        task = TASKS["digits"]._replace(hidden=100)
        model, loss = Model(task, jax.random.key(0)), loss_of(task, method)
        harder = jax.tree.map(lambda x: 3 * x if eqx.is_array(x) else x, model.field)
        model = eqx.tree_at(lambda m: m.field, model, harder)
        x, y = task.load(0).train
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def gradient(params, batch):
            objective = lambda params: loss(
                eqx.combine(params, static),
                batch,
                jax.random.key(0),
                {"penalty": jnp.asarray(0.1)},
            )[0]
            return jax.grad(objective)(params)

        return gradient, (params, (x[: task.batch], y[: task.batch]))

    return contender


def speed_cases(config: Config) -> list[Case]:
    """Overheads, of contenders that take turns."""
    names = {"global": "error", "cost": "step cost"}
    names |= {"local": "local", "published": "published local"}
    return [
        Case(
            "overhead/solve",
            {"hidden": 100, "batch": 256, "end": 8.0},
            contenders=(
                Contender("bare", _solve(None)),
                Contender("counting", _solve({})),
                Contender("pathax", _solve({"error": px.regularizers.Error()})),
            ),
            ratios={
                "pathax over bare": ("pathax", "bare"),
                "counting over bare": ("counting", "bare"),
            },
        ),
        Case(
            "overhead/training",
            {"task": "digits", "batch": 32, "field": "3 times the start"},
            contenders=(
                Contender("plain", _step("plain")),
                *(Contender(name, _step(method)) for name, method in names.items()),
            ),
            ratios={f"{name} over plain": (name, "plain") for name in names},
        ),
    ]
