"""Sobolev norms of periodic fields, of any order."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._grid import Grid


ZERO_MODES = ("drop", "keep", "raise")


def _weights(
    grid: Grid, s: float, shift: float, zero_mode: str, measure: bool
) -> Float[np.ndarray, "*half"]:
    """What squares of amplitudes are multiplied by."""
    if zero_mode not in ZERO_MODES:
        raise ValueError(
            f"`zero_mode` must be one of {', '.join(map(repr, ZERO_MODES))}; got "
            f"{zero_mode!r}."
        )
    if shift < 0:
        raise ValueError(f"`shift` must not be negative; got {shift}.")
    if zero_mode == "keep" and shift == 0 and s < 0:
        raise ValueError(
            'A negative order has no weight for the mean: write `zero_mode="drop"` or '
            "a positive `shift`."
        )
    base = shift + grid.square_wavenumbers()
    safe = np.where(base > 0, base, 1.0)
    weights = np.where(base > 0, safe**s, 1.0 if s == 0 else 0.0)
    weights = weights * grid.multiplicity() * (grid.volume if measure else 1.0)
    if zero_mode != "keep":
        weights[(0,) * grid.dimension] = 0
    return weights


def _spectrum(grid: Grid, u: Array) -> Array:
    """Half spectra of what is given in space or as half spectra."""
    shape = grid.spectrum_shape if jnp.iscomplexobj(u) else grid.shape
    if u.shape[u.ndim - grid.dimension :] != shape:
        raise ValueError(
            f"needed fields of shape (..., {', '.join(map(str, grid.shape))}), or "
            f"complex half spectra of shape (..., "
            f"{', '.join(map(str, grid.spectrum_shape))}); got {u.shape}, "
            f"{u.dtype.name}."
        )
    return u if jnp.iscomplexobj(u) else grid.rfft(u)


def sobolev_inner(
    grid: Grid,
    u: Array,
    v: Array,
    s: float,
    *,
    shift: float = 0.0,
    zero_mode: str = "drop",
    normalization: str = "measure",
) -> Float[Array, "..."]:
    r"""The inner product of $H^s$.

    $$(u, v)_s = V \sum_k (\alpha + |k|^2)^s \, \mathrm{Re}\, \bar{\hat u}_k \hat v_k$$

    over all modes, with the box's volume $V$, physical wavenumbers $k$ and amplitudes
    $\hat u_k$. With $\alpha = 0$ it is homogeneous, $(u, u)_1 = \int |\nabla u|^2$, and
    the order may be negative or a fraction in any case.

    **Arguments:**

    - `grid`: where the fields are sampled.
    - `u`, `v`: fields, or (complex) half spectra, with axes of a batch in front; both
      of the same shape once transformed.
    - `s`: the order.
    - `shift`: $\alpha$; 1 for the usual inhomogeneous norm.
    - `zero_mode`: `"drop"` leaves the mean out, `"keep"` counts it, `"raise"` is an
      error at run time if it isn't zero to rounding.
    - `normalization`: `"measure"`, or `"mean"`, which leaves out $V$, so that $s = 0$
      is a mean square.

    **Returns:** one number for each field of the batch.

    **Raises:** `ValueError` for arrays that aren't of the grid, and for a negative
    order that is to keep the mean without a shift.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> u = jnp.sin(2 * grid.points()[0])
    >>> float(px.operators.sobolev_inner(grid, u, u, -1.0) / jnp.pi)
    0.25

    ```
    """
    if normalization not in ("measure", "mean"):
        raise ValueError(
            f'`normalization` must be "measure" or "mean"; got {normalization!r}.'
        )
    u, v = _spectrum(grid, u), _spectrum(grid, v)
    if zero_mode == "raise":
        u, v = _without_mean(grid, u), _without_mean(grid, v)
    weights = _weights(grid, s, shift, zero_mode, normalization == "measure")
    axes = tuple(range(-grid.dimension, 0))
    weights = weights.reshape((1,) * (u.ndim - grid.dimension) + weights.shape)
    products = u.real * v.real + u.imag * v.imag
    return jnp.sum(products * weights.astype(products.dtype), axis=axes)


def _without_mean(grid: Grid, u: Array) -> Array:
    """The same; an error at run time if there is a mean."""
    axes = tuple(range(-grid.dimension, 0))
    mean = jnp.abs(u[(..., *(0,) * grid.dimension)])
    size = jnp.sqrt(jnp.sum(jnp.abs(u) ** 2, axis=axes))
    small = float(100 * jnp.finfo(u.dtype).eps)
    return eqx.error_if(
        u,
        jnp.any(mean > small * size),
        'A field has a mean, and `zero_mode="raise"`. Write "drop" to leave it out of '
        'the norm, or "keep" to count it.',
    )


def sobolev_norm(
    grid: Grid,
    u: Array,
    s: float,
    *,
    shift: float = 0.0,
    zero_mode: str = "drop",
    normalization: str = "measure",
) -> Float[Array, "..."]:
    """The norm of `H^s`, the root of [`pathax.operators.sobolev_inner`][].

    Its gradient at zero is zero, not NaN.

    **Arguments:** as there.

    **Returns:** one number for each field of the batch.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (1.0,))
    >>> u = jnp.sin(2 * jnp.pi * grid.points()[0])
    >>> bool(jnp.isclose(px.operators.sobolev_norm(grid, u, 0.0), 0.5**0.5))
    True

    ```
    """
    square = sobolev_inner(
        grid, u, u, s, shift=shift, zero_mode=zero_mode, normalization=normalization
    )
    return _root(square)


def _root(square: Array) -> Array:
    positive = square > 0
    root = jnp.sqrt(jnp.where(positive, square, jnp.ones_like(square)))
    return jnp.where(positive, root, jnp.zeros_like(root))


def bochner_norm(
    grid: Grid,
    u: Array,
    s: float,
    weights: Any,
    *,
    shift: float = 0.0,
    zero_mode: str = "drop",
    normalization: str = "measure",
) -> Float[Array, "..."]:
    r"""The norm of $L^2(0, T; H^s)$ by a quadrature in time.

    $$\|u\|^2 = \sum_q w_q \|u(t_q)\|_s^2.$$

    **Arguments:**

    - `grid`, `s`, `shift`, `zero_mode`, `normalization`: as for
      [`pathax.operators.sobolev_inner`][].
    - `u`: fields or half spectra at the times, `(..., times, *grid)`.
    - `weights`: $w$, one a time; or a number, for frames that far apart.

    **Returns:** one number for each trajectory of the batch.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (1.0,))
    >>> u = jnp.ones((10, 16))
    >>> float(px.operators.bochner_norm(grid, u, 0.0, 0.4, zero_mode="keep"))
    2.0

    ```
    """
    squares = sobolev_inner(
        grid, u, u, s, shift=shift, zero_mode=zero_mode, normalization=normalization
    )
    weights = jnp.broadcast_to(jnp.asarray(weights, squares.dtype), squares.shape[-1:])
    return _root(jnp.tensordot(squares, weights, 1))


def sobolev_loss(
    grid: Grid,
    predicted: Array,
    wanted: Array,
    s: float = 0.0,
    *,
    relative: bool = True,
    shift: float = 0.0,
    zero_mode: str = "keep",
) -> Float[Array, "..."]:
    """The error's norm in `H^s` over all frames, relative to that of what is wanted.

    **Arguments:**

    - `grid`: where the fields are sampled.
    - `predicted`, `wanted`: fields `(..., times, *grid)`.
    - `s`, `shift`, `zero_mode`: as for [`pathax.operators.sobolev_inner`][]; a
      negative order without a shift drops the mean.
    - `relative`: divide by the norm of `wanted`, over all frames at once.

    **Returns:** one number for each trajectory of the batch; take the mean.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (1.0,))
    >>> u = jnp.sin(2 * jnp.pi * grid.points()[0])[None]
    >>> float(px.operators.sobolev_loss(grid, 1.5 * u, u))
    0.5

    ```
    """
    if s < 0 and shift == 0:
        zero_mode = "drop"
    options = {"shift": shift, "zero_mode": zero_mode, "normalization": "mean"}
    count = jnp.asarray(wanted).shape[-grid.dimension - 1]
    error = bochner_norm(grid, predicted - wanted, s, 1 / count, **options)
    if not relative:
        return error
    return error / bochner_norm(grid, wanted, s, 1 / count, **options)


def energy_spectrum(grid: Grid, u: Array) -> Float[Array, "... shells"]:
    """Half of the mean square of a field, by shells of equal integer wavenumber.

    **Arguments:**

    - `grid`: where the field is sampled; its box should be a cube.
    - `u`: fields or half spectra, with axes of a batch in front.

    **Returns:** entry `m` is the sum over modes whose index has a length that rounds to
    `m`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (1.0,))
    >>> u = jnp.sin(2 * jnp.pi * 3 * grid.points()[0])
    >>> px.operators.energy_spectrum(grid, u)[:5].round(3)
    Array([0.  , 0.  , 0.  , 0.25, 0.  ], dtype=float32)

    ```
    """
    u = _spectrum(grid, u)
    index = np.round(np.sqrt(sum(m**2 for m in grid.frequencies()))).astype(int)
    squares = 0.5 * (u.real**2 + u.imag**2)
    mult = grid.multiplicity(squares.dtype)
    flat = squares.reshape(-1, index.size) * mult.reshape(1, -1)
    shells = jax.vmap(
        lambda row: jax.ops.segment_sum(row, index.reshape(-1), int(index.max()) + 1)
    )(flat)
    return shells.reshape(*u.shape[: u.ndim - grid.dimension], -1)
