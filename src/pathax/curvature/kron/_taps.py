"""Taps: inputs that a layer ignores and whose cotangents are statistics of the layer.

The output of an instrumented layer is `y + hook(x, tap)`. The hook returns zeros; its
derivative with respect to the tap is a rule of its own, which returns sums over the
rows of `x` and of the cotangent of `y`. Cotangents of a shared input add up, so one tap
gathers all uses of its layer, whatever stands around it.

A vmap of the derivative would sum products of single rows, example by example. So the
hook has its own vmap rule, which stacks the examples as rows, and the sum becomes one
matrix product. But functions with a vmap rule of their own have no reverse mode.
Therefore the taps have a mapped axis of length one (see `_stats`), which every hook
meets after all maps inside the loss; the rule takes it away, and with it itself.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._tree import wide_dtype


_MOST_SLICES = 32
_PAD_MODES = {"REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}


# Geometry ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str

    def padded(self, x: Array) -> Array:
        """The input with its padding, whatever that is made of."""
        pairs = self.padding
        if isinstance(pairs, str):
            sides = zip(self.kernel, self.dilation, strict=True)
            sizes = [d * (k - 1) + 1 for k, d in sides]
            pairs = jax.lax.padtype_to_pads(x.shape[2:], sizes, self.stride, pairs)
        if self.mode == "ZEROS":
            widths = [(0, 0, 0), (0, 0, 0), *((a, b, 0) for a, b in pairs)]
            return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
        return jnp.pad(x, [(0, 0), (0, 0), *pairs], _PAD_MODES[self.mode])

    def patches(self, x: Array) -> Array:
        """What meets each entry of the kernel, `(examples, channels, kernel, places)`.

        As slices, which copy and do no arithmetic; for a large kernel, of which they
        would make a large program, as a convolution with an identity.
        """
        x = self.padded(x)
        if math.prod(self.kernel) > _MOST_SLICES:
            found = jax.lax.conv_general_dilated_patches(
                x,
                self.kernel,
                self.stride,
                "VALID",
                rhs_dilation=self.dilation,
                precision=jax.lax.Precision.HIGHEST,  # nothing may be rounded
            )
            return found.reshape(*x.shape[:2], math.prod(self.kernel), -1)
        sides = zip(x.shape[2:], self.kernel, self.dilation, strict=True)
        spans = [n - d * (k - 1) for n, k, d in sides]
        reach = zip(self.kernel, self.dilation, strict=True)
        offsets = (range(0, d * k, d) for k, d in reach)
        strides = (1, 1, *self.stride)
        slices = []
        for start in itertools.product(*offsets):
            ends = (a + n for a, n in zip(start, spans, strict=True))
            window = jax.lax.slice(x, (0, 0, *start), (*x.shape[:2], *ends), strides)
            slices.append(window.reshape(*x.shape[:2], 1, -1))
        return jnp.concatenate(slices, axis=2)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one layer: inputs and outputs of each of its groups."""

    a_size: int
    g_size: int
    groups: int
    window: Window | None

    def parts(
        self, factors: bool, rotated: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a cotangent of the tap holds, in order.

        `rotated` is the number of inputs in the basis, one more than there are if it
        has one for the bias; `None` without a basis.
        """
        n, a, g = self.groups, self.a_size, self.g_size
        found: dict[str, tuple[int, ...]] = {"a": (n, a), "count": (), "g": (n, g)}
        if factors:
            found |= {"aa": (n, a, a), "gg": (n, g, g)}
        if rotated is not None:
            found |= {"moment": (n, g, rotated)}
        return found

    def size(self, factors: bool, rotated: int | None = None) -> int:
        """The length of a tap."""
        return sum(math.prod(s) for s in self.parts(factors, rotated).values())


def unpack(flat: Array, parts: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Arrays of these shapes from the last axis."""
    ends = np.cumsum([math.prod(s) for s in parts.values()])[:-1].tolist()
    pieces = jnp.split(flat, ends, axis=-1)
    lead = flat.shape[:-1]
    named = zip(parts.items(), pieces, strict=True)
    return {name: x.reshape(*lead, *shape) for (name, shape), x in named}


def pack_bases(left: Array, right: Array, lead: tuple[int, ...]) -> Array:
    """A layer's bases as one array with these leading axes."""
    flat = [basis.reshape(*lead, -1) for basis in (left, right)]
    return jnp.concatenate(flat, axis=-1)


def _unpack_bases(flat: Array, geometry: Geometry) -> tuple[Array, Array]:
    n, g = geometry.groups, geometry.g_size
    a = math.isqrt(flat.size // n - g**2)
    found = unpack(flat, {"left": (n, g, g), "right": (n, a, a)})
    return found["left"], found["right"]


# Sums over rows ---------------------------------------------------------------------


def _input_rows(geometry: Geometry, x: Array) -> Array:
    """Inputs as `(rows, groups, size)`: of a convolution, a row a position."""
    window = geometry.window
    if window is None:
        return x.reshape(-1, 1, geometry.a_size)
    patches = window.patches(x)
    patches = patches.reshape(x.shape[0], geometry.groups, geometry.a_size, -1)
    return jnp.moveaxis(patches, -1, 1).reshape(-1, geometry.groups, geometry.a_size)


def _output_rows(geometry: Geometry, g: Array) -> Array:
    if geometry.window is not None:
        g = jnp.moveaxis(g.reshape(*g.shape[:2], -1), -1, 1)
    return g.reshape(-1, geometry.groups, geometry.g_size)


def _input_sum(geometry: Geometry, x: Array, dtype: Any) -> Array:
    """Sum of the input rows. Of a convolution, without making them: as the derivative
    of the sum of its outputs, with one output channel a group, in its weights."""
    window = geometry.window
    if window is None:
        return jnp.sum(x, axis=0, dtype=dtype)[None]
    x = window.padded(x.astype(dtype))
    shape = (geometry.groups, x.shape[1] // geometry.groups, *window.kernel)

    def total(weight: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            weight,
            window.stride,
            "VALID",
            rhs_dilation=window.dilation,
            feature_group_count=geometry.groups,
            precision=jax.lax.Precision.HIGHEST,
        )

    weight = jax.ShapeDtypeStruct(shape, dtype)
    ones = jnp.ones(jax.eval_shape(total, weight).shape, dtype)
    (found,) = jax.linear_transpose(total, weight)(ones)
    return found.reshape(geometry.groups, geometry.a_size)


def _gram(rows: Array, dtype: Any) -> Array:
    """`sum_n r_n r_n^T` for each group."""
    return jnp.einsum("ngi,ngj->gij", rows, rows, preferred_element_type=dtype)


def _moment(geometry: Geometry, a: Array, g: Array, basis: Array, dtype: Any) -> Array:
    """`sum_n (Q_S^T g_n)^2 ((Q_A^T a_n)^2)^T`, the squares taken by element."""
    left, right = _unpack_bases(basis.astype(dtype), geometry)
    a, g = a.astype(dtype), g.astype(dtype)
    if right.shape[-1] > geometry.a_size:  # there is a bias
        a = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)
    a = jnp.einsum("ngi,gij->ngj", a, right) ** 2
    g = jnp.einsum("ngi,gij->ngj", g, left) ** 2
    return jnp.einsum("ngi,ngj->gij", g, a)


def _sums(
    geometry: Geometry, x: Array, g: Array, basis: Array | None, factors: bool
) -> Array:
    """What the tap's cotangent holds, as one vector."""
    dtype = wide_dtype(g.dtype)
    g = _output_rows(geometry, g)
    count = jnp.full((1,), g.shape[0], dtype)
    g_sum = jnp.sum(g, axis=0, dtype=dtype)
    if not factors:
        found = [_input_sum(geometry, x, dtype), count, g_sum]
    else:
        a = _input_rows(geometry, x.astype(g.dtype))
        a_sum = jnp.sum(a, axis=0, dtype=dtype)
        found = [a_sum, count, g_sum, _gram(a, dtype), _gram(g, dtype)]
        if basis is not None:
            found.append(_moment(geometry, a, g, basis, dtype))
    return jnp.concatenate([part.reshape(-1) for part in found])


# Hook -------------------------------------------------------------------------------


@functools.cache
def _make_hook(geometry: Geometry, factors: bool) -> tuple[Callable, Callable]:
    """The hook with a derivative, and the one with a vmap rule around it.

    `y`, the layer's output, only says what the zeros are like.
    """

    def zeros(y: Array) -> Array:
        zero = jnp.zeros_like(y)
        # Mapped if `y` is: otherwise `vmap` would add up the cotangents of examples.
        return jnp.where(y == y, zero, zero)

    @jax.custom_vjp
    def hook(x: Array, y: Array, tap: Array, basis: Array | None) -> Array:
        del x, tap, basis
        return zeros(y)

    def forward(x: Array, y: Array, tap: Array, basis: Array | None) -> Any:
        return zeros(y), (x, tap, basis)

    def backward(residual: Any, g: Array) -> tuple[None, None, Array, None]:
        x, tap, basis = residual
        sums = _sums(geometry, x, g, basis, factors)
        return None, None, sums.astype(tap.dtype).reshape(tap.shape), None

    hook.defvjp(forward, backward)

    @jax.custom_batching.custom_vmap
    def stacking(x: Array, y: Array, tap: Array, basis: Array | None) -> Array:
        return hook(x, y, tap, basis)

    @stacking.def_vmap
    def rule(
        size: int, batched: Any, x: Array, y: Array, tap: Array, basis: Any
    ) -> Any:
        x_batched, y_batched, *others = jax.tree.leaves(batched)
        if not any(others):  # examples: more rows
            x = x if x_batched else jnp.broadcast_to(x, (size, *x.shape))
            y = y if y_batched else jnp.broadcast_to(y, (size, *y.shape))
            rows = (z.reshape(-1, *z.shape[2:]) for z in (x, y))
            return stacking(*rows, tap, basis).reshape(y.shape), True
        args = [x, y, tap, basis]
        if size == 1:  # most often the taps' own axis; nothing is lost otherwise
            first = jax.tree.map(lambda b, arg: arg[0] if b else arg, batched, args)
            out = hook(*first)
            return (out[None], True) if y_batched else (out, False)
        axes = jax.tree.map(lambda b: 0 if b else None, batched)
        return jax.vmap(hook, in_axes=axes, axis_size=size)(*args), True

    return hook, stacking


# How many axes of length one a tap has in front tells what it is to gather. They are
# all that a layer can know: it is a leaf in a tree of parameters, like any other.
MEAN, FACTORS = 0, 2
STACKED = 1  # added to either


def tapped(
    geometry: Geometry, x: Array, y: Array, tap: Array, basis: Array | None
) -> Array:
    """`y`, the output of a layer for the rows `x`, with the layer's tap attached."""
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(
            f"a layer with a tap must have real outputs; got {y.dtype} from inputs of "
            f"{x.dtype}"
        )
    mode = tap.ndim - 1
    hook, stacking = _make_hook(geometry, mode >= FACTORS)
    fn = stacking if mode % 2 == STACKED else hook
    # Zeros that vary over the same devices of a `jax.shard_map` as the output; without
    # them the cotangents of devices would be added up one by one.
    zero = jnp.sum(jnp.zeros_like(y)).astype(tap.dtype)
    constants = (jax.lax.stop_gradient(x), jax.lax.stop_gradient(y))
    return y + fn(*constants, jnp.broadcast_to(zero, tap.shape) + tap, basis)
