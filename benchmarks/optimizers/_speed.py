"""What a step costs: each optimizer beside plain ones, on networks of three sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import pathax as px

from .._case import Case, Config, Contender
from ._methods import METHODS, Method, first_state, training_step
from ._peers import PEERS
from ._tasks import Task, random_images


# Width of two hidden layers -> about 2.5k, 26k and 250k parameters.
SIZES = {"2.5k": 24, "26k": 128, "250k": 460}
STEPS = 20  # timed at once, so that refreshes come in their right number
RATE = 1e-4

EVERYWHERE = tuple(
    name
    for name, method in METHODS.items()
    if method.kind != "newton" and name not in ("mkor k=1", "mkor k=100")
)
SMALL = ("lbfgs", "newton lanczos")  # with all the data as one batch
FAST_STEPS = (
    "bare gradient",
    "bare gradient and product",
    "sgd",
    "adamw",
    "adahessian k=1",
    "adahessian k=5",
    "adahessian forward k=1",
    "adahessian forward k=5",
    "sophia_h k=10",
    "sophia_h forward k=10",
    "sophia_h part k=10",
    "sophia_g k=10",
    "mfac w=16",
    "mkor k=10",
    "kfac",
)


# What an exact product adds to a gradient, with no optimizer at all.
FLOOR = {"floor": ("bare gradient and product", "bare gradient")}


@functools.cache
def _task(size: str) -> Task:
    return random_images(SIZES[size])


def _loop(method: Method, size: str, steps: int):
    """So many training steps as a function, and its arguments."""
    task, own = _task(size), method.values[0]
    params = jax.jit(task.init)(jax.random.key(1))
    state = jax.jit(lambda p: first_state(method, task, p, RATE, own))(params)
    step = training_step(method, task)

    def run(params, state, batch, key, rate):
        def body(carry, key):
            return step(*carry, batch, key, rate, own), None

        return jax.lax.scan(body, (params, state), jax.random.split(key, steps))[0]

    key = jax.random.key(2)
    return run, (params, state, task.sample(key), key, jnp.float32(RATE))


def contender(method: Method, size: str, steps: int = STEPS) -> Contender:
    """Training steps of a method."""
    return Contender(method.name, lambda: _loop(method, size, steps))


def _over(names: tuple[str, ...], *bases: str) -> dict[str, tuple[str, str]]:
    pairs = [(name, base) for base in bases for name in names if name != base]
    return {f"{name} over {base}": (name, base) for name, base in pairs}


def step_cases(config: Config) -> list[Case]:
    """Twenty training steps of each method, at three sizes."""
    cases = []
    for size in ("26k",) if config.fast else SIZES:
        names = FAST_STEPS if config.fast else EVERYWHERE
        if size == "2.5k":
            names = (*names, *SMALL)
        cases.append(
            Case(
                name=f"step/{size}",
                parameters={"width": SIZES[size], "batch": 128, "steps": STEPS},
                contenders=tuple(contender(METHODS[n], size) for n in names),
                ratios={**_over(names, "adamw", "sgd"), **FLOOR},
                rounds=7 if size == "250k" else None,
                packages=("optax",),
            )
        )
    return cases


# What a step's cost should not, or should, depend on ----------------------------------


def _kfac(interval: int) -> Method:
    make = lambda r, damping, t: px.optimizers.kfac(
        r, damping=damping, inverse_interval=interval
    )
    name = f"kfac k={interval}"
    return dataclasses.replace(METHODS["kfac"], name=name, make=make)


def _latched() -> Contender:
    """MKOR-H after its switch to the base rule."""
    method = METHODS["mkor_h k=10"]

    def make():
        run, (params, state, *rest) = _loop(method, "26k", STEPS)
        on = optax.tree.set(state, first_order=jnp.ones((), bool))
        return run, (params, on, *rest)

    return Contender("mkor_h switched", make)


def interval_cases(config: Config) -> list[Case]:
    """Over refresh intervals, before and after a switch, with passes shared or not."""
    steps = 100
    intervals = (1, 10, 100)
    mkor = tuple(METHODS[f"mkor k={k}"] for k in intervals)
    kfac = tuple(_kfac(k) for k in intervals)
    shared = {"size": "26k", "batch": 128}
    refreshes = [
        Case(
            name=f"interval/{name}",
            parameters={**shared, "steps": steps, "intervals": list(intervals)},
            contenders=tuple(contender(m, "26k", steps) for m in methods),
            ratios=_over(tuple(m.name for m in methods[:2]), methods[2].name),
            packages=("optax",),
        )
        for name, methods in {"mkor": mkor, "kfac": kfac}.items()
    ]
    if config.fast:
        return refreshes[:1]
    switch = Case(
        name="interval/mkor_h",
        parameters={**shared, "steps": STEPS},
        contenders=(
            contender(METHODS["mkor k=10"], "26k"),
            contender(METHODS["mkor_h k=10"], "26k"),
            _latched(),
            contender(METHODS["sgd"], "26k"),
        ),
        ratios=_over(("mkor k=10", "mkor_h k=10", "mkor_h switched"), "sgd"),
        packages=("optax",),
    )
    apart = dataclasses.replace(
        METHODS["adahessian k=1"], name="adahessian apart", fused=False
    )
    fused = Case(
        name="interval/adahessian",
        parameters={**shared, "steps": STEPS},
        contenders=(
            contender(METHODS["adahessian k=1"], "26k"),
            contender(apart, "26k"),
            contender(METHODS["sgd"], "26k"),
        ),
        ratios=_over(("adahessian k=1", "adahessian apart"), "sgd"),
        packages=("optax",),
    )
    return [*refreshes, switch, fused]


def _updates(dimension: int) -> Contender:
    """Ten updates of M-FAC alone."""

    def make():
        tx = px.optimizers.scale_by_mfac(32)
        g = jax.random.normal(jax.random.key(0), (dimension,))

        def updates(g, state):
            def body(carry, _):
                g, state = carry
                u, state = tx.update(g, state)
                return (g + 1e-3 * u, state), None

            return jax.lax.scan(body, (g, state), None, length=10)[0]

        return updates, (g, tx.init(g))

    return Contender(f"d={dimension}", make)


def scaling_case() -> Case:
    """M-FAC's update alone, with the dimension doubled."""
    small, large = 2**18, 2**19
    return Case(
        name="scaling/mfac",
        parameters={"window": 32, "dimensions": [small, large], "steps": 10},
        contenders=(_updates(small), _updates(large)),
        ratios={"2d over d": (f"d={large}", f"d={small}")},
        packages=("optax",),
    )


