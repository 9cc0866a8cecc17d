"""A statistical test suite for Brownian paths, of this library or any other.

It knows a path by what it returns for intervals: the normalised moments `Z_0..Z_N`,
that should be independent standard normal for disjoint intervals, satisfy Chen's
relation for adjacent ones, and be functions of the key and the interval alone.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from . import _legendre as lg
from ._inputs import RealScalar
from ._levy import order_of
from ._path import AbstractMomentPath


@dataclasses.dataclass(frozen=True)
class LawCheck:
    """One line of a report.

    **Attributes:**

    - `name`: what was tested.
    - `passed`: whether it holds.
    - `value`: the p-value of a statistical test, or the size of an error.
    - `limit`: what `value` must be above (p-values) or below (errors).
    - `detail`: where the worst case was.
    """

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


@dataclasses.dataclass(frozen=True)
class LawReport:
    """What [`pathax.brownian.check_law`][] found.

    **Attributes:**

    - `passed`: whether all checks hold.
    - `checks`: one [`pathax.brownian.LawCheck`][] a test.
    - `variance_ratios`: sample variance over exact variance, by interval length (a
      fraction of the horizon), for each moment.
    - `paths`: how many paths there were.
    - `level`: the probability that a correct path fails any of the checks.
    """

    passed: bool
    checks: tuple[LawCheck, ...]
    variance_ratios: dict[float, tuple[float, ...]]
    paths: int
    level: float

    def __str__(self) -> str:
        lines = [f"law of a Brownian path: {self.paths} paths, level {self.level:g}"]
        for c in self.checks:
            mark = "ok  " if c.passed else "FAIL"
            lines.append(
                f"{mark} {c.name:<34} {c.value:9.2e} ({c.limit:.1e}) {c.detail}"
            )
        return "\n".join(lines)


@dataclasses.dataclass
class _Sampler:
    """Normalised moments of many paths over many intervals."""

    make_path: Callable[[PRNGKeyArray], Any]
    order: int
    keys: Array
    batch: int

    def __post_init__(self):
        self._run = jax.jit(jax.vmap(self._one, in_axes=(0, None, None)))

    def _one(self, key, starts, ends):
        path = self.make_path(key)
        return jax.vmap(lambda s, u: moments_of(path, s, u, self.order))(starts, ends)

    def __call__(self, starts: np.ndarray, ends: np.ndarray):
        """Batches of `(paths, intervals, order + 1, elements)`, in float64."""
        for i in range(0, len(self.keys), self.batch):
            out = self._run(self.keys[i : i + self.batch], starts, ends)
            lengths = np.abs(ends.astype(np.float64) - starts)
            scale = np.sqrt((2 * np.arange(self.order + 1) + 1) / lengths[:, None])
            yield np.asarray(out, np.float64) * scale[None, :, :, None]

    def all(self, starts, ends) -> np.ndarray:
        return np.concatenate(list(self(starts, ends)))


def moments_of(path: Any, s: Array, u: Array, order: int) -> Array:
    """Moments `L_0..L_order` of any Diffrax path as `(order + 1, elements)`, real."""
    if isinstance(path, AbstractMomentPath):
        leaves = jax.tree.leaves(path.moments(s, u))
    else:
        increment = path.evaluate(s, u, use_levy=True)
        fields = [increment.W]
        fields += [jax.tree.map(lambda x: -2 * x, increment.H)] if order >= 1 else []
        fields += [jax.tree.map(lambda x: 12 * x, increment.K)] if order >= 2 else []
        leaves = jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *fields))
    flat = []
    for leaf in leaves:
        rows = leaf.reshape(order + 1, -1)
        if jnp.issubdtype(rows.dtype, jnp.complexfloating):
            rows = jnp.concatenate([rows.real, rows.imag], axis=1) * np.sqrt(2)
        flat.append(rows.astype(jnp.result_type(float)))
    return jnp.concatenate(flat, axis=1)


def check_law(
    make_path: Callable[[PRNGKeyArray], Any],
    *,
    key: PRNGKeyArray,
    t0: float = 0.0,
    t1: float = 1.0,
    tol: float | None = None,
    paths: int = 20_000,
    intervals: int = 10,
    level: float = 1e-3,
    batch: int = 5_000,
) -> LawReport:
    """Test the law and the consistency of a kind of Brownian path.

    Tested are: marginal laws on intervals of all lengths; variances on lengths from a
    quarter of the horizon down to `2 tol`, at the end of the horizon too; joint
    whiteness of the moments over adjacent intervals between random, very uneven times;
    the law of a part given the whole (each asked for by itself); independence across
    keys and elements; both ends in one leaf (an exact law or an error will do); Chen's
    relation for random partitions; equal answers whatever the order of queries;
    orientation.

    **Arguments:**

    - `make_path`: from a key to a path: one of this folder, or any Diffrax path with
      `levy_area` among the three public classes.
    - `key`: for the paths' keys and the random times.
    - `t0`, `t1`: the horizon of the paths.
    - `tol`: the path's tolerance: times that are tested together are at least `2 tol`
      apart. By default that of the path if it has a `leaf_length`, else
      `(t1 - t0) / 1024`.
    - `paths`: how many. An error of `3 sqrt(2 / paths)` in a variance is seen.
    - `intervals`: how many adjacent intervals are tested jointly.
    - `level`: the probability that a correct path fails (Bonferroni over all tests).
    - `batch`: how many paths at once; bounds the memory.

    **Returns:** a [`pathax.brownian.LawReport`][].

    **Raises:** `ValueError` if a horizon has no room for the intervals.

    **Cost.** About `paths * (20 intervals + 60)` queries.

    **Reference:** the joint test is Nagao's, "On some test criteria for covariance
    matrix", Ann. Statist. 1 (1973), for the identity.

    **Example:**

    >>> import jax
    >>> import pathax as px
    >>> report = px.brownian.check_law(
    ...     lambda key: px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-10, (), key),
    ...     key=jax.random.key(0), paths=500,
    ... )
    >>> report.passed
    True
    """
    example = make_path(key)
    order = (
        example.order
        if isinstance(example, AbstractMomentPath)
        else order_of(example.levy_area)
    )
    if tol is None:
        tol = float(getattr(example, "leaf_length", (t1 - t0) / 1024))
    if 4 * tol * intervals > t1 - t0:
        raise ValueError(
            f"There is no room for {intervals} intervals of length 2 tol = {2 * tol:g} "
            f"in [{t0}, {t1}]. Lower `intervals` or `tol`."
        )
    seed, keys = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(seed)).tolist())
    sampler = _Sampler(make_path, order, jax.random.split(keys, paths), batch)
    suite = _Suite(sampler, rng, t0, t1, tol, intervals)
    ratios = suite.scales()
    suite.joint()
    suite.conditional()
    suite.one_leaf()
    suite.chen()
    suite.deterministic()
    checks = tuple(suite.report(level))
    passed = all(check.passed for check in checks)
    return LawReport(passed, checks, ratios, paths, level)


@dataclasses.dataclass
class _Suite:
    sampler: _Sampler
    rng: np.random.Generator
    t0: float
    t1: float
    tol: float
    intervals: int

    def __post_init__(self):
        self.dtype = np.dtype(jnp.result_type(float))
        # name -> p-values with a description each, or errors with a limit
        self.p_values: dict[str, list[tuple[float, str]]] = {}
        self.errors: list[LawCheck] = []

    def report(self, level: float) -> list[LawCheck]:
        count = sum(len(values) for values in self.p_values.values())
        out = []
        for name, values in self.p_values.items():
            worst, detail = min(values, key=lambda v: v[0])
            limit = level / count
            out.append(LawCheck(name, worst >= limit, worst, limit, detail))
        return out + self.errors

    def _note(self, name: str, p: Any, detail: str) -> None:
        p = float(p)
        p = p if math.isfinite(p) else 0.0
        self.p_values.setdefault(name, []).append((p, detail))

    def _note_normal(self, name: str, z: np.ndarray, detail: str) -> None:
        """Kolmogorov-Smirnov and variance of what should be standard normal."""
        from scipy import stats

        z = z.reshape(-1)
        self._note(f"{name}: distribution", stats.kstest(z, "norm").pvalue, detail)
        square = float(np.sum(z**2))
        tail = stats.chi2.cdf(square, z.size), stats.chi2.sf(square, z.size)
        self._note(f"{name}: variance", 2 * min(*tail), detail)

    def _times(self, *values: RealScalar) -> np.ndarray:
        return np.asarray(values, self.dtype)

    def scales(self) -> dict[float, tuple[float, ...]]:
        """Marginals at every length, in the middle and at the end of the horizon."""
        horizon, ratios = self.t1 - self.t0, {}
        finest = int(math.log2(horizon / (2 * self.tol)))
        for j in range(2, max(finest, 2) + 1):
            h = horizon * 2.0**-j
            middle = self.t0 + 0.7 * horizon
            starts = self._times(middle, self.t1 - 1.5 * h)
            ends = self._times(middle + h, self.t1 - 0.5 * h)
            z = self.sampler.all(starts, ends)
            for n in range(z.shape[2]):
                for i, place in enumerate(("middle", "end")):
                    detail = f"Z_{n}, h/T = 2^-{j}, {place}"
                    self._note_normal("marginals", z[:, i, n], detail)
            ratios[2.0**-j] = tuple(np.mean(z**2, axis=(0, 1, 3)).tolist())
        return ratios

    def _uneven_times(self, count: int) -> np.ndarray:
        """Times with log-uniform gaps between `2 tol` and a fraction of the horizon."""
        room = self.t1 - self.t0 - 2 * self.tol * (count + 1)
        gaps = np.exp(self.rng.uniform(0, math.log(room / self.tol), count + 1))
        gaps = 2 * self.tol + gaps * room / gaps.sum()
        times = self.t0 + np.cumsum(gaps)[:count]
        return times.astype(self.dtype)

    def joint(self) -> None:
        """All moments over adjacent intervals, and across elements and keys."""
        from scipy import stats

        times = self._uneven_times(self.intervals + 1)
        second, lagged, count = np.zeros(()), np.zeros(()), 0
        for sample in self.sampler(times[:-1], times[1:]):
            # A few elements are enough.
            z = sample[..., :4].reshape(sample.shape[0], -1)
            second = second + z.T @ z
            lagged = lagged + z[1:].T @ z[:-1]
            count += z.shape[0]
        size = len(second)
        deviation = second / count - np.eye(size)
        total = count * np.sum(deviation**2) / 2
        p = stats.chi2.sf(total, size * (size + 1) / 2)
        self._note("joint whiteness", p, f"{size} moments, chi2 = {total:.0f}")
        spread = np.sqrt((1 + np.eye(size)) / count)
        self._worst("joint covariance", deviation / spread)
        keys = len(self.sampler.keys) // self.sampler.batch or 1
        self._worst("independence across keys", lagged / math.sqrt(count - keys))

    def _worst(self, name: str, scores: np.ndarray) -> None:
        """The largest of many z-scores, corrected for their number."""
        from scipy import stats

        place = np.unravel_index(np.argmax(np.abs(scores)), scores.shape)
        p = min(1.0, 2 * stats.norm.sf(abs(scores[place])) * scores.size)
        self._note(name, p, f"z = {scores[place]:.1f} at {tuple(map(int, place))}")

    def conditional(self) -> None:
        """The first part of an interval given the whole, both asked for directly."""
        order = self.sampler.order
        for _ in range(3):
            s, r, u = self._uneven_times(3)
            theta = float((np.float64(r) - s) / (np.float64(u) - s))
            z = self.sampler.all(self._times(s, s), self._times(r, u))
            part, whole = z[:, 0], z[:, 1]
            left, _ = lg.split_matrices(order, theta)
            residual = part - np.einsum("nm,kne->kme", left, whole)
            cover = np.eye(order + 1) - left.T @ left
            white = np.linalg.solve(
                np.linalg.cholesky(cover + 1e-12 * np.eye(order + 1)), residual
            )
            detail = f"theta = {theta:.3g}"
            if theta < 0.5:  # the factor is singular to rounding for the longer part
                self._note_normal("part given whole", white, detail)
                cross = np.einsum("kme,kne->mn", white, whole)
                size = math.sqrt(white.shape[0] * white.shape[2])
                self._worst("part given whole: uncorrelated", cross / size)

    def one_leaf(self) -> None:
        """Both ends of a query in one leaf: the right law, or an error."""
        start = self.t0 + self.tol * (np.floor(0.6 * (self.t1 - self.t0) / self.tol))
        starts = self._times(start + 0.30 * self.tol)
        ends = self._times(start + 0.55 * self.tol)
        if ends[0] <= starts[0]:
            return  # times are not resolved below the tolerance
        lengths = (ends.astype(np.float64) - starts) / self.tol
        try:
            z = self.sampler.all(starts, ends)
        except Exception as error:
            detail = f"refused: {type(error).__name__}"
            self.errors.append(LawCheck("one leaf", True, 0.0, 0.0, detail))
            return
        for n in range(z.shape[2]):
            detail = f"Z_{n}, {lengths[0]:.2f} of a leaf"
            self._note_normal("one leaf", z[:, 0, n], detail)

    def chen(self) -> None:
        """The whole equals the parts put together, path by path."""
        order, worst = self.sampler.order, 0.0
        eps = float(np.finfo(self.dtype).eps)
        for _ in range(3):
            times = self._uneven_times(self.intervals + 1)
            starts = np.concatenate([times[:1], times[:-1]])
            ends = np.concatenate([times[-1:], times[1:]])
            z = next(iter(self.sampler(starts, ends)))
            span = np.float64(times[-1]) - times[0]
            joined = np.zeros_like(z[:, 0])
            for k in range(self.intervals):
                offset = (np.float64(times[k]) - times[0]) / span
                fraction = (np.float64(times[k + 1]) - times[k]) / span
                part = lg.piece_matrix(order, float(offset), float(fraction))
                joined += np.einsum("mn,kne->kme", part, z[:, k + 1])
            worst = max(worst, float(np.max(np.abs(joined - z[:, 0]))))
        limit = 64 * eps * (order + 1)
        detail = "largest error of a normalised moment"
        self.errors.append(
            LawCheck("Chen's relation", worst <= limit, worst, limit, detail)
        )

    def deterministic(self) -> None:
        """Same key and interval, same answer; from later to earlier, oriented."""
        times = self._uneven_times(self.intervals + 1)
        starts, ends = times[:-1], times[1:]
        shuffle = self.rng.permutation(self.intervals)
        once = next(iter(self.sampler(starts, ends)))
        again = next(iter(self.sampler(starts[shuffle], ends[shuffle])))
        gap = float(np.max(np.abs(once[:, shuffle] - again)))
        detail = "largest difference after permuting queries"
        self.errors.append(LawCheck("determinism", gap == 0, gap, 0.0, detail))
        back = next(iter(self.sampler(ends, starts)))
        signs = -((-1.0) ** np.arange(self.sampler.order + 1))
        gap = float(np.max(np.abs(back - signs[:, None] * once)))
        limit = 1e3 * float(np.finfo(self.dtype).eps)
        detail = "largest error for intervals from later to earlier"
        self.errors.append(LawCheck("orientation", gap <= limit, gap, limit, detail))


LawCheck.__module__ = "pathax.brownian"
LawReport.__module__ = "pathax.brownian"
