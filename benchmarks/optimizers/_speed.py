"""What a step costs: each optimizer beside plain ones, on networks of three sizes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._case import Case, Config, Contender
from ._methods import METHODS, Method, init_state, training_step
from ._tasks import Task, _classifier


# Width of two hidden layers -> about 2.5k, 26k and 250k parameters.
SIZES = {"2.5k": 26, "26k": 128, "250k": 460}
STEPS = 20  # timed at once, so that refreshes come in their right number

SPEED_METHODS = (
    "sgd",
    "adamw",
    "adahessian",
    "adahessian k=5",
    "sophia-h",
    "sophia-g",
    "mfac w=16",
    "mfac w=64",
    "mkor",
    "mkor-h",
    "kfac",
    "ekfac",
    "soap",
    "shampoo",
    "muon",
    "natural galore",
)
FAST_SPEED = ("sgd", "adamw", "adahessian", "adahessian k=5", "sophia-h", "sophia-g")


@functools.cache
def _task(size: str) -> Task:
    """Random images and labels: only the time matters here."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (512, 64))
    y = jax.random.randint(keys[1], (512,), 0, 10)
    width = SIZES[size]
    sizes = (64, 10, width)
    return _classifier(
        size, x, y, sizes, 2, batch=128, target=0.0, chunk=STEPS, limit=STEPS
    )


def _with_layers(task: Task) -> Task:
    from dataclasses import replace

    return replace(task, name="digits")  # methods ask by name whether it has layers


def _contender(name: str, size: str, method: Method | None = None) -> Contender:
    method = METHODS[name] if method is None else method

    def make():
        task = _with_layers(_task(size))
        params = jax.jit(task.init)(jax.random.key(1))
        state = init_state(method, task, params)
        step = training_step(method, task)

        def steps(params, state, key):
            def body(carry, key):
                params, state, _ = step(*carry, key, jnp.float32(1e-4))
                return (params, state), None

            keys = jax.random.split(key, STEPS)
            return jax.lax.scan(body, (params, state), keys)[0]

        return steps, (params, state, jax.random.key(2))

    return Contender(name, make)


def step_case(size: str, names: tuple[str, ...]) -> Case:
    """Twenty training steps of each method."""
    ratios = {}
    for name in names:
        if name != "adamw":
            ratios[f"{name} over adamw"] = (name, "adamw")
        if name.startswith("adahessian"):
            ratios[f"{name} over sgd"] = (name, "sgd")
    return Case(
        name=f"step/{size}",
        parameters={"width": SIZES[size], "batch": 128, "steps": STEPS},
        contenders=tuple(_contender(name, size) for name in names),
        ratios=ratios,
    )


# MKOR's refresh interval, and M-FAC's dimension --------------------------------------


def _mkor(interval: int) -> Method:
    import pathax as px

    make = lambda r, t: optax.chain(
        px.optimizers.scale_by_mkor(update_interval=interval), optax.sgd(r, 0.9)
    )
    return Method(f"mkor every {interval}", make)


def interval_case() -> Case:
    """A step of MKOR for three refresh intervals."""
    intervals = (1, 10, 20)
    names = {i: f"mkor every {i}" for i in intervals}
    return Case(
        name="interval/mkor",
        parameters={"size": "26k", "steps": STEPS, "intervals": list(intervals)},
        contenders=tuple(_contender(names[i], "26k", _mkor(i)) for i in intervals),
        ratios={"every step over every 20": (names[1], names[20])},
    )


def _update_alone(dimension: int) -> Contender:
    def make():
        import pathax as px

        tx = px.optimizers.scale_by_mfac(32)
        g = jax.random.normal(jax.random.key(0), (dimension,))

        def updates(g, state):
            step = lambda state, _: (tx.update(g, state)[1], None)
            return jax.lax.scan(step, state, None, length=5)[0]

        return updates, (g, tx.init(g))

    return Contender(f"d={dimension}", make)


def scaling_case() -> Case:
    """M-FAC's update alone, with the dimension doubled."""
    small, large = 500_000, 1_000_000
    return Case(
        name="scaling/mfac",
        parameters={"window": 32, "dimensions": [small, large], "steps": 5},
        contenders=(_update_alone(small), _update_alone(large)),
        ratios={"2d over d": (f"d={large}", f"d={small}")},
    )


# Memory -----------------------------------------------------------------------------


def _state_bytes(_: int) -> dict[str, Any]:
    """Bytes of state over bytes of parameters."""
    rows = []
    for size in SIZES:
        task = _with_layers(_task(size))
        params = jax.eval_shape(task.init, jax.random.key(0))
        count = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
        for name in SPEED_METHODS:
            state = jax.eval_shape(
                lambda p, name=name, task=task: init_state(METHODS[name], task, p),
                params,
            )
            total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
            rows.append({"size": size, "method": name, "multiple": total / count})
    return {"rows": rows}


def speed_cases(config: Config) -> list[Case]:
    """Costs of steps, and what they should scale with."""
    sizes = ("26k",) if config.fast else tuple(SIZES)
    names = FAST_SPEED if config.fast else SPEED_METHODS
    return [
        *(step_case(size, names) for size in sizes),
        interval_case(),
        scaling_case(),
        Case(name="memory/state", measure=_state_bytes),
    ]
