"""Timed cases of the Brownian subject: queries, solves, grids, and the floor.

Both sides of every row get the same query times, shape, dtype, tolerance, class of
increments and solver. Paths are built inside of the timed function unless the case says
that they are stored.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config, Contender
from ._paths import AREAS, TREES, tree_maker


HORIZON = 1.0
SHAPES = ((), (10,), (1000,))
BATCHES = (1, 1000)
DEPTHS = (12, 20)
STEP = 2.0**-9  # of a query, up to a factor of 3/2

OVER_PEER = {"speedup": ("diffrax", "pathax")}


def _name(shape: tuple[int, ...]) -> str:
    return "(" + ",".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _over_batch(function: Callable, batch: int) -> Callable:
    return function if batch == 1 else jax.vmap(function)


def _intervals(batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random starts; lengths between 2/3 and 3/2 of `STEP`."""
    rng = np.random.default_rng(seed)
    length = STEP * np.exp(rng.uniform(-1, 1, batch) * np.log(1.5))
    start = rng.uniform(0, HORIZON - length)
    s, u = start.astype(np.float32), (start + length).astype(np.float32)
    return (s[0], u[0]) if batch == 1 else (s, u)


def _keys(batch: int, seed: int = 1) -> jax.Array:
    key = jax.random.key(seed)
    return key if batch == 1 else jax.random.split(key, batch)


# One increment ----------------------------------------------------------------------


def _query(
    tree: str, area: str, shape: tuple[int, ...], batch: int, depth: int
) -> Contender:
    def make():
        build = tree_maker(tree, area, shape, depth, horizon=HORIZON)

        def query(key, s, u):
            return build(key).evaluate(s, u, use_levy=True)

        s, u = _intervals(batch)
        arguments = (_keys(batch), jnp.asarray(s), jnp.asarray(u))
        return _over_batch(query, batch), arguments

    return Contender(tree, make)


def _nothing(batch: int) -> Contender:
    """What it costs to call any compiled function of the same arguments at all."""

    def make():
        def call(key, s, u):  # uses the key: an argument that isn't used isn't passed
            return u - s, jax.random.key_data(key)[..., 0]

        s, u = _intervals(batch)
        return call, (_keys(batch), jnp.asarray(s), jnp.asarray(u))

    return Contender("empty call", make)


def query_case(area: str, shape: tuple[int, ...], batch: int, depth: int) -> Case:
    """One increment over `[s, u]`, key and times traced, each batch element its own."""
    elements = batch * int(np.prod(shape))
    trees = tuple(_query(t, area, shape, batch, depth) for t in TREES)
    return Case(
        name=f"query/{area},shape={_name(shape)},batch={batch},tol=2^-{depth}",
        parameters={
            "area": area,
            "shape": list(shape),
            "batch": batch,
            "tol": 2.0**-depth,
            "step": STEP,
            "dtype": "float32",
        },
        contenders=trees + ((_nothing(batch),) if batch == 1 else ()),
        ratios=OVER_PEER,
        overhead="empty call" if batch == 1 else None,
        rounds=7 if elements >= 10**6 else None,
    )


def query_cases(config: Config) -> list[Case]:
    """36 cases; a fast run takes the half that has every shape, area, batch and tol."""
    cases = []
    for area in AREAS:
        for shape in SHAPES:
            for batch in BATCHES:
                for depth in DEPTHS:
                    odd = (batch == BATCHES[0]) == (depth == DEPTHS[0])
                    if not (config.fast and odd):
                        cases.append(query_case(area, shape, batch, depth))
    return cases


# Solves -----------------------------------------------------------------------------


STEPS = 1000


def _ornstein_uhlenbeck(
    path: diffrax.AbstractBrownianPath | None,
) -> diffrax.AbstractTerm:
    """`dX = -X dt + dW`, or without the noise."""
    drift = diffrax.ODETerm(lambda t, y, args: -y)
    if path is None:
        return drift
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.ones_like(y), path)
    return diffrax.MultiTerm(drift, noise)


