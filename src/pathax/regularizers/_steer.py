"""Random end times (STEER)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def steer_end(key: Any, t0: Any, t1: Any, width: float) -> Array:
    r"""A random end time for training.

    $t_1' \sim U(t_1 - b,\, t_1 + b)$; predictions end at $t_1$. One draw a solve.

    **Arguments:**

    - `key`: random key.
    - `t0`, `t1`: start and end.
    - `width`: $b$, less than $|t_1 - t_0|$.

    **Returns:** the end time.

    **Raises:** `ValueError` if the end could come before the start.

    **Reference:** A. Ghosh, H. Behl, E. Dupont, P. Torr, V. Namboodiri, "STEER: Simple
    Temporal Regularization For Neural ODEs", NeurIPS 2020.

    **Example:**

    ```python
    >>> import jax
    >>> import pathax as px
    >>> t1 = px.regularizers.steer_end(jax.random.key(0), 0.0, 1.0, 0.5)
    >>> bool(0.5 <= t1 <= 1.5)
    True

    ```
    """
    known = isinstance(t0, int | float) and isinstance(t1, int | float)
    if known and not 0 <= width < abs(t1 - t0):
        raise ValueError(
            f"`width` must be at least 0 and less than |t1 - t0| = {abs(t1 - t0)}, so "
            f"that the end comes after the start; got {width}."
        )
    t1 = jnp.asarray(t1, jnp.result_type(float))
    draw = jax.random.uniform(key, (), t1.dtype, -1.0, 1.0)
    return t1 + jnp.asarray(width, t1.dtype) * draw


def steer_times(key: Any, ts: Any, fraction: float = 0.5) -> Array:
    r"""Random observation times for training.

    Each time but the first is moved by $U(-c\, d_i,\, c\, d_i)$, where $d_i$ is its
    distance from the one before, and kept between the first and the last. The loss
    still compares with the observation at the original time. Results are in order for
    $c \le 1/2$ on an even grid; elsewhere they are sorted.

    **Arguments:**

    - `key`: random key.
    - `ts`: times, shape `(n,)`, in increasing order.
    - `fraction`: $c$.

    **Returns:** times, shape `(n,)`.

    **Reference:** A. Ghosh et al., NeurIPS 2020; as A. Pal et al., ICML 2021, use it
    for latent equations.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> ts = px.regularizers.steer_times(jax.random.key(0), jnp.linspace(0.0, 1.0, 5))
    >>> bool(ts[0] == 0) and bool(jnp.all(jnp.diff(ts) >= 0))
    True

    ```
    """
    ts = jnp.asarray(ts)
    gaps = jnp.diff(ts)
    draw = jax.random.uniform(key, gaps.shape, ts.dtype, -1.0, 1.0)
    moved = ts[1:] + jnp.asarray(fraction, ts.dtype) * gaps * draw
    return jnp.concatenate([ts[:1], jnp.sort(jnp.clip(moved, ts[0], ts[-1]))])
