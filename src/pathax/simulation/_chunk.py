"""One chunk of paths, on one device or on many: the same numbers either way."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ._statistics import BINS, Part, sketch_bins, summarize


Solve = Callable[[Array], PyTree]


def flattened(solve: Solve) -> Callable[[Array], Array]:
    """The outputs of a path as one vector of a floating dtype."""

    def vector(key: Array) -> Array:
        leaves = jax.tree.map(_real, solve(key))
        return ravel_pytree(leaves)[0]

    return vector


def _real(x: Any) -> Array:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(
            "`solve` must return real numbers; got complex ones. Return their real and "
            "imaginary parts."
        )
    floating = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if floating else x.astype(jnp.result_type(float))


def one_device() -> Mesh:
    """The mesh of a run on one device."""
    return Mesh(np.array(jax.local_devices()[:1]), ("paths",))


class Chunk:
    """Paths `start .. start + size - 1`, in parts of which each device takes some.

    A part is one call of a program that knows of one device only, and the same on all:
    compiled for many devices at once, its operations could be fused in another way, and
    last bits would differ.
    """

    def __init__(
        self,
        solve: Solve,
        key: Array,
        mesh: Mesh,
        *,
        size: int,
        parts: int,
        covariance: bool,
        sketch: bool,
        cells: np.ndarray | None,
    ):
        devices = math.prod(mesh.shape.values())
        if size % parts or parts % devices:
            raise ValueError(
                f"A chunk must split evenly: `chunk` ({size}) into `parts` ({parts}), "
                f"and those over the devices ({devices})."
            )
        self.size, self.parts, self.mesh, self.key = size, parts, mesh, key
        self._covariance, self._sketch, self._cells = covariance, sketch, cells
        self._each, self._inside = parts // devices, size // parts
        self._vector = jax.vmap(flattened(solve))
        self._run = jax.jit(self._part)
        self._gather = jax.jit(
            lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        # Device -> its key and its parts, of the devices of this process.
        me = jax.process_index()
        self._work = [
            (jax.device_put(key, device), range(i * self._each, (i + 1) * self._each))
            for i, device in enumerate(mesh.devices.flat)
            if device.process_index == me
        ]

    def __call__(
        self, start: int, stop: int, center: np.ndarray, spread: np.ndarray
    ) -> tuple[Part, np.ndarray, np.ndarray]:
        """Statistics of the parts, counts of the sketch and of the histogram."""
        place = np.uint32(start), np.uint32(min(stop - start, self.size))
        found = {
            number: self._run(key, np.uint32(number), *place, center, spread)
            for offset in range(self._each)  # all devices start before any goes on
            for key, numbers in self._work
            for number in [numbers[offset]]
        }
        own = {number: jax.tree.map(np.asarray, x) for number, x in found.items()}
        leaves, tree = jax.tree.flatten(next(iter(own.values())))
        columns = [
            self._everywhere({n: jax.tree.leaves(x)[i] for n, x in own.items()}, leaf)
            for i, leaf in enumerate(leaves)
        ]
        parts, bins, cells = jax.tree.unflatten(tree, columns)
        return parts, bins.sum(0, dtype=np.int64), cells.sum(0, dtype=np.int64)

    def _everywhere(self, own: dict[int, np.ndarray], like: np.ndarray) -> np.ndarray:
        """One figure of all parts, from those that this process has."""
        if len(own) == self.parts:
            return np.stack([own[number] for number in range(self.parts)])
        split = NamedSharding(self.mesh, PartitionSpec(tuple(self.mesh.axis_names)))

        def mine(index):
            numbers = range(*index[0].indices(self.parts))
            return np.stack([own[number] for number in numbers])

        shape = (self.parts, *like.shape)
        whole = jax.make_array_from_callback(shape, split, mine)
        return np.asarray(self._gather(whole))

    def sample(self, count: int) -> np.ndarray:
        """Outputs of the first paths themselves."""
        run = jax.jit(lambda key: self._outputs(key, jnp.arange(count, dtype="uint32")))
        return np.asarray(run(self.key))

    def _outputs(self, key: Array, numbers: Array) -> Array:
        return self._vector(jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers))

    def _part(self, key, number, start, wanted, center, spread):
        place = number * np.uint32(self._inside)
        place = place + jnp.arange(self._inside, dtype=jnp.uint32)
        x = self._outputs(key, start + place)
        use = place < wanted
        part = summarize(x, start + place, use, self._covariance)
        use = use & jnp.all(jnp.isfinite(x), axis=1)
        bins = cells = jnp.zeros((x.shape[1], 0), jnp.int32)
        if self._sketch:
            bins = _count(BINS, sketch_bins(x, center, spread), use)
        if self._cells is not None:
            edges = jnp.asarray(self._cells, x.dtype)
            inside = jnp.searchsorted(edges, x, side="right")
            cells = _count(len(self._cells) + 1, inside, use)
        return part, bins, cells


def _count(cells: int, found: Array, use: Array) -> Array:
    """How many of the paths `(paths, d)` are in each cell, `(d, cells)`."""
    rows = jnp.broadcast_to(jnp.arange(found.shape[1])[None], found.shape)
    ones = jnp.broadcast_to(use[:, None].astype(jnp.int32), found.shape)
    return jnp.zeros((found.shape[1], cells), jnp.int32).at[rows, found].add(ones)
