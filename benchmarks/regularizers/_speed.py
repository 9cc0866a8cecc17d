"""What penalties cost: in a solve, and in a step of training."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config, Contender
from ._methods import loss_of
from ._tasks import TASKS
from ._tasks._classes import Model


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
            position = (term, dfx.Tsit5(), 0.0, 8.0, 0.1, x, args)
            options: dict[str, Any] = {
                "stepsize_controller": controller,
                "max_steps": 256,
            }
            if penalties is None:
                return dfx.diffeqsolve(*position, **options).ys, ()
            sol, record = px.regularizers.solve(
                *position, penalties=penalties, **options
            )
            return sol.ys, record.penalties

        return solve, (params, x)

    return contender


class _Double:
    """A compiled function of float64 numbers."""

    def __init__(self, function: Any):
        self.compiled = jax.jit(function)

    def lower(self, *args: Any) -> Any:
        with jax.enable_x64(True):
            return self.compiled.lower(*args)

    def __call__(self, *args: Any) -> Any:
        with jax.enable_x64(True):
            return self.compiled(*args)


BATCH, HIDDEN = 256, 100


def _step(method: str):
    """A gradient of the loss on digits as published for larger images: 100 hidden
    units, tolerance 1.4e-8; of a field as hard as a trained one."""

    def contender():
        task = TASKS["digits"]
        loss = loss_of(task, method)
        with jax.enable_x64(True):
            model = Model(64, 10, jax.random.key(0), hidden=HIDDEN)
            harder = jax.tree.map(
                lambda x: 2 * x if eqx.is_array(x) else x, model.field
            )
            model = eqx.tree_at(lambda m: m.field, model, harder)
            params, static = eqx.partition(model, eqx.is_inexact_array)
            data = task.load(0).train
            batch = (jnp.asarray(data[0][:BATCH], np.float64), data[1][:BATCH])

        def gradient(params, batch):
            objective = lambda params: loss(
                eqx.combine(params, static),
                batch,
                jax.random.key(0),
                {"penalty": jnp.asarray(0.1)},
            )
            return jax.grad(objective, has_aux=True)(params)

        return _Double(gradient), (params, batch)

    return contender


def speed_cases(config: Config) -> list[Case]:
    """Overheads, of contenders that take turns."""
    names = {"global": "error", "cost": "step cost", "local": "local"}
    names |= {"published biased": "published biased"}
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
            rounds=101 if config.fast else 401,
            revision=2,
        ),
        Case(
            "overhead/training",
            {"task": "digits", "batch": BATCH, "hidden": HIDDEN, "field": "twice"},
            contenders=(
                Contender("plain", _step("plain")),
                *(Contender(name, _step(method)) for name, method in names.items()),
            ),
            ratios={f"{name} over plain": (name, "plain") for name in names},
            packages=("scikit-learn",),
            revision=2,
        ),
    ]
