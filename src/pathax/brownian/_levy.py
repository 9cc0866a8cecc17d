"""Increment classes: which one goes with which order, and conversions to them.

With `Z_n` the normalised Legendre moments over an interval of length `h`,
`W = sqrt(h) Z_0`, `H = -sqrt(h) Z_1 / (2 sqrt 3)`, `K = sqrt(h) Z_2 / (12 sqrt 5)` and
`L_n = sqrt(h / (2n+1)) Z_n`.
"""

import math

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


class HigherOrderLevyArea(diffrax.AbstractSpaceTimeTimeLevyArea):
    """A Brownian increment with Legendre moments beyond the third.

    What [`pathax.brownian.VirtualBrownianTree`][] of order 3 and more returns from
    `evaluate(..., use_levy=True)`. Any solver that asks for `W`, `H` or `K` takes it.

    **Attributes:**

    - `dt`: length of the interval, signed; a PyTree of scalars like the path's shape.
    - `W`: increment, `N(0, dt)`; unit of sqrt(time), like all that follow.
    - `H`: space-time Lévy area, `N(0, dt / 12)`.
    - `K`: space-time-time Lévy area, `N(0, dt / 720)`.
    - `higher`: the moments `L_3, ..., L_N`, stacked on a leading axis of length
      `N - 2`; `L_n = int P_n(2 (r - s) / dt - 1) dW_r ~ N(0, dt / (2n + 1))`.

    **Reference:** Jelinčič, Foster, Kidger, "Single-seed generation of Brownian paths
    and integrals for adaptive and high order SDE solvers", arXiv:2405.06464 (for `W`,
    `H`, `K`).
    """

    dt: PyTree[Array]
    W: PyTree[Array]
    H: PyTree[Array]
    K: PyTree[Array]
    higher: PyTree[Array]


HigherOrderLevyArea.__module__ = "pathax.brownian"

_CLASSES: tuple[type, ...] = (
    diffrax.BrownianIncrement,
    diffrax.SpaceTimeLevyArea,
    diffrax.SpaceTimeTimeLevyArea,
)


def order_of(levy_area: type) -> int:
    """How many moments beyond the first an increment class needs."""
    if levy_area not in _CLASSES:
        raise ValueError(
            "`levy_area` must be one of `diffrax.BrownianIncrement`, "
            "`diffrax.SpaceTimeLevyArea` and `diffrax.SpaceTimeTimeLevyArea`; got "
            f"{levy_area!r}. For more moments than W, H and K write `order=3` or more "
            "instead."
        )
    return _CLASSES.index(levy_area)


def class_of(order: int) -> type:
    """The increment class that a path of some order returns."""
    return _CLASSES[order] if order <= 2 else HigherOrderLevyArea


def from_moments(dt: PyTree[Array], moments: PyTree[Array], order: int):
    """The increment of a given order, from moments `L_n` stacked on leading axes."""
    fields = {
        "W": jax.tree.map(lambda m: m[0], moments),
        "H": jax.tree.map(lambda m: -m[1] / 2, moments) if order >= 1 else None,
        "K": jax.tree.map(lambda m: m[2] / 12, moments) if order >= 2 else None,
        "higher": jax.tree.map(lambda m: m[3:], moments) if order >= 3 else None,
    }
    present = {name: value for name, value in fields.items() if value is not None}
    return class_of(order)(dt=dt, **present)


def to_normalised(increment, dt: Array, order: int) -> Array:
    """`Z_0, ..., Z_order` (leading axis) of arrays `W`, `H`, `K` given as a list."""
    scale = (1.0, -2 * math.sqrt(3), 12 * math.sqrt(5))
    root = jnp.sqrt(dt)
    return jnp.stack([increment[n] * scale[n] / root for n in range(order + 1)])
