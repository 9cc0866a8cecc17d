"""Statistics of many independent paths."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ._bar import Bar
from ._checkpoint import Checkpoint
from ._chunk import Chunk, flattened, one_device
from ._statistics import BINS, Totals, quantiles as from_bins, sketch_edges


class Ensemble(NamedTuple):
    """What [`pathax.simulation.ensemble`][] returns: NumPy arrays in double precision.

    Trees have the structure and shapes of what `solve` returns.

    **Attributes:**

    - `paths`: how many paths the statistics are of.
    - `mean`, `variance`: of each output; the variance with `paths - 1` below.
    - `standard_error`: of the mean.
    - `low`, `high`: the least and the largest value of each output.
    - `covariance`: `(d, d)` between all outputs, flattened in the order of
      `jax.flatten_util.ravel_pytree`; `None` unless asked for.
    - `quantiles`, `quantile_error`: one tree a level, and their standard errors.
    - `histogram`: counts in the cells between the edges, with one cell more at either
      end, as a last axis; `None` unless asked for.
    - `skipped`: how many paths were left out because they weren't finite.
    - `reason`: why it ended: `"n"` or `"rtol"`.
    """

    paths: int
    mean: PyTree
    variance: PyTree
    standard_error: PyTree
    low: PyTree
    high: PyTree
    covariance: np.ndarray | None
    quantiles: tuple[PyTree, ...]
    quantile_error: tuple[PyTree, ...]
    histogram: PyTree | None
    skipped: int
    reason: str


def ensemble(
    solve: Callable[[PRNGKeyArray], PyTree],
    key: PRNGKeyArray,
    n: int,
    *,
    covariance: bool = False,
    quantiles: Sequence[float] = (),
    histogram: Sequence[float] | np.ndarray | None = None,
    rtol: float | None = None,
    chunk: int = 8192,
    parts: int = 8,
    mesh: jax.sharding.Mesh | None = None,
    nan: str = "raise",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    progress: bool | None = None,
) -> Ensemble:
    r"""Statistics of `n` independent paths, in constant memory, on any devices.

    Path $i$ is `solve(jax.random.fold_in(key, i))`. Paths are computed in chunks; of
    each only sums are kept:

    $$\bar x = \frac1n \sum_i x_i, \qquad
      s^2 = \frac{1}{n - 1} \sum_i (x_i - \bar x)^2, \qquad
      \operatorname{se} = \frac{s}{\sqrt n},$$

    and counts in bins. The result is the same to the last bit on one device, on many,
    in several processes, and after any number of kills and resumes.

    **Arguments:**

    - `solve`: from a random key to a tree of real numbers or arrays, one path. It may
      call `diffrax.diffeqsolve` with a tree of that key.
    - `key`: random key of the whole ensemble.
    - `n`: how many paths, at most.
    - `covariance`: whether to estimate the covariance of all outputs.
    - `quantiles`: levels between 0 and 1. They are read from 8192 bins that are narrow
      near the median; see below.
    - `histogram`: increasing edges of cells.
    - `rtol`: stop at the end of the first chunk at which the standard error of every
      mean is at most so many times its absolute value.
    - `chunk`: paths at a time. Statistics are merged, the rule to stop is applied, and
      checkpoints are written, between chunks. Changing it may change last bits.
    - `parts`: a chunk is computed in so many parts, one after another on each device.
      Memory is that of `chunk / parts` paths a device. Their number must be a multiple
      of that of devices.
    - `mesh`: a `jax.sharding.Mesh`; parts are spread over all of its axes. With several
      processes (`jax.distributed.initialize`) each must be given the same arguments,
      and all get the result. One device if `None`.
    - `nan`: what to do about paths that aren't finite: `"raise"` an error that names
      the first, or `"skip"` and count them.
    - `checkpoint`: a file. If it exists, the run goes on from it. It is replaced in one
      step, so a kill at any moment leaves the last state whole.
    - `checkpoint_every`: chunks between checkpoints.
    - `progress`: whether to show a bar; by default where the output is a terminal.

    **Returns:** an [`pathax.simulation.Ensemble`][].

    **Raises:** `ValueError` for sizes that don't divide, levels outside of 0 to 1, or a
    checkpoint of another run; `TypeError` for complex outputs; `FloatingPointError` as
    said under `nan`.

    **Cost:** that of the paths, a compilation a device (of one and the same program),
    and a few operations an output. Quantiles take 8192 counters an output, and the
    first part is computed once more to place them.

    **Precision:** means and moments are taken about their own mean in each part, in the
    dtype of the paths, and added up in double precision. A quantile is off by at most a
    bin, $0.009 \sqrt{z^2 + 0.05^2}$ in units of the spread, at a distance $z$ from the
    median, in fact by far less where the density is smooth.

    **Reference:** T. F. Chan, G. H. Golub and R. J. LeVeque, Algorithms for computing
    the sample variance, The American Statistician 37 (1983), equation 2.1, for merging.

    **Example:**

    ```python
    >>> import jax
    >>> import pathax as px
    >>> walk = lambda key: jax.random.normal(key, (100,)).sum() / 10
    >>> found = px.simulation.ensemble(
    ...     walk, jax.random.key(0), 20_000, quantiles=(0.975,), chunk=4096
    ... )
    >>> bool(abs(found.mean) < 0.03 and abs(found.variance - 1) < 0.05)
    True
    >>> bool(abs(found.quantiles[0] - 1.96) < 0.1)
    True

    ```
    """
    _check(n, quantiles, nan, rtol, checkpoint_every)
    levels = tuple(float(p) for p in quantiles)
    cells = None if histogram is None else _edges(histogram)
    shapes = jax.eval_shape(solve, key)
    size = jax.eval_shape(flattened(solve), key)
    mesh = one_device() if mesh is None else mesh
    run = Chunk(
        solve,
        key,
        mesh,
        size=chunk,
        parts=parts,
        covariance=covariance,
        sketch=bool(levels),
        cells=cells,
    )
    count = size.shape[0]
    totals = Totals(
        count, covariance, BINS if levels else 0, 0 if cells is None else len(cells) + 1
    )
    file = Checkpoint(checkpoint, _identity(key, chunk, parts, size, covariance, cells))
    state = file.load()
    start, place = 0, None
    if state is not None:
        start, place = int(state["start"]), (state["center"], state["spread"])
        totals.restore(state)
        if start > n:
            raise ValueError(
                f"The checkpoint is of {start} paths already; ask for at least as "
                f"many, or give another file; got n = {n}."
            )
    place = _place(run, levels, size, chunk // parts) if place is None else place
    reason = "rtol" if start and _done(totals, rtol) else "n"
    with Bar(start, n, progress) as bar:
        while start < n and reason == "n":
            totals.add(*run(start, n, *place))
            _raise_if_bad(totals, nan)
            whole, start = start + chunk <= n, min(start + chunk, n)
            due = whole and start // chunk % checkpoint_every == 0
            if due or (whole and _done(totals, rtol)):
                names = {"center": place[0], "spread": place[1]}
                file.save({"start": np.asarray(start), **names, **totals.state()})
            reason = "rtol" if _done(totals, rtol) else "n"
            bar.advance(start, totals)
    return _result(totals, _unravel(shapes), place, levels, cells, reason)


def _check(n, quantiles, nan, rtol, every) -> None:
    if not 1 <= n < 2**32:
        raise ValueError(f"`n` must be at least 1 and below 2^32; got {n}.")
    if any(not 0 <= p <= 1 for p in quantiles):
        raise ValueError(f"`quantiles` must be between 0 and 1; got {quantiles}.")
    if nan not in ("raise", "skip"):
        raise ValueError(f'`nan` must be "raise" or "skip"; got {nan!r}.')
    if rtol is not None and not rtol > 0:
        raise ValueError(f"`rtol` must be positive, or `None`; got {rtol}.")
    if every < 1:
        raise ValueError(f"`checkpoint_every` must be at least 1; got {every}.")


def _edges(histogram: Any) -> np.ndarray:
    edges = np.asarray(histogram, np.float64)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"`histogram` must be at least two increasing edges; got {histogram}."
        )
    return edges


def _identity(key, chunk, parts, size, covariance, cells) -> dict[str, str]:
    data = np.asarray(jax.random.key_data(key)).tobytes()
    edges = b"" if cells is None else cells.tobytes()
    return {
        "key": f"{jax.random.key_impl(key)} {hashlib.sha256(data).hexdigest()[:12]}",
        "chunk": f"{chunk} in {parts} parts",
        "output": f"{size.shape[0]} numbers, {size.dtype}",
        "covariance": str(covariance),
        "histogram": hashlib.sha256(edges).hexdigest()[:12],
    }


def _place(run: Chunk, levels, size, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Medians and spreads of the first part, which place the bins of the sketch."""
    dtype = np.dtype(size.dtype)
    if not levels:
        return np.zeros(size.shape, dtype), np.ones(size.shape, dtype)
    x = run.sample(count).astype(np.float64)
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, np.nan)
    if np.isnan(x).all():
        return np.zeros(size.shape, dtype), np.ones(size.shape, dtype)
    low, center, high = np.nanquantile(x, [0.16, 0.5, 0.84], axis=0)
    spread = (high - low) / 2
    least = np.abs(center) * np.finfo(dtype).eps + np.finfo(dtype).tiny
    fallback = np.maximum(np.nanmax(x, 0) - np.nanmin(x, 0), least)
    spread = np.where(spread > least, spread, fallback)
    return center.astype(dtype), spread.astype(dtype)


