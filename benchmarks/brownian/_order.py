"""Strong order of diffrax's QUICSORT in float32, a solver that needs W, H and K.

Underdamped Langevin dynamics in a double well in two dimensions,
`dx = v dt`, `dv = -gamma v dt - u grad f(x) dt + sqrt(2 gamma u) dW`,
`f(x) = sum_i (x_i^2 - 1)^2 / 4 + x_0 x_1 / 2`.

Error is against a solve of the *same path* in float64 arithmetic with half of the
smallest step, where the solver's own error is far below float32 rounding. float32 and
float64 normals are different streams, so the path is kept in one of two ways. Ours
holds its relative precision, so the reference casts the float32 increments up.
diffrax's does not; casting up its increments at the finest step would put the reference
itself in doubt. There the tree is built in float64 on float32 normals: the same path,
with exact algebra. All times are dyadic and on nodes of the tree, so they are exact in
both dtypes.

A full run also solves in float64 arithmetic on the float32 noise of each tree: beside
the solver's own error, what is left is that of the noise alone.
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._case import Case, Config
from ._paths import TREES, tree_maker


GAMMA, MOBILITY = 1.0, 1.0
HORIZON = 16.0
EXPONENTS = tuple(range(2, 10))  # steps 2^-2 ... 2^-9
FINER = 1  # the reference's step is 2^-FINER of the smallest one
DEPTH = 15  # of the tree: leaves of HORIZON / 2^15 = 2^-11, below the reference's step
SHAPE = (2,)
# Below this `gamma h` the solver expands its coefficients; above it, they cancel to a
# relative error of `eps / (gamma h)^2`, which in float32 is small only for large steps.
TAYLOR_BELOW = 0.2
ABOVE_FLOOR = 8.0  # the fit of the order leaves out errors below this many floors


def _force(x: jax.Array, args: None) -> jax.Array:
    return x**3 - x + 0.5 * x[::-1]


class _Upcast(diffrax.AbstractBrownianPath):
    """A float32 path whose increments are cast to float64."""

    path: diffrax.AbstractBrownianPath
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):
        return self.path.t0

    @property
    def t1(self):
        return self.path.t1

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment of the float32 path, in float64."""
        t0 = jnp.asarray(t0).astype(jnp.float32)
        t1 = None if t1 is None else jnp.asarray(t1).astype(jnp.float32)
        out = self.path.evaluate(t0, t1, left=left, use_levy=use_levy)
        return jax.tree.map(lambda x: x.astype(jnp.float64), out)


@contextlib.contextmanager
def _float32_normals() -> Iterator[None]:
    """While tracing: normals of any dtype are float32 ones, cast."""
    original = jax.random.normal

    def drawn(key, shape=(), dtype=float, **kwargs):
        return original(key, shape, jnp.float32, **kwargs).astype(dtype)

    jax.random.normal = drawn
    try:
        yield
    finally:
        jax.random.normal = original


def _path(
    tree: str, key: jax.Array, dtype: np.dtype, *, exact: bool = False
) -> diffrax.AbstractBrownianPath:
    """The float32 path that belongs to a key, with increments in the given dtype.

    `exact` asks for the best float64 increments of that path that can be had.
    """
    rebuild = exact and tree == "diffrax"
    struct = jax.ShapeDtypeStruct(SHAPE, np.float64 if rebuild else np.float32)
    path = tree_maker(tree, "W+H+K", struct, DEPTH, horizon=HORIZON)(key)
    if dtype == np.float64 and not rebuild:
        return _Upcast(path, diffrax.SpaceTimeTimeLevyArea)
    return path


