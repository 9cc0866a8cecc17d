"""A Brownian path on a fixed grid: everything drawn once, then looked up."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree

from ._inputs import RealScalar, as_time, compute_dtype
from ._path import AbstractMomentPath, Standardised, orientation


# A query time is read as a grid time if within this fraction of the shortest step.
_SNAP = 0.05

# How many grid steps are laid out at once.
_GROUP = 64

# Longest run of grid points that a look-up compares with; beyond it, binary search.
_LONGEST_RUN = 8

_OFF_GRID = (
    "A path on a grid was asked for an interval whose ends are not two grid times at "
    "most `span` steps apart. Let the solver step on the grid, `diffrax.StepTo(ts)`, "
    "or build the grid from the steps that it takes, "
    "`pathax.brownian.step_times(t0, t1, dt0)`; for longer intervals write "
    "`on_grid(ts, span=...)`; for any others use the tree."
)


class GridPath(AbstractMomentPath):
    """A path restricted to a grid of times, with constant-time look-up.

    Made by `VirtualBrownianTree.on_grid`, and the same path as that tree.

    **Attributes:**

    - `ts`: the grid, shape `(n,)`.
    - `span`: queries may be over 1 to `span` grid steps.
    - `check`: whether a query off the grid raises (or, if False, returns NaN).
    - `order`, `shape`, `t0`, `t1`: those of the tree; `evaluate(t)` with one time asks
      the tree, at its cost.

    **Raises:** with `check=True`, a run-time error for intervals whose ends are not
    grid times (to 5% of the shortest step, which allows for rounding of times that a
    solver adds up), or that have more than `span` steps.

    **Cost.** Building: one query of the tree for each grid step, in one batch. Memory:
    `span n (order + 1)` arrays of the path's shape. A query: one look-up, no random
    numbers. The check is a branch to the host in the loop of the solve, about half a
    microsecond a step on CPU; only for short scalar solves is that much.

    **Gradients.** As for the tree.

    **Precision.** The tree's values to a few units in the last place.

    **Reference:** as for [`pathax.brownian.VirtualBrownianTree`][].

    **Example:**

    >>> import jax, jax.numpy as jnp
    >>> import pathax as px
    >>> tree = px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-10, (), jax.random.key(0))
    >>> ts = jnp.linspace(0, 1, 101)
    >>> path = tree.on_grid(ts)
    >>> bool(abs(path.evaluate(ts[3], ts[4]) - tree.evaluate(ts[3], ts[4])) < 1e-6)
    True
    """

    ts: Float[Array, " n"]
    span: int = eqx.field(static=True)
    check: bool = eqx.field(static=True)
    tree: AbstractMomentPath
    _moments: tuple[PyTree[Array], ...]  # L_n over ts[i], ts[i + k], at entry k - 1
    _search: "_Search"

    def __init__(
        self, tree: AbstractMomentPath, ts: Any, *, span: int = 1, check: bool = True
    ):
        if not isinstance(span, int) or span < 1:
            raise ValueError(f"`span` must be an integer >= 1; got {span!r}.")
        dtype = tree.time_dtype()
        if not isinstance(ts, Tracer):
            ts = np.asarray(ts)
        ts = check_grid(ts.astype(dtype))
        if span >= ts.shape[0]:
            raise ValueError(
                "`span` must be less than the number of grid times, "
                f"{ts.shape[0]}; got {span}."
            )
        self.tree, self.span, self.check = tree, span, check
        self._search = _Search(ts)
        self.ts = ts = jnp.asarray(ts)
        self._moments = _lay_out(tree, ts, span)

    @property
    def shape(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.tree.shape

    @property
    def order(self) -> int:
        return self.tree.order

    @property
    def t0(self) -> RealScalar:
        return self.tree.t0

    @property
    def t1(self) -> RealScalar:
        return self.tree.t1

    def time_dtype(self) -> np.dtype:
        return self.tree.time_dtype()

    def evaluate(
        self,
        t0: RealScalar,
        t1: RealScalar | None = None,
        left: bool = True,
        use_levy: bool = False,
    ) -> PyTree[Array]:
        """As for the tree; see there."""
        if t1 is None:
            return self.tree.evaluate(t0, None, left, use_levy)
        return AbstractMomentPath.evaluate(self, t0, t1, left, use_levy)

    def _oriented(
        self, t0: RealScalar, t1: RealScalar, rows: int
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """Moments from the tables: the fewer operations the faster the solve."""
        dtype = self.time_dtype()
        search, ts = jax.lax.stop_gradient((self._search, self.ts))
        t0, t1 = as_time(t0, dtype), as_time(t1, dtype)
        if self.span == 1 and search.run == 0:
            first, steps, ok = search.step(ts, t0, t1)
        else:
            first, steps, ok = search.pair(ts, t0, t1)
            ok &= jnp.abs(steps) <= self.span
        ok |= t0 == t1
        if self.check:
            first = eqx.error_if(first, ~ok, _OFF_GRID)
        else:
            steps = jnp.where(ok, steps, jnp.nan)
        sign = steps if self.span == 1 else jnp.sign(steps)
        signs = jnp.where(orientation(rows) < 0, sign, jnp.abs(sign))

        def orient(*tables):
            out = _row(tables[0], first)[:rows]
            for k, table in enumerate(tables[1:], 2):
                out = jnp.where(jnp.abs(steps) == k, _row(table, first)[:rows], out)
            return signs.reshape(rows, *(1,) * (out.ndim - 1)).astype(out.dtype) * out

        last = first + jnp.abs(steps).astype(first.dtype)
        length = sign * (_row(ts, last) - _row(ts, first))
        return jax.tree.map(orient, *self._moments), length

    def standardised(self, s: RealScalar, u: RealScalar, rows: int) -> Standardised:
        moments, length = self._oriented(s, u, rows)
        positive = jnp.where(length > 0, length, 1)

        def normalise(moment):
            dtype = compute_dtype(moment.dtype)
            norms = np.sqrt(2 * np.arange(rows, dtype=dtype) + 1)
            norms = norms / jnp.sqrt(positive.astype(dtype))
            norms = norms.reshape(rows, *(1,) * (moment.ndim - 1))
            kind = jnp.promote_types(moment.dtype, dtype)
            return norms.astype(kind) * moment.astype(kind)

        return Standardised(jax.tree.map(normalise, moments), length)


GridPath.__module__ = "pathax.brownian"


@eqx.filter_jit
def _lay_out(
    tree: AbstractMomentPath, ts: Float[Array, " n"], span: int
) -> tuple[PyTree[Array], ...]:
    """Moments over `[ts[i], ts[i + k]]` for all `i`, by `k` from 1 to `span`.

    In groups, so that the normals of a group stay in cache.
    """

    def query(starts, ends):
        count = starts.shape[0]
        if count <= _GROUP:
            return jax.vmap(tree.moments)(starts, ends)
        padding = (0, -count % _GROUP)
        pairs = jnp.pad(starts, padding, "edge"), jnp.pad(ends, padding, "edge")
        out = jax.lax.map(lambda pair: tree.moments(*pair), pairs, batch_size=_GROUP)
        return jax.tree.map(lambda x: x[:count], out)

    return tuple(query(ts[:-k], ts[k:]) for k in range(1, span + 1))


def _row(table: Array, index: Integer[Array, ""]) -> Array:
    return jax.lax.dynamic_index_in_dim(table, index, keepdims=False)


_Times = Float[Array, " n"] | Float[np.ndarray, " n"]


def check_grid(ts: _Times) -> _Times:
    """Two or more increasing times."""
    if ts.ndim != 1 or ts.shape[0] < 2:
        raise ValueError(
            f"A grid must be a one-dimensional array of at least two times; got one of "
            f"shape {ts.shape}."
        )
    if isinstance(ts, Tracer):
        return eqx.error_if(ts, ~jnp.all(ts[1:] > ts[:-1]), "Grid times must increase.")
    bad = np.flatnonzero(~(np.diff(np.asarray(ts)) > 0))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"Grid times must increase; got ts[{i}] = {ts[i]} and ts[{i + 1}] = "
            f"{ts[i + 1]}."
        )
    return ts


class _Search(eqx.Module):
    """Index of the nearest grid time, and whether it is as good as equal.

    By division on a uniform grid; else through a table of equal buckets, if no bucket
    has many grid times; else, and for traced grids, by binary search.
    """

    scale: Float[Array, "3"]  # start, one over the mean step, longest distance to snap
    table: Int[Array, " buckets"] | None  # first grid time that may be in the bucket
    run: int = eqx.field(static=True)  # how many to compare with; 0: uniform

    def __init__(self, ts: _Times):
        count = ts.shape[0] - 1
        per_step = count / (ts[-1] - ts[0])
        scale = jnp.stack([ts[0], per_step, (ts[1:] - ts[:-1]).min() * _SNAP])
        # One array, as each one adds to the time of calling a compiled function.
        self.scale = scale.astype(ts.dtype)
        self.table, self.run = None, _LONGEST_RUN + 1
        if isinstance(ts, Tracer):
            return
        values, scale = np.asarray(ts, np.float64), float(per_step)
        uneven = np.abs((values - values[0]) * scale - np.arange(count + 1)).max()
        if uneven < _SNAP / 2:
            self.run = 0
            return
        edges = values[0] + np.arange(count + 2) / scale
        margin = 0.5 * np.diff(values).min()
        first = np.searchsorted(values, edges[:-1] - margin)
        last = np.searchsorted(values, edges[1:] + margin)
        self.run = max(int((last - first).max()), 1)
        if self.run <= _LONGEST_RUN:
            self.table = jnp.asarray(np.minimum(first, count), jnp.int32)

    def step(
        self, ts: Float[Array, " n"], t0: Float[Array, ""], t1: Float[Array, ""]
    ) -> tuple[Integer[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """As `pair`, for at most one step of a uniform grid.

        Solvers query in a loop of a few dozen scalar operations, so each one counts:
        one end and the length are rounded, not both ends.
        """
        start, per_step, _ = self.scale
        to0, to1 = (t0 - start) * per_step, (t1 - start) * per_step
        earlier, length = jnp.minimum(to0, to1), to1 - to0
        place, steps = jnp.round(earlier), jnp.clip(jnp.round(length), -1, 1)
        off = jnp.maximum(jnp.abs(earlier - place), jnp.abs(length - steps))
        # Unsigned, so that what is before the grid is beyond its end.
        first = place.astype(jnp.int32).astype(jnp.uint32)
        return first, steps, (off <= _SNAP) & (first < ts.shape[0] - 1)

    def pair(
        self, ts: Float[Array, " n"], t0: Float[Array, ""], t1: Float[Array, ""]
    ) -> tuple[Integer[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """The earlier of two grid times, signed steps to the other, if both are such.

        Steps are whole, but of the dtype of the times.
        """
        i, near0 = self(ts, t0)
        j, near1 = self(ts, t1)
        return jnp.minimum(i, j), (j - i).astype(ts.dtype), near0 & near1

    def __call__(
        self, ts: Float[Array, " n"], t: Float[Array, ""]
    ) -> tuple[Int[Array, ""], Bool[Array, ""]]:
        start, per_step, snap = self.scale
        place = (t - start) * per_step
        if self.run == 0:
            index = jnp.round(place)
            near = jnp.abs(place - index) <= _SNAP
            inside = (index >= 0) & (index <= ts.shape[0] - 1)
            return index.astype(jnp.int32), near & inside
        nearest = self._compare(ts, t, place)
        return nearest, jnp.abs(ts[nearest] - t) <= snap

    def _compare(
        self, ts: Float[Array, " n"], t: Float[Array, ""], place: Float[Array, ""]
    ) -> Int[Array, ""]:
        last = ts.shape[0] - 1
        if self.table is None:
            right = jnp.clip(jnp.searchsorted(ts, t), 1, last)
            nearer_left = t - ts[right - 1] < ts[right] - t
            return jnp.where(nearer_left, right - 1, right).astype(jnp.int32)
        bucket = jnp.clip(jnp.floor(place), 0, self.table.shape[0] - 1)
        index = self.table[bucket.astype(jnp.int32)]
        nearest, distance = index, jnp.abs(ts[index] - t)
        for i in range(1, self.run):
            other = jnp.minimum(index + i, last)
            away = jnp.abs(ts[other] - t)
            nearest = jnp.where(away < distance, other, nearest)
            distance = jnp.minimum(away, distance)
        return nearest


def step_times(t0: RealScalar, t1: RealScalar, dt0: RealScalar) -> Float[Array, " n"]:
    """The times that `diffrax.diffeqsolve` visits with `diffrax.ConstantStepSize`.

    `n = ceil((t1 - t0) / dt0)` steps: the first ends at `t0 + dt0`, step `k > 1` at
    `t0 + (t1 - t0) k / n`.

    **Arguments:** `t0`, `t1`, `dt0`: as given to `diffeqsolve`; concrete numbers.

    **Returns:** the times, shape `(n + 1,)`, in the default floating dtype.

    **Raises:** `ValueError` if `dt0` does not lead from `t0` to `t1`.

    **Example:**

    >>> import pathax as px
    >>> px.brownian.step_times(0.0, 1.0, 0.25).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    dtype = np.dtype(jnp.result_type(float))
    start, end, step = (dtype.type(x) for x in (t0, t1, dt0))
    if not (end > start and step > 0) or start + step == start:
        raise ValueError(
            "`step_times` needs `t0 < t1` and a `dt0 > 0` that the dtype resolves; got "
            f"{t0}, {t1}, {dt0}."
        )
    # As Diffrax does, count with the next larger step, so rounding adds none.
    count = math.ceil((end - start) / np.nextafter(step, dtype.type(np.inf)))
    times = start + (end - start) * (
        np.arange(count + 1, dtype=dtype) / dtype.type(count)
    )
    times[1] = min(start + step, end)
    times[-1] = end
    return jnp.asarray(times)
