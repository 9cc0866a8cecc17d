"""Settings of published data sets, by name."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._grid import Grid
from .._initial import filtered_vorticity, gaussian_field, mcwilliams_vorticity
from .._navier_stokes import NavierStokes, diagonal_forcing, kolmogorov_forcing
from .._semilinear import AbstractSemilinear


@dataclasses.dataclass(frozen=True)
class Setting:
    r"""All that makes a data set but its seed.

    Frames are at $t_0 + j \Delta$, $j = 1, \dots, n$. Use `dataclasses.replace` for
    variants.

    **Attributes:**

    - `name`: of the setting.
    - `equation`: what is marched.
    - `initial`: a function of a key and a grid that returns the field at time zero.
    - `grid`: where it is marched.
    - `stored`: the grid of what is kept, by truncation of the spectrum.
    - `count`: trajectories.
    - `frames`: $n$, of each.
    - `spacing`: $\Delta$, of frames.
    - `warm_up`: $t_0$, which is marched and not kept.
    - `dt`: the longest step.
    - `method`: see [`pathax.operators.stepper`][].
    - `dtype`: of what is kept, `"float32"` or `"float64"`.
    """

    name: str
    equation: AbstractSemilinear
    initial: Callable[[PRNGKeyArray, Grid], Array]
    grid: Grid
    stored: Grid
    count: int
    frames: int
    spacing: float
    warm_up: float
    dt: float
    method: str = "imex_rk4_cn"
    dtype: str = "float32"


def taylor_green(key: PRNGKeyArray, grid: Grid) -> Float[Array, "*grid"]:
    r"""Swirls $2 \kappa \cos \kappa x \cos \kappa y$, one to ten periods a side."""
    periods = jax.random.randint(key, (), 1, 11).astype(jnp.result_type(float))
    kappa = periods * (2 * math.pi / grid.lengths[0])
    x, y = grid.points()
    return 2 * kappa * jnp.cos(kappa * x) * jnp.cos(kappa * y)


def _boxed(shape: int, length: float) -> Grid:
    return Grid((shape, shape), (length, length))


def _forced() -> dict[str, Any]:
    box = _boxed(256, 1.0)
    return {
        "equation": NavierStokes(1e-3, source=diagonal_forcing(_boxed(16, 1.0))),
        "initial": gaussian_field,
        "grid": box,
        "count": 1280,
        "frames": 100,
        "spacing": 0.2,
        "warm_up": 30.0,
        "dt": 1e-3,
    }


def _decaying(shape: int, viscosity: float, dt: float) -> dict[str, Any]:
    return {
        "equation": NavierStokes(viscosity),
        "initial": mcwilliams_vorticity,
        "grid": _boxed(shape, 2 * math.pi),
        "count": 1152,
        "frames": 100,
        "spacing": 0.055,
        "warm_up": 4.5,
        "dt": dt,
    }


def _kolmogorov() -> dict[str, Any]:
    force = kolmogorov_forcing(_boxed(16, 2 * math.pi), 4)
    return {
        **_decaying(256, 1e-3, 1e-3),
        "equation": NavierStokes(1e-3, drag=0.1, source=force),
        "initial": filtered_vorticity,
    }


def _taylor_green() -> dict[str, Any]:
    return {
        "equation": NavierStokes(1e-3),
        "initial": taylor_green,
        "grid": _boxed(256, 1.0),
        "count": 10,
        "frames": 40,
        "spacing": 0.025,
        "warm_up": 4.5,
        "dt": 1e-3,
    }


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "decaying": functools.partial(_decaying, 256, 1e-3, 1e-3),
    "decaying_5000": functools.partial(_decaying, 512, 2e-4, 5e-4),
    "forced": _forced,
    "kolmogorov": _kolmogorov,
    "taylor_green": _taylor_green,
}


def setting(name: str, split: str = "train") -> Setting:
    """A published setting.

    - `"forced"`: viscosity 1e-3 and a diagonal wave that drives the flow, from a
      Gaussian random field, in the unit square.
    - `"decaying"`, `"decaying_5000"`: eddies of McWilliams without forcing, in a square
      of side 2 pi; viscosity 1e-3, and 2e-4 on 512 points.
    - `"kolmogorov"`: a shear of four periods and drag 0.1, from a filtered flow.
    - `"taylor_green"`: swirls that only decay, for which a closed form is known.

    **Arguments:**

    - `name`: one of these.
    - `split`: `"train"` keeps 64 points a side in float32; `"test"` has 16 trajectories
      and keeps all points in float64.

    **Returns:** a [`pathax.operators.data.Setting`][], whose parts
    `dataclasses.replace` changes: the published steps are far shorter than what the
    accuracy needs.

    **Raises:** `ValueError` for other names.

    **Reference:** Li et al., Fourier neural operator for parametric partial
    differential equations, ICLR 2021, appendix A.3; Cao, Brarda, Li and Xi,
    Spectral-Refiner, ICLR 2025. Differences: the scheme of all is `"imex_rk4_cn"`;
    fields are truncated in Fourier space where published data are interpolated, which
    shifts them by half a cell; the Kolmogorov flow is driven at its wavenumber 4, which
    published scripts pass under a name that is ignored; the numbers of swirls are
    drawn.

    **Example:**

    ```python
    >>> import pathax as px
    >>> train = px.operators.data.setting("forced")
    >>> train.count, train.frames, train.stored.shape
    (1280, 100, (64, 64))

    ```
    """
    if name not in SETTINGS or split not in ("train", "test"):
        raise ValueError(
            f"a setting is one of {', '.join(map(repr, SETTINGS))}, and a split "
            f'"train" or "test"; got {name!r} and {split!r}.'
        )
    parts = SETTINGS[name]()
    grid = parts["grid"]
    if split == "train":
        stored = _boxed(64, grid.lengths[0])
        return Setting(f"{name}/{split}", stored=stored, **parts)
    parts["count"] = min(parts["count"], 16)
    return Setting(f"{name}/{split}", stored=grid, dtype="float64", **parts)
