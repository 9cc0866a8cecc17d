"""The paths that the Brownian benchmarks compare, built alike."""

from collections.abc import Callable

import diffrax
import jax
import numpy as np


AREAS = {
    "W": diffrax.BrownianIncrement,
    "W+H": diffrax.SpaceTimeLevyArea,
    "W+H+K": diffrax.SpaceTimeTimeLevyArea,
}

TREES = ("pathax", "diffrax")


def _tree_class(tree: str) -> Callable:
    if tree == "diffrax":
        return diffrax.VirtualBrownianTree
    import pathax as px

    return px.brownian.VirtualBrownianTree


def tree_maker(
    tree: str,
    area: str,
    shape: tuple[int, ...] | jax.ShapeDtypeStruct,
    depth: int,
    *,
    start: float = 0.0,
    horizon: float = 1.0,
) -> Callable[[jax.Array], diffrax.AbstractBrownianPath]:
    """Key -> tree over `[start, start + horizon]` with leaves of `horizon / 2^depth`.

    Times are float32, the shape's default dtype is JAX's.
    """
    cls, levy_area = _tree_class(tree), AREAS[area]
    t0, t1 = np.float32(start), np.float32(start + horizon)

    def build(key):
        return cls(
            t0=t0,
            t1=t1,
            tol=horizon * 2.0**-depth,
            shape=shape,
            key=key,
            levy_area=levy_area,
        )

    return build


def normalised(increment: diffrax.AbstractBrownianIncrement, length: float) -> tuple:
    """`Z_0, Z_1, Z_2` of an increment: independent N(0, 1) if its law is right.

    `W = sqrt(h) Z_0`, `H = -sqrt(h / 12) Z_1`, `K = sqrt(h / 720) Z_2`.
    """
    factors = {"W": 1.0, "H": -(12.0**0.5), "K": 720.0**0.5}
    return tuple(
        getattr(increment, name) * (factor * length**-0.5)
        for name, factor in factors.items()
        if hasattr(increment, name)
    )