def _done(totals: Totals, rtol: float | None) -> bool:
    if rtol is None or totals.count < 2:
        return False
    return bool((totals.standard_error <= rtol * np.abs(totals.mean)).all())


def _raise_if_bad(totals: Totals, nan: str) -> None:
    if nan == "raise" and totals.bad:
        raise FloatingPointError(
            f"Path {totals.first_bad} isn't finite: look at `solve(jax.random.fold_in("
            f'key, {totals.first_bad}))`. `nan="skip"` leaves such paths out.'
        )


def _unravel(shapes: PyTree) -> Callable[[np.ndarray], PyTree]:
    leaves, tree = jax.tree.flatten(shapes)
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    splits = np.cumsum(sizes)[:-1]

    def whole(x: np.ndarray) -> PyTree:
        pieces = np.split(np.asarray(x), splits)
        shaped = [
            p.reshape(*leaf.shape, *p.shape[1:]) if leaf.shape or p.ndim > 1 else p[0]
            for p, leaf in zip(pieces, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, shaped)

    return whole


def _result(totals, whole, place, levels, cells, reason) -> Ensemble:
    found, errors = [], []
    if levels:
        edges = sketch_edges(*(x.astype(np.float64) for x in place))
        found, errors = from_bins(totals, edges, levels)
    return Ensemble(
        paths=totals.count,
        mean=whole(totals.mean),
        variance=whole(totals.variance),
        standard_error=whole(totals.standard_error),
        low=whole(totals.low),
        high=whole(totals.high),
        covariance=totals.covariance if totals.moments.ndim == 2 else None,
        quantiles=tuple(whole(x) for x in found),
        quantile_error=tuple(whole(x) for x in errors),
        histogram=None if cells is None else whole(totals.cells),
        skipped=totals.bad,
        reason=reason,
    )
