"""Multilevel Monte Carlo with as many levels as the bias needs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ._chunk import Chunk, flattened, one_device
from ._ensemble import _unravel
from ._statistics import Totals


class MLMCLevel(NamedTuple):
    """One line of the table of a multilevel estimate.

    With several outputs, the largest of each figure.

    **Attributes:**

    - `level`: its number, from 0.
    - `paths`: how many were taken.
    - `mean`: absolute mean of the correction, fine minus coarse; of the output itself
      at level 0.
    - `variance`: of the correction.
    - `fine_variance`: of the output itself.
    - `cost`: of one path, in the unit of the cost function.
    - `consistency`: how far means of fine, coarse and correction are from agreeing, in
      three standard errors; above one is a sign that the two solves of a level are not
      those of its neighbors.
    """

    level: int
    paths: int
    mean: float
    variance: float
    fine_variance: float
    cost: float
    consistency: float


class MLMCResult(NamedTuple):
    """What [`pathax.simulation.mlmc`][] returns.

    **Attributes:**

    - `mean`: the estimate, with the structure of what `solve` returns.
    - `standard_error`: its statistical error, likewise.
    - `bias`: estimated error of the finest level, the largest of all outputs.
    - `levels`: one [`pathax.simulation.MLMCLevel`][] a level.
    - `cost`: of all paths, in the unit of the cost function.
    - `plain_cost`: what single-level Monte Carlo on the finest level would cost for the
      same standard error.
    - `alpha`, `beta`: orders at which bias and variance fall with the refinement.
    - `converged`: whether the bias was small enough before `max_level`.
    """

    mean: PyTree
    standard_error: PyTree
    bias: float
    levels: tuple[MLMCLevel, ...]
    cost: float
    plain_cost: float
    alpha: float
    beta: float
    converged: bool

    def __str__(self) -> str:
        head = ("level", "paths", "|mean|", "variance", "of output", "cost a path")
        lines = ["".join(f"{name:>13}" for name in head)]
        for x in self.levels:
            figures = (x.mean, x.variance, x.fine_variance, x.cost)
            text = "".join(f"{v:13.3e}" for v in figures)
            lines.append(f"{x.level:13d}{x.paths:13d}{text}")
        return "\n".join(lines)


class _Level:
    """Paths of one level: the correction, and the output itself."""

    def __init__(self, number, solve, path, key, mesh, chunk, parts, cost):
        def one(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
            noise = path(key)
            fine = solve(noise, number)
            if number == 0:
                return fine, fine
            coarse = solve(noise, number - 1)  # of the same path
            return jax.tree.map(lambda x, y: x - y, fine, coarse), fine

        size = jax.eval_shape(flattened(one), key).shape[0]
        self.key = jax.random.fold_in(key, number)
        options = {"size": chunk, "parts": parts, "covariance": False, "sketch": False}
        self.run = Chunk(one, self.key, mesh, cells=None, **options)
        self.totals = Totals(size, False, 0, 0)
        self.number, self.cost, self.outputs = number, float(cost), size // 2

    @property
    def paths(self) -> int:
        return self.totals.count

    def extend(self, target: int) -> None:
        """Take paths until there are so many, in whole chunks."""
        nothing = np.zeros(2 * self.outputs, np.float32)
        while self.paths < target:
            start = self.paths
            found = self.run(start, start + self.run.size, nothing, nothing + 1)
            self.totals.add(*found)
            if self.totals.bad:
                raise FloatingPointError(
                    f"Path {self.totals.first_bad} of level {self.number} isn't finite."
                )

    def part(self, figure: np.ndarray, fine: bool = False) -> np.ndarray:
        return figure[self.outputs :] if fine else figure[: self.outputs]


def mlmc(
    solve: Callable[[Any, int], PyTree],
    path: Callable[[PRNGKeyArray], Any],
    key: PRNGKeyArray,
    *,
    rmse: float,
    cost: Callable[[int], float] = lambda level: 2.0**level,
    refinement: float = 2.0,
    min_level: int = 2,
    max_level: int = 12,
    first: int = 512,
    chunk: int = 512,
    parts: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> MLMCResult:
    r"""Multilevel Monte Carlo with adaptive levels.

    $$E f_L = E f_0 + \sum_{l=1}^L E (f_l - f_{l-1}), \qquad
      N_l = \Big\lceil \frac{2}{\varepsilon^2} \sqrt{V_l / C_l}
      \sum_k \sqrt{V_k C_k} \Big\rceil,$$

    where both solves of a correction read the same path, so that its variance $V_l$ is
    small, and $C_l$ is the cost of one. Levels are added until the bias, extrapolated
    from the last three, is below $\varepsilon / \sqrt 2$; the statistical error is
    brought below that as well.

    **Arguments:**

    - `solve`: from a path and a level (a Python integer) to a tree of real numbers or
      arrays. Level $l + 1$ is the finer one.
    - `path`: from a random key to a path, e.g. a
      [`pathax.brownian.VirtualBrownianTree`][] that resolves the finest level.
    - `key`: random key of the estimate.
    - `rmse`: the root mean square error $\varepsilon$ that is asked for, of each
      output.
    - `cost`: of one path of a level, both solves together, in any unit.
    - `refinement`: how much finer the next level is; orders $\alpha$ and $\beta$ are in
      powers of it.
    - `min_level`, `max_level`: the finest level at least and at most.
    - `first`: paths a level before anything is estimated.
    - `chunk`, `parts`, `mesh`: as in [`pathax.simulation.ensemble`][], for level 0;
      chunks of finer levels are smaller, by the refinement, down to 32 paths a part.

    **Returns:** an [`pathax.simulation.MLMCResult`][], whose text is the table of
    levels.

    **Raises:** `ValueError` for levels out of order or an error that isn't positive;
    `FloatingPointError` for paths that aren't finite.

    **Cost:** of order $\varepsilon^{-2}$ if $\beta > \gamma$, where the cost of a path
    grows like $2^{\gamma l}$; $\varepsilon^{-2} \log^2 \varepsilon$ if they are equal.
    One compilation a level.

    **Reference:** M. B. Giles, Multilevel Monte Carlo methods, Acta Numerica 24 (2015),
    algorithm 1 and equations 3.1 to 3.4, with his safeguards on small samples.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> def euler(path, level):  # dX = X dW, X = 1; the mean stays 1
    ...     ts = jnp.linspace(0.0, 1.0, 2**level + 1)
    ...     dw = jax.vmap(path.evaluate)(ts[:-1], ts[1:])
    ...     return jnp.prod(1 + 0.2 * dw)
    >>> path = lambda key: px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-12, (), key)
    >>> found = px.simulation.mlmc(euler, path, jax.random.key(0), rmse=0.01)
    >>> bool(abs(found.mean - 1) < 0.03) and found.converged
    True

    ```
    """
    if not rmse > 0 or not 1 <= min_level <= max_level or refinement <= 1:
        raise ValueError(
            "`rmse` must be positive, 1 <= `min_level` <= `max_level`, "
            f"`refinement` > 1; got {rmse}, {min_level}, {max_level} and {refinement}."
        )
    mesh = one_device() if mesh is None else mesh

    def new(number: int) -> _Level:
        size = max(32 * parts, int(chunk / refinement**number) // parts * parts)
        each = (solve, path, key, mesh, size, parts, cost(number))
        return _Level(number, *each)

    levels = [new(number) for number in range(min_level + 1)]
    targets = [first] * len(levels)
    while True:
        for level, target in zip(levels, targets, strict=True):
            level.extend(target)
        rates = _Rates.of(levels, refinement)
        targets = _allocation(levels, rates.variances, rmse)
        if any(t > 1.01 * x.paths for x, t in zip(levels, targets, strict=True)):
            continue
        converged = rates.bias <= rmse / math.sqrt(2)
        if converged or len(levels) > max_level:
            return _summary(levels, rates, solve, path, key, converged)
        levels.append(new(len(levels)))
        guess = [*rates.variances, rates.variances[-1] / refinement**rates.beta]
        targets = _allocation(levels, guess, rmse)
        targets[-1] = max(targets[-1], min(first, 32))


class _Rates(NamedTuple):
    """Orders, and figures of levels that small samples can't spoil."""

    alpha: float
    beta: float
    variances: list[float]
    bias: float

    @classmethod
    def of(cls, levels: list[_Level], refinement: float) -> "_Rates":
        means = [float(np.abs(x.part(x.totals.mean)).max()) for x in levels]
        variances = [float(x.part(x.totals.variance).max()) for x in levels]
        alpha = _order(means, refinement)
        beta = _order(variances, refinement)
        for i in range(2, len(levels)):
            means[i] = max(means[i], 0.5 * means[i - 1] / refinement**alpha)
            least = 0.5 * variances[i - 1] / refinement**beta
            variances[i] = max(variances[i], least)
        last = range(min(3, len(levels) - 1))
        worst = max(means[-1 - i] / refinement ** (i * alpha) for i in last)
        return cls(alpha, beta, variances, worst / (refinement**alpha - 1))


def _order(values: list[float], refinement: float) -> float:
    """Slope of the logarithm over the levels from 1, and at least one half."""
    y = np.log(np.maximum(values[1:], 1e-300)) / math.log(refinement)
    if len(y) < 2:
        return 0.5
    slope = np.polyfit(np.arange(len(y)), y, 1)[0]
    return max(0.5, -float(slope))


def _allocation(levels: list[_Level], variances: list[float], rmse: float) -> list[int]:
    costs = [x.cost for x in levels]
    pairs = list(zip(variances, costs, strict=True))
    total = sum(math.sqrt(v * c) for v, c in pairs)
    return [math.ceil(2 / rmse**2 * math.sqrt(v / c) * total) for v, c in pairs]


def _consistency(levels: list[_Level], i: int) -> float:
    """Of the means of both outputs and of the correction, over three errors."""
    if i == 0:
        return 0.0
    now, before = levels[i], levels[i - 1]
    fine = now.part(now.totals.mean, True) - before.part(before.totals.mean, True)
    gap = np.abs(now.part(now.totals.mean) - fine)
    errors = (
        now.part(now.totals.standard_error)
        + now.part(now.totals.standard_error, True)
        + before.part(before.totals.standard_error, True)
    )
    tiny = np.finfo(np.float32).tiny
    return float((gap / (3 * errors + tiny)).max())


def _summary(levels, rates: _Rates, solve, path, key, converged: bool) -> MLMCResult:
    whole = _unravel(jax.eval_shape(lambda k: solve(path(k), 0), key))
    errors = [x.part(x.totals.standard_error) for x in levels]
    squares = np.sum(np.square(errors), axis=0)
    finest = levels[-1]
    plain = float(finest.part(finest.totals.variance, True).max())
    table = tuple(
        MLMCLevel(
            x.number,
            x.paths,
            float(np.abs(x.part(x.totals.mean)).max()),
            float(x.part(x.totals.variance).max()),
            float(x.part(x.totals.variance, True).max()),
            x.cost,
            _consistency(levels, i),
        )
        for i, x in enumerate(levels)
    )
    least = max(float(np.max(squares)), 1e-300)
    return MLMCResult(
        mean=whole(np.sum([x.part(x.totals.mean) for x in levels], axis=0)),
        standard_error=whole(np.sqrt(squares)),
        bias=rates.bias,
        levels=table,
        cost=sum(x.paths * x.cost for x in levels),
        plain_cost=plain / least * finest.cost,
        alpha=rates.alpha,
        beta=rates.beta,
        converged=converged,
    )
