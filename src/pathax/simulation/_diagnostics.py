"""What is known of the quality of samples."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Diagnostics(NamedTuple):
    """What [`pathax.simulation.diagnose`][] returns: one number for each dimension.

    **Attributes:**

    - `ess_bulk`: effective number of samples for the middle of the distribution.
    - `ess_tail`: the same for its 5% and 95% quantiles, the smaller of both.
    - `r_hat`: rank-normalized split R-hat; above 1.01 chains haven't mixed.
    """

    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    r_hat: np.ndarray


def diagnose(samples: Any) -> Diagnostics:
    """Effective sample sizes and R-hat, by ArviZ.

    **Arguments:**

    - `samples`: of shape `(chains, samples, d)`.

    **Returns:** a [`pathax.simulation.Diagnostics`][].

    **Raises:** `ImportError` without arviz-stats, which does the work; `ValueError` for
    another shape.

    **Cost:** a few Fourier transforms a dimension, on the host.

    **Reference:** A. Vehtari, A. Gelman, D. Simpson, B. Carpenter and P.-C. Bürkner,
    Rank-normalization, folding, and localization: an improved R-hat, Bayesian Analysis
    16 (2021).

    **Example:**

    ```python
    >>> import numpy as np
    >>> import pathax as px
    >>> independent = np.random.default_rng(0).normal(size=(4, 500, 2))
    >>> found = px.simulation.diagnose(independent)
    >>> bool((found.ess_bulk > 1500).all() and (found.r_hat < 1.01).all())
    True

    ```
    """
    try:
        from arviz_stats.base.array import array_stats
    except ImportError as error:
        raise ImportError(
            "Diagnostics need arviz-stats; write `pip install 'pathax[samples]'`."
        ) from error
    x = np.asarray(samples, np.float64)
    if x.ndim != 3 or x.shape[1] < 4:
        raise ValueError(
            "`samples` must have shape (chains, samples, d), with at least 4 samples; "
            f"got {x.shape}."
        )
    ess: Any = partial(array_stats.ess, x, chain_axis=0, draw_axis=1)
    return Diagnostics(
        np.asarray(ess(method="bulk")),
        np.asarray(ess(method="tail", prob=(0.05, 0.95))),
        np.asarray(array_stats.rhat(x, chain_axis=0, draw_axis=1, method="rank")),
    )


def energy_distance(x: Array, y: Array, *, rows: int = 512) -> Array:
    r"""The energy distance between two samples.

    $$D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,$$

    zero if and only if the laws are the same. Pairs of a sample with itself are left
    out, so the estimate has the right mean and may be below zero.

    **Arguments:**

    - `x`, `y`: samples, of shapes `(n, d)` and `(m, d)`, at least two of each.
    - `rows`: how many rows of the matrices of distances are held at a time.

    **Returns:** $D^2$, a scalar.

    **Cost:** $(n + m)^2 d / 2$ operations, and memory of `rows` times the larger of $n$
    and $m$.

    **Reference:** G. J. Székely and M. L. Rizzo, Energy statistics, J. Statist. Plann.
    Inference 143 (2013), equation 2.1.

    **Example:**

    ```python
    >>> import jax
    >>> import pathax as px
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 3))
    >>> near, far = (px.simulation.energy_distance(x, y + s) for s in (0.0, 1.0))
    >>> bool(abs(near) < 0.05 < far)
    True

    ```
    """
    for name, sample in (("x", x), ("y", y)):
        if sample.ndim != 2 or sample.shape[0] < 2 or x.shape[1] != sample.shape[1]:
            raise ValueError(
                f"`{name}` must have shape (n, d), with the same d and n of at least "
                f"2; got {x.shape} and {y.shape}."
            )
    return _energy(x, y, rows)


def _energy(x: Array, y: Array, rows: int) -> Array:
    n, m = x.shape[0], y.shape[0]
    between = _total(x, y, rows) / (n * m)
    within = _total(x, x, rows) / (n * (n - 1)) + _total(y, y, rows) / (m * (m - 1))
    return 2 * between - within


def _total(x: Array, y: Array, rows: int) -> Array:
    """The sum of all distances."""
    one = lambda a: jnp.sum(jnp.sqrt(jnp.sum((a[None] - y) ** 2, axis=1)))
    return jnp.sum(jax.lax.map(one, x, batch_size=min(rows, x.shape[0])))