def _solve(
    tree: str, key: jax.Array, step: float, dtype: np.dtype, exact: bool
) -> jax.Array:
    """Position and velocity at the horizon, in arithmetic of the given dtype."""
    gamma, mobility = dtype.type(GAMMA), dtype.type(MOBILITY)
    path = _path(tree, key, dtype, exact=exact)
    drift = diffrax.UnderdampedLangevinDriftTerm(gamma, mobility, _force)
    noise = diffrax.UnderdampedLangevinDiffusionTerm(gamma, mobility, path)
    start = (jnp.zeros(SHAPE, dtype), jnp.zeros(SHAPE, dtype))
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(drift, noise),
        diffrax.QUICSORT(TAYLOR_BELOW),
        t0=dtype.type(0),
        t1=dtype.type(HORIZON),
        dt0=dtype.type(step),
        y0=start,
        saveat=diffrax.SaveAt(t1=True),
        max_steps=2**20,
    )
    x, v = solution.ys
    return jnp.concatenate([x[0], v[0]])


def _ends(
    tree: str, keys: jax.Array, step: float, dtype: np.dtype, *, exact: bool = False
) -> np.ndarray:
    with _float32_normals():
        solve = jax.jit(jax.vmap(lambda key: _solve(tree, key, step, dtype, exact)))
        return np.asarray(solve(keys), np.float64)


def slope(steps: list[float], errors: list[float]) -> float:
    """Least-squares slope of log error against log step; NaN for fewer than two."""
    if len(steps) < 2:
        return math.nan
    return float(np.polyfit(np.log2(steps), np.log2(errors), 1)[0])


def rounding_floor(step: float, size: float) -> float:
    """Error of `HORIZON / step` float32 additions to numbers of that size."""
    return float(np.finfo(np.float32).eps) * size * math.sqrt(HORIZON / step)


def _fit(steps: list[float], errors: list[float], floors: list[float]) -> float:
    """Order over the steps that rounding cannot have touched, from theory alone.

    Which steps enter is decided by the third-order line through the largest steps, so
    it does not depend on how a contender fails.
    """
    scale = errors[1] / steps[1] ** 3
    kept = [
        (h, e)
        for h, e, floor in zip(steps, errors, floors, strict=True)
        if scale * h**3 > ABOVE_FLOOR * floor
    ]
    return slope([h for h, _ in kept], [e for _, e in kept])


def _errors(
    tree: str, keys: jax.Array, reference: np.ndarray, dtype: np.dtype
) -> list[float]:
    """Root-mean-square error at the horizon, a step each."""
    return [
        float(np.sqrt(np.mean((_ends(tree, keys, 2.0**-e, dtype) - reference) ** 2)))
        for e in EXPONENTS
    ]


def _measure(paths: int, separate: bool, run: int) -> dict:
    """Errors and orders; with `separate`, those of float32 noise alone as well."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(3), run), paths)
        finest = 2.0 ** -(EXPONENTS[-1] + FINER)
        steps = [2.0**-e for e in EXPONENTS]
        single, double = np.dtype(np.float32), np.dtype(np.float64)
        figures = {"paths": paths, "steps": steps, "reference step": finest}
        for tree in TREES:
            reference = _ends(tree, keys, finest, double, exact=True)
            size = float(np.sqrt(np.mean(reference**2)))
            floors = [rounding_floor(h, size) for h in steps]
            errors = _errors(tree, keys, reference, single)
            figures["floors"] = floors
            figures[f"errors {tree}"] = errors
            figures[f"order {tree}"] = _fit(steps, errors, floors)
            if separate:
                alone = _errors(tree, keys, reference, double)
                figures[f"errors of noise {tree}"] = alone
    return figures


def order_cases(config: Config) -> list[Case]:
    """One study, on more paths in a full run."""
    paths = 32 if config.fast else 100
    return [
        Case(
            name="quicksort/double-well",
            parameters={
                "gamma": GAMMA,
                "u": MOBILITY,
                "horizon": HORIZON,
                "paths": paths,
                "exponents": list(EXPONENTS),
                "finer": FINER,
                "depth": DEPTH,
                "separate": not config.fast,
                "taylor_below": TAYLOR_BELOW,
            },
            measure=functools.partial(_measure, paths, not config.fast),
        )
    ]
