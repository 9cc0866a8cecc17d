"""Brownian paths with prescribed values: bridges, and replay of recorded noise."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ._grid import check_grid
from ._inputs import (
    RealScalar,
    as_time,
    check_key,
    check_shape,
    compute_dtype,
    concrete,
    real_dtype,
    time_dtype,
)
from ._noise import key_words, normals, threefry
from ._path import AbstractMomentPath, Standardised
from ._query import Geometry, Position, chen_coefficients, expand
from ._sample import total, width
from ._tree import check_order, depth_for, element_count


class BrownianBridge(AbstractMomentPath):
    """A Brownian path conditioned on its increments between knots.

    Made by [`pathax.brownian.condition`][] and [`pathax.brownian.replay`][]. Between
    two neighbouring knots it is a tree of its own, whose first moments are prescribed
    and whose others are drawn: the exact conditional law, as moments over disjoint
    intervals and of different degree are independent.

    **Attributes:**

    - `ts`: the knots, increasing, shape `(knots,)`; `t0` and `t1` are the outer ones.
    - `shape`, `order`: as for [`pathax.brownian.VirtualBrownianTree`][].

    **Raises:** a run-time error for queries outside of `[t0, t1]`.

    **Cost.** That of two queries of a tree, and `O(knots order^2)` for the knots
    between.

    **Gradients.** With respect to the prescribed values; none with respect to times.

    **Precision.** As for the tree, relative to the largest knot interval in a query.

    **Reference:** as for [`pathax.brownian.VirtualBrownianTree`][]; conditioning in
    Foster, "Numerical approximations for stochastic differential equations", thesis,
    Oxford 2020, chapter 3.

    **Example:**

    >>> import jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.condition(
    ...     jnp.array([0.0, 0.5, 1.0]), jnp.array([0.0, 2.0, 0.0]),
    ...     tol=2**-10, key=jax.random.key(0),
    ... )
    >>> round(float(path.evaluate(0.0, 0.5)), 4)
    2.0
    """

    ts: Float[Array, " knots"]
    shape: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    order: int = eqx.field(static=True)
    key: PyTree[UInt32[Array, "2"]]
    _roots: PyTree[Array]  # (order + 1, knots - 1, elements) a leaf
    _geometry: Geometry = eqx.field(static=True)

    def __init__(
        self,
        ts: Any,
        given: list[PyTree[Array]],
        *,
        tol: float,
        key: PRNGKeyArray | Array,
        levy_area: type = diffrax.BrownianIncrement,
        order: int | None = None,
    ):
        dtype = time_dtype(ts)
        traced = isinstance(ts, Tracer)
        ts = check_grid((ts if traced else np.asarray(ts)).astype(dtype))
        order = check_order(order, levy_area)
        if len(given) > order + 1:
            raise ValueError(
                f"{len(given)} moments are prescribed, but a path of order {order} has "
                f"{order + 1}. Write `order={len(given) - 1}` or more."
            )
        count = ts.shape[0] - 1
        self.shape = _inner_shape(given, count)
        self.order = order
        longest = None if traced else concrete((ts[1:] - ts[:-1]).max())
        depth = np.finfo(dtype).nmant if longest is None else depth_for(longest, tol)
        self._geometry = Geometry(min(depth, np.finfo(dtype).nmant), unbounded=False)
        self.ts = jnp.asarray(ts)
        key = check_key(key)
        structs, treedef = jax.tree.flatten(self.shape)
        words = [key_words(key, i) for i in range(len(structs))]
        self.key = jax.tree.unflatten(treedef, words)
        lengths = self.ts[1:] - self.ts[:-1]
        self._roots = jax.tree.map(
            lambda w, s, *zs: _root_vectors(w, s, zs, lengths, order),
            self.key,
            self.shape,
            *given,
        )

    @property
    def t0(self) -> Array:
        return self.ts[0]

    @property
    def t1(self) -> Array:
        return self.ts[-1]

    def time_dtype(self) -> np.dtype:
        return np.dtype(self.ts.dtype)

    def standardised(self, s: RealScalar, u: RealScalar, rows: int) -> Standardised:
        dtype = self.time_dtype()
        s, u = as_time(s, dtype), as_time(u, dtype)
        s = eqx.error_if(
            s,
            (s < self.ts[0]) | (u > self.ts[-1]),
            "Cannot evaluate BrownianBridge outside of its knots.",
        )
        final = self.ts.shape[0] - 2
        i = jnp.searchsorted(self.ts, s, side="right").astype(jnp.int32) - 1
        j = jnp.searchsorted(self.ts, u, side="left").astype(jnp.int32) - 1
        i = jnp.clip(i, 0, final)
        j = jnp.clip(j, i, final)
        first = (s, jnp.minimum(u, self.ts[i + 1]))
        last = (jnp.maximum(s, self.ts[j]), u)

        def leaf(words, struct, roots):
            kind = compute_dtype(struct.dtype)
            head = self._within(words, struct, roots[:, i], i, first)
            tail = self._within(words, struct, roots[:, j], j, last)
            between = jnp.arange(final + 1, dtype=jnp.int32)
            between = (between > i) & (between < j)
            parts = jnp.concatenate([roots, head[:, None], tail[:, None]], axis=1)
            start = jnp.concatenate(
                [self.ts[:-1] - s, jnp.zeros(1, dtype), (last[0] - s)[None]]
            )
            length = jnp.concatenate(
                [self.ts[1:] - self.ts[:-1], (first[1] - s)[None], (u - last[0])[None]]
            )
            used = jnp.concatenate([between, jnp.array([True]), (j > i)[None]])
            weights = chen_coefficients(
                start.astype(kind),
                length.astype(kind),
                (u - s).astype(kind),
                self.order,
                rows,
            )
            weights = jnp.where(used[None, None], weights, 0)
            z = jnp.einsum("mqp,qpe->me", weights, parts, precision="highest")
            if jnp.issubdtype(struct.dtype, jnp.complexfloating):
                z = jax.lax.complex(*jnp.split(z, 2, axis=1))
            return z.reshape(rows, *struct.shape)

        z = jax.tree.map(leaf, self.key, self.shape, self._roots)
        return Standardised(z, u - s)

    def _within(self, words, struct, root, block, times):
        """Normalised moments over a part of one knot interval: `(order + 1, size)`."""
        size, dtype = element_count(struct), compute_dtype(struct.dtype)
        begin = self.ts[block]
        length = self.ts[block + 1] - begin
        count = self.time_dtype().type(2.0**self._geometry.depth)

        def position(t):
            x = jnp.clip((t - begin) / length * count, 0, count)
            whole = jnp.minimum(jnp.floor(x), count - 1)
            return Position(whole.astype(self._geometry.int_dtype), x - whole)

        first, second = (position(t) for t in times)
        terms = expand(
            self._geometry,
            first,
            second,
            self.order,
            self.order + 1,
            dtype,
            width(size, self.order),
        )
        own = _block_words(words, block)
        # The terms of the root vector are weighed with the prescribed one.
        nodes = terms[0]
        is_root = np.flatnonzero(nodes.level == -1)[: self.order + 1]
        known = nodes.coefficients[:, is_root]
        mask = jnp.asarray(nodes.level != -1)
        terms = [
            nodes._replace(coefficients=jnp.where(mask[None], nodes.coefficients, 0)),
            *terms[1:],
        ]
        drawn = total(terms, own, self.order, size, None)
        scale = math.sqrt(0.5) if _is_complex(struct) else 1.0
        drawn = drawn * np.asarray(scale, dtype)
        return drawn + jnp.matmul(known, root, precision="highest")


BrownianBridge.__module__ = "pathax.brownian"


def _is_complex(struct: jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(struct.dtype, jnp.complexfloating))


def _block_words(words: UInt32[Array, "2"], block: Array) -> UInt32[Array, "2"]:
    """Key words of the tree between two knots."""
    counter = (block.astype(jnp.uint32), jnp.full_like(block, 0x5EED0002, jnp.uint32))
    return jnp.stack(threefry((words[0], words[1]), counter))


def _inner_shape(
    given: list[PyTree[Array]], count: int
) -> PyTree[jax.ShapeDtypeStruct]:
    leaves = [jax.tree.leaves(x) for x in given]
    if any(jax.tree.structure(x) != jax.tree.structure(given[0]) for x in given):
        raise ValueError("All prescribed moments must have one PyTree structure.")
    for arrays in leaves:
        for x, x0 in zip(arrays, leaves[0], strict=True):
            if x.shape != x0.shape or x.shape[:1] != (count,):
                raise ValueError(
                    f"Prescribed moments must be arrays of shape ({count}, ...), one "
                    f"entry for each interval between knots; got {x.shape}."
                )
    structs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), given[0]
    )
    return check_shape(structs)


def _root_vectors(words, struct, given, lengths, order: int):
    """Normalised moments over each knot interval: given ones first, then drawn ones."""
    dtype, size, count = (
        compute_dtype(struct.dtype),
        element_count(struct),
        lengths.size,
    )
    lengths = lengths.astype(real_dtype(struct.dtype)).astype(dtype)
    rows = []
    for n, moment in enumerate(given):
        scale = jnp.sqrt((2 * n + 1) / lengths)
        if _is_complex(struct):
            flat = moment.reshape(count, -1)
            flat = jnp.concatenate([flat.real, flat.imag], axis=1)
        else:
            flat = moment.reshape(count, -1).astype(dtype)
        rows.append(scale[:, None] * flat)
    if len(given) <= order:
        blocks = jnp.arange(count)
        own = jax.vmap(lambda block: _block_words(words, block))(blocks)
        scale = np.asarray(math.sqrt(0.5) if _is_complex(struct) else 1.0, dtype)
        for n in range(len(given), order + 1):
            element = np.arange(size, dtype=np.uint32) + np.uint32(n * size)
            zero = (jnp.zeros(size, jnp.uint32), None)
            draw = lambda w: normals(w, zero, jnp.asarray(element), dtype)  # noqa: B023
            rows.append(scale * jax.vmap(draw)(own))
    return jnp.stack(rows)


def condition(
    ts: Any,
    values: PyTree[Array],
    *,
    tol: float,
    key: PRNGKeyArray | Array,
    levy_area: type = diffrax.BrownianIncrement,
    order: int | None = None,
) -> BrownianBridge:
    """A Brownian path through given values at given times (a bridge, or many).

    **Arguments:**

    - `ts`: the times, increasing, shape `(n,)`, `n >= 2`.
    - `values`: the path at these times: a PyTree of arrays `(n, *shape)`. Only their
      differences matter.
    - `tol`, `key`, `levy_area`, `order`: as for
      [`pathax.brownian.VirtualBrownianTree`][].

    **Returns:** a [`pathax.brownian.BrownianBridge`][] over `[ts[0], ts[-1]]`.

    **Raises:** `ValueError` for times that don't increase or values of a wrong shape.

    **Example:**

    >>> import jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.condition(
    ...     jnp.array([0.0, 1.0]), jnp.zeros((2, 3)), tol=2**-10, key=jax.random.key(0)
    ... )
    >>> bool(abs(path.evaluate(0.0, 1.0)).max() < 1e-6)
    True
    """
    for x in jax.tree.leaves(values):
        if x.shape[:1] != (len(ts),):
            raise ValueError(
                f"`values` must be arrays of shape ({len(ts)}, ...), one entry "
                f"for each time; got {x.shape}."
            )
    increments = jax.tree.map(lambda x: x[1:] - x[:-1], values)
    return BrownianBridge(
        ts, [increments], tol=tol, key=key, levy_area=levy_area, order=order
    )


def replay(
    ts: Any,
    increments: PyTree[Array],
    *,
    tol: float,
    key: PRNGKeyArray | Array,
    levy_area: type = diffrax.BrownianIncrement,
    order: int | None = None,
) -> BrownianBridge:
    """A Brownian path from recorded increments, to be asked at any other times too.

    **Arguments:**

    - `ts`: the ends of the recorded intervals, increasing, shape `(n + 1,)`.
    - `increments`: `W` over each interval, a PyTree of arrays `(n, *shape)`; or a
      Diffrax increment (`BrownianIncrement`, `SpaceTimeLevyArea`,
      `SpaceTimeTimeLevyArea`) of such PyTrees, which fixes `H` and `K` too. Moments
      that are not given are drawn from their conditional law.
    - `tol`, `key`, `levy_area`, `order`: as for
      [`pathax.brownian.VirtualBrownianTree`][].

    **Returns:** a [`pathax.brownian.BrownianBridge`][] over `[ts[0], ts[-1]]`.

    **Raises:** `ValueError` for times that don't increase or arrays of a wrong shape.

    **Example:**

    >>> import jax, jax.numpy as jnp
    >>> import pathax as px
    >>> noise = jax.random.normal(jax.random.key(1), (4,)) / 2
    >>> path = px.brownian.replay(
    ...     jnp.linspace(0, 1, 5), noise, tol=2**-10, key=jax.random.key(0)
    ... )
    >>> bool(abs(path.evaluate(0.25, 0.5) - noise[1]) < 1e-6)
    True
    """
    if isinstance(increments, diffrax.AbstractBrownianIncrement):
        given = [increments.W]
        if isinstance(increments, diffrax.AbstractSpaceTimeLevyArea):
            given.append(jax.tree.map(lambda x: -2 * x, increments.H))
        if isinstance(increments, diffrax.AbstractSpaceTimeTimeLevyArea):
            given.append(jax.tree.map(lambda x: 12 * x, increments.K))
    else:
        given = [increments]
    return BrownianBridge(ts, given, tol=tol, key=key, levy_area=levy_area, order=order)