def _euler_solve(
    path: diffrax.AbstractBrownianPath | None,
    y0: jax.Array | None = None,
    **stepping: Any,
) -> jax.Array:
    solution = diffrax.diffeqsolve(
        _ornstein_uhlenbeck(path),
        diffrax.Euler(),
        t0=0.0,
        t1=HORIZON,
        y0=jnp.ones(()) if y0 is None else y0,
        saveat=diffrax.SaveAt(t1=True),
        **stepping,
    )
    return solution.ys[0]


def euler_case(batch: int) -> Case:
    """1000 Euler steps through `diffeqsolve`, the tree queried at every step."""
    depth = 12

    def contender(tree):
        def make():
            build = tree_maker(tree, "W", (), depth, horizon=HORIZON)
            solve = lambda key: _euler_solve(build(key), dt0=HORIZON / STEPS)
            return _over_batch(solve, batch), (_keys(batch),)

        return Contender(tree, make)

    return Case(
        name=f"solve/euler,batch={batch}",
        parameters={"steps": STEPS, "batch": batch, "tol": 2.0**-depth},
        contenders=tuple(contender(t) for t in TREES),
        ratios=OVER_PEER,
    )


_RELAXATION = np.array([[-1.0, 0.3], [-0.3, -1.0]], np.float32)


def _general_noise(path: diffrax.AbstractBrownianPath) -> diffrax.MultiTerm:
    """Two components, two noises that do not commute."""

    def diffusion(t, y, args):
        x, v = y[0], y[1]
        rows = [[0.3 * jnp.cos(v), 0.2 * x], [0.2 * v, 0.3 * jnp.sin(x)]]
        return jnp.stack([jnp.stack(row) for row in rows])

    def drift(t, y, args):
        return jnp.asarray(_RELAXATION) @ y + 0.3 * jnp.sin(y[::-1])

    control = diffrax.ControlTerm(diffusion, path)
    return diffrax.MultiTerm(diffrax.ODETerm(drift), control)


SPARK = {"rtol": 1e-3, "atol": 1e-3, "pcoeff": 0.1, "icoeff": 0.3, "dtmin": 2.0**-14}


def _spark_solve(path: diffrax.AbstractBrownianPath) -> tuple[jax.Array, jax.Array]:
    solution = diffrax.diffeqsolve(
        _general_noise(path),
        diffrax.SPaRK(),
        t0=0.0,
        t1=HORIZON,
        dt0=0.01,
        y0=jnp.array([1.0, 0.5], jnp.float32),
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(**SPARK),
        max_steps=2**15,
    )
    return solution.ys[0], solution.stats["num_steps"]


def spark_case(batch: int) -> Case:
    """Adaptive SPaRK. The paths differ, so the attempted steps may too: `work`.

    A batch takes as long as its longest member.
    """
    depth = 15

    def contender(tree):
        def make():
            build = tree_maker(tree, "W+H", (2,), depth, horizon=HORIZON)
            solve = lambda key: _spark_solve(build(key))
            return _over_batch(solve, batch), (_keys(batch),)

        return Contender(tree, make, work=lambda out: np.max(np.asarray(out[1])))

    return Case(
        name=f"solve/spark,batch={batch}",
        parameters={"batch": batch, "tol": 2.0**-depth, **SPARK},
        contenders=tuple(contender(t) for t in TREES),
        ratios=OVER_PEER,
    )


# Fixed grids ------------------------------------------------------------------------


GRID = np.linspace(0.0, HORIZON, STEPS + 1).astype(np.float32)
# How `diffeqsolve` is told to take the steps of the grid. Its two ways take the same
# steps, up to rounding, at a different cost of their own.
STEPPING = {
    "constant": lambda: {"dt0": HORIZON / STEPS},
    "StepTo": lambda: {
        "dt0": None,
        "stepsize_controller": diffrax.StepTo(jnp.asarray(GRID)),
    },
}
GRID_RATIOS = {
    "over scan": ("pathax", "scan"),
    "over diffeqsolve": ("pathax", "diffeqsolve"),
    "speedup": ("diffrax", "pathax"),
}
# A grid path that returns NaN off the grid instead of raising, and the barest path that
# there is: `increments[round(t0 / step)]`.
STORED_RATIOS = GRID_RATIOS | {
    "unchecked over scan": ("pathax, check=False", "scan"),
    "look-up over scan": ("bare look-up", "scan"),
}