def peer_cases(config: Config) -> list[Case]:
    """Steps of the same methods from other libraries."""
    if config.fast:
        return []
    optax_sophia = Method(
        "optax sophia",
        lambda r, gamma, t: px.optimizers.optax_sophia(
            r, gamma=gamma, weight_decay=0.0
        ),
        "peer",
        "gamma",
        (0.01,),
    )
    ours = ("adahessian k=1", "sophia_h k=10", "sophia_g k=10")
    theirs = ("somax adahessian", "somax sophia_h", "somax sophia_g")
    ratios = {f"{t} over ours": (t, m) for t, m in zip(theirs, ours, strict=True)}
    return [
        Case(
            name="peer/optax",
            parameters={"size": "26k", "batch": 128, "steps": STEPS},
            contenders=(
                contender(METHODS["sophia_h k=10"], "26k"),
                contender(optax_sophia, "26k"),
            ),
            ratios={"optax sophia over ours": ("optax sophia", "sophia_h k=10")},
            packages=("optax",),
        ),
        Case(
            name="peer/somax",
            parameters={"size": "26k", "batch": 128, "steps": STEPS},
            contenders=(
                *(contender(METHODS[m], "26k") for m in ours),
                *(contender(PEERS[m], "26k") for m in theirs),
            ),
            ratios=ratios,
            packages=("optax", "python-somax"),
        ),
    ]


# Memory -------------------------------------------------------------------------------


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _state_bytes(_: int) -> dict[str, dict[str, dict[str, float]]]:
    """Bytes of state over bytes of parameters."""
    found: dict[str, dict[str, float]] = {name: {} for name in EVERYWHERE}
    for size in SIZES:
        task = _task(size)
        params = jax.eval_shape(task.init, jax.random.key(0))
        for name in EVERYWHERE:
            method = METHODS[name]
            begin = lambda p, m=method, t=task: first_state(m, t, p, RATE, m.values[0])
            state = jax.eval_shape(begin, params)
            found[name][size] = _bytes(state) / _bytes(params)
    return {"multiples": found}


def memory_case() -> Case:
    """State of every method, in multiples of the parameters."""
    return Case(name="memory/state", measure=_state_bytes, packages=("optax",))


def speed_cases(config: Config) -> list[Case]:
    """Costs of steps, what they scale with, and memory."""
    return [
        *step_cases(config),
        *interval_cases(config),
        scaling_case(),
        *peer_cases(config),
        memory_case(),
    ]