def _on_grid(
    path: diffrax.AbstractBrownianPath | None,
    y0: jax.Array | None = None,
    *,
    stepping: str,
) -> jax.Array:
    return _euler_solve(path, y0, **STEPPING[stepping]())


def _scan(noise: jax.Array) -> jax.Array:
    """The same Euler steps, by hand."""

    def step(y, inputs):
        dt, dw = inputs
        return y - y * dt + dw, None

    return jax.lax.scan(step, jnp.ones(()), (jnp.asarray(np.diff(GRID)), noise))[0]


def _grid_path(key: jax.Array, check: bool = True):
    tree = tree_maker("pathax", "W", (), 12, horizon=HORIZON)(key)
    return tree.on_grid(GRID, check=check)


class _LookUp(diffrax.AbstractBrownianPath):
    """The barest path: stored increments, found by rounding, nothing checked."""

    increments: jax.Array
    levy_area: type = eqx.field(static=True, default=diffrax.BrownianIncrement)
    t0: float = eqx.field(static=True, default=0.0)
    t1: float = eqx.field(static=True, default=HORIZON)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment that begins nearest to `t0`."""
        del t1, left, use_levy
        return self.increments[jnp.round(t0 * (STEPS / HORIZON)).astype(jnp.int32)]


def _stored_paths(batch: int, check: bool):
    """Paths on the grid, and which of their leaves differ from path to path."""
    if batch == 1:
        return _grid_path(_keys(1), check), None
    some = [_grid_path(key, check) for key in _keys(2)]
    same = lambda a, b: None if np.array_equal(a, b) else 0
    raw = jax.tree.map(_raw, some, is_leaf=_is_key)
    axes = jax.tree.map(same, *raw, is_leaf=_is_key)
    paths = jax.vmap(lambda key: _grid_path(key, check), out_axes=axes)(_keys(batch))
    return paths, axes


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _stored_grid(stepping: str, batch: int, check: bool = True) -> Contender:
    """Arrays go in one by one, as the noise of the scan does.

    Passing the path itself to a compiled function adds a few microseconds to a call, in
    which JAX takes it apart; built inside that function, as paths mostly are, it does
    not.
    """

    def make():
        paths, axes = _stored_paths(batch, check)
        arrays, structure = jax.tree.flatten(paths)

        def solve(*arrays):
            path = jax.tree.unflatten(structure, arrays)
            return _on_grid(path, stepping=stepping)

        if batch > 1:
            axes = structure.flatten_up_to(axes)
            solve = jax.vmap(solve, in_axes=tuple(axes))
        return solve, tuple(arrays)

    return Contender("pathax" if check else "pathax, check=False", make)


def _bare_look_up(stepping: str, batch: int) -> Contender:
    def make():
        solve = lambda noise: _on_grid(_LookUp(noise), stepping=stepping)
        return _over_batch(solve, batch), (_stored_noise(batch),)

    return Contender("bare look-up", make)


def _stored_noise(batch: int) -> jax.Array:
    shape = (STEPS,) if batch == 1 else (batch, STEPS)
    return jax.random.normal(_keys(1), shape) * np.float32(STEPS**-0.5)


def _stored_scan(batch: int) -> Contender:
    def make():
        return _over_batch(_scan, batch), (_stored_noise(batch),)

    return Contender("scan", make)


def _without_noise(stepping: str, batch: int) -> Contender:
    """What `diffeqsolve` takes for as many steps of the drift alone."""

    def make():
        solve = lambda y0: _on_grid(None, y0, stepping=stepping)
        y0 = jnp.ones(() if batch == 1 else (batch,))
        return _over_batch(solve, batch), (y0,)

    return Contender("diffeqsolve", make)


def _built(name: str, solve: Callable, batch: int) -> Contender:
    return Contender(name, lambda: (_over_batch(solve, batch), (_keys(batch),)))


def grid_case(stored: bool, stepping: str, batch: int) -> Case:
    """Euler on a grid: noise laid out beforehand (stored), or in the timed function.

    Beside a scan by hand, and beside `diffeqsolve` with no noise at all, which bounds
    from below what a path can reach there.
    """

    def drawn_scan(key):
        return _scan(jax.random.normal(key, (STEPS,)) * np.float32(STEPS**-0.5))

    def ours(key):
        return _on_grid(_grid_path(key), stepping=stepping)

    def diffrax_tree(key):
        build = tree_maker("diffrax", "W", (), 12, horizon=HORIZON)
        return _on_grid(build(key), stepping=stepping)

    if stored:
        first = (
            _stored_grid(stepping, batch),
            _stored_grid(stepping, batch, check=False),
            _bare_look_up(stepping, batch),
            _stored_scan(batch),
        )
    else:
        first = (_built("pathax", ours, batch), _built("scan", drawn_scan, batch))
    where = "stored" if stored else "built"
    return Case(
        name=f"grid/{where},steps={stepping},batch={batch}",
        parameters={
            "steps": STEPS,
            "batch": batch,
            "stored": stored,
            "stepping": stepping,
        },
        contenders=(
            *first,
            _without_noise(stepping, batch),
            _built("diffrax", diffrax_tree, batch),
        ),
        ratios=STORED_RATIOS if stored else GRID_RATIOS,
    )


# The floor --------------------------------------------------------------------------


def _strictly_inside(time: float, level: int) -> set[int]:
    """The node of this level that has the time in its interior, if any."""
    place = time * 2.0**level
    return set() if place == int(place) else {int(place)}


def minimal_normals(depth: int, order: int, s: float, u: float) -> int:
    """How many normals an element the increment over `[s, u]`, in `[0, 1]`, needs.

    A node's innovations matter only if `s` or `u` is strictly inside of the node; so
    this is `order + 1` times one (the root) plus the number of such nodes, leaves
    included. Two times in one leaf need it split twice.
    """
    nodes = 1
    for level in range(depth + 1):
        first, second = _strictly_inside(s, level), _strictly_inside(u, level)
        is_leaf = level == depth
        nodes += len(first) + len(second) if is_leaf else len(first | second)
    return (order + 1) * nodes


def floor_case(area: str, batch: int) -> Case:
    """A batched query of 1000 components beside one call that draws its normals."""
    depth, size, order = 12, 1000, list(AREAS).index(area)
    s, u = _intervals(batch)
    pairs = zip(s.tolist(), u.tolist(), strict=True)
    count = sum(minimal_normals(depth, order, a, b) for a, b in pairs)

    def draw():
        normals = lambda key: jax.random.normal(key, (count, size))
        return normals, (_keys(1),)

    return Case(
        name=f"floor/{area},shape=({size},),batch={batch}",
        parameters={
            "area": area,
            "batch": batch,
            "tol": 2.0**-depth,
            "normals": count * size,
        },
        contenders=(
            _query("pathax", area, (size,), batch, depth),
            Contender("jax.random.normal", draw),
        ),
        ratios={"over floor": ("pathax", "jax.random.normal")},
        rounds=9 if batch >= 1000 else None,
    )


def speed_cases(config: Config) -> list[Case]:
    """All timed cases."""
    cases = query_cases(config)
    for batch in (1, 100):
        cases += [euler_case(batch), spark_case(batch)]
        for stepping in STEPPING:
            cases += [grid_case(stored, stepping, batch) for stored in (True, False)]
    for area in AREAS:
        cases += [floor_case(area, n) for n in ((100,) if config.fast else (100, 1000))]
    return cases
