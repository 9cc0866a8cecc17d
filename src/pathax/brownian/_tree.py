"""The virtual Brownian tree: one key, a whole path, any query in any order."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ._inputs import (
    RealScalar,
    as_time,
    check_key,
    check_shape,
    compute_dtype,
    concrete,
    time_dtype,
)
from ._levy import order_of
from ._noise import key_words
from ._path import AbstractMomentPath, Standardised
from ._query import Geometry, Position, expand
from ._sample import draw_top, total, width


# Relative slack, for tolerances that are a power of two up to rounding.
_SLACK = 1e-6


class VirtualBrownianTree(AbstractMomentPath):
    """A Brownian path with its time integrals, as a function of one random key.

    A drop-in for `diffrax.VirtualBrownianTree`, with the exact law at every step size
    in float32 too, any number of time integrals, and the Lévy area between components.

    **Model.** Over any interval of length `h`, the moments
    `L_n = int P_n(2 (r - s) / h - 1) dW_r` (`P_n` Legendre) are independent
    `N(0, h / (2n + 1))`; `L_0 = W`, `L_1 = -2 H`, `L_2 = 12 K`. The path is the sum,
    over the nodes of a dyadic tree on `[t0, t1]`, of Alpert's multiwavelets of degree
    `order` times i.i.d. normals, and inside a leaf it is conditioned on the leaf's
    moments. Moments over an interval are inner products with these functions. The joint
    law of all queries is exact if no leaf holds two different query times; if both ends
    of one query are in one leaf, the law of that increment is exact, but its joint law
    with other queries inside the same leaf is not.

    **Arguments:**

    - `t0`: start of the time interval; unit of time; may be traced.
    - `t1`: end of it, or `None` for a horizon without end (then queries may go up to
      `2^30` leaves after `t0`, or `2^52` in float64; the path does not depend on how
      far anybody looked).
    - `tol`: the largest length of a leaf; unit of time. Let it be smaller than half of
      the smallest step. `None` is the finest that the dtype of the times resolves.
    - `shape`: a tuple of integers, or a PyTree of `jax.ShapeDtypeStruct` of any
      floating or complex dtype.
    - `key`: a JAX random key.
    - `levy_area`: the class of increments: `diffrax.BrownianIncrement` (W),
      `diffrax.SpaceTimeLevyArea` (W, H) or `diffrax.SpaceTimeTimeLevyArea` (W, H, K).
    - `order`: instead of `levy_area`, how many moments beyond the first; any integer >=
      0. Paths of different orders are different for the same key.
    - `cache_levels`: store the normals of this many levels from the top, instead of
      drawing them at each query. Takes `2^cache_levels (order + 1)` arrays of the given
      shape, and changes no value.

    **Raises:** `ValueError` or `TypeError` for a tolerance that is not positive, not
    resolved by the dtype of the times or longer than the interval, for `t0 >= t1`, for
    a levy area that is not one of the three classes, for shapes and keys of a wrong
    kind. At run time, an error if a query is outside of `[t0, t1]`.

    **Cost.** With `D = ceil(log2((t1 - t0) / tol))`, a query draws up to
    `(2D + 4) (order + 1)` normals an element of the shape, all at once, and computes
    their coefficients in `O(D order^3)` flops that don't depend on the shape. Memory is
    a few times that of the answer. If `t0` or `t1` is traced, `D` is the largest that
    the dtype allows. New times or keys don't recompile.

    **Gradients.** None with respect to times (an error); none with respect to the key.
    Solves with any adjoint are differentiable in parameters and initial state.

    **Precision.** In float32 normalised moments are accurate to 1e-6 at every scale,
    orders up to 6. The stream of normals is pinned: it depends on the key, the dtype
    and the order, not on the JAX version. The numbers of a scalar and a batched query
    agree to a few units in the last place.

    **Reference:** Jelinčič, Foster, Kidger, "Single-seed generation of Brownian paths
    and integrals for adaptive and high order SDE solvers", arXiv:2405.06464 (the tree,
    Theorems 3.5 and 3.7 for orders 1 and 2); Alpert, "A class of bases in L2 for the
    sparse representation of integral operators", SIAM J. Math. Anal. 24 (1993). Unlike
    there, intervals are not differences of two walks from `t0`.

    **Example:**

    >>> import diffrax, jax
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     t0=0.0, t1=1.0, tol=2**-12, shape=(2,), key=jax.random.key(0),
    ...     levy_area=diffrax.SpaceTimeLevyArea,
    ... )
    >>> increment = path.evaluate(0.25, 0.375, use_levy=True)
    >>> increment.W.shape, increment.H.shape
    ((2,), (2,))
    """

    t0: Float[Array, ""]
    t1: Float[Array, ""]
    shape: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    order: int = eqx.field(static=True)
    cache_levels: int = eqx.field(static=True)
    key: PyTree[UInt32[Array, "2"]]
    leaf_length: Float[Array, ""]
    _geometry: Geometry = eqx.field(static=True)
    _cache: PyTree[Array] | None

    def __init__(
        self,
        t0: RealScalar,
        t1: RealScalar | None,
        tol: RealScalar | None,
        shape: tuple[int, ...] | PyTree[jax.ShapeDtypeStruct],
        key: PRNGKeyArray | Array,
        levy_area: type = diffrax.BrownianIncrement,
        *,
        order: int | None = None,
        cache_levels: int = 0,
    ):
        self.shape = check_shape(shape)
        self.order = check_order(order, levy_area)
        key = check_key(key)
        structs, treedef = jax.tree.flatten(self.shape)
        words = [key_words(key, i) for i in range(len(structs))]
        self.key = jax.tree.unflatten(treedef, words)

        dtype = time_dtype(t0) if t1 is None else time_dtype(t0, t1)
        self._geometry, leaf_length = _plan(t0, t1, tol, dtype)
        start = as_time(t0, dtype)
        if t1 is None:
            end = jnp.asarray(jnp.inf, dtype)
        else:
            end = as_time(t1, dtype)
            if concrete(t0) is None or concrete(t1) is None:
                start = eqx.error_if(
                    start, ~(start < end), "`t0` must be strictly less than `t1`."
                )
            leaf_length = (end - start) * dtype.type(2.0**-self._geometry.depth)
        self.t0, self.t1 = start, end
        self.leaf_length = jnp.asarray(leaf_length, dtype)
        self.cache_levels = _check_cache(cache_levels, self._geometry)
        self._cache = self._draw_cache() if cache_levels else None

    def _draw_cache(self) -> PyTree[Array]:
        """Normals of the top levels, `(order + 1, nodes, size)` a leaf of the shape."""
        shape = (self.order + 1, 2**self.cache_levels)
        is_deep = self._geometry.is_deep

        def table(words, struct):
            size, dtype = element_count(struct), compute_dtype(struct.dtype)
            return draw_top(words, shape, is_deep, size, dtype)

        return jax.tree.map(table, self.key, self.shape)

    @property
    def depth(self) -> int:
        """How many levels of nodes there are above the leaves."""
        return self._geometry.depth

    def time_dtype(self) -> np.dtype:
        return np.dtype(self.t0.dtype)

    def standardised(self, s: RealScalar, u: RealScalar, rows: int) -> Standardised:
        dtype = self.time_dtype()
        s, u = as_time(s, dtype), as_time(u, dtype)
        first, second = self._locate(s, u)
        kinds = {self._kind(x) for x in jax.tree.leaves(self.shape)}
        expansions = {
            kind: expand(self._geometry, first, second, self.order, rows, *kind)
            for kind in kinds
        }

        def leaf(words, struct, cache):
            z = total(
                expansions[self._kind(struct)],
                words,
                self.order,
                element_count(struct),
                cache,
            )
            if jnp.issubdtype(struct.dtype, jnp.complexfloating):
                real, imaginary = jnp.split(z, 2, axis=1)
                z = jax.lax.complex(real, imaginary) * np.array(
                    math.sqrt(0.5), z.dtype
                ).astype(np.result_type(z.dtype, np.complex64))
            return z.reshape(rows, *struct.shape)

        if self._cache is None:
            z = jax.tree.map(lambda w, x: leaf(w, x, None), self.key, self.shape)
        else:
            z = jax.tree.map(leaf, self.key, self.shape, self._cache)
        return Standardised(z, u - s)

    def _kind(self, struct: jax.ShapeDtypeStruct) -> tuple[np.dtype, int]:
        """What the expansion of an interval depends on: dtype and padding."""
        return compute_dtype(struct.dtype), width(element_count(struct), self.order)

    def _locate(self, s: Array, u: Array) -> tuple[Position, Position]:
        """Both times in leaves, after the check that they are in range."""
        dtype = self.time_dtype()
        count = dtype.type(2.0**self.depth)
        own = (self.t0, self.t1, self.leaf_length)
        start, end, leaf_length = jax.lax.stop_gradient(own)
        # One division, of what a solve leaves alone: compilers take it out of loops.
        if self._geometry.unbounded:
            per_time, slack = 1 / leaf_length, dtype.type(0)
        else:
            per_time = count / (end - start)
            slack = count * dtype.type(8 * np.finfo(dtype).eps)
        first, second = (s - start) * per_time, (u - start) * per_time
        inside = (first >= -slack) & (second <= count + slack)
        first = eqx.error_if(
            first,
            ~inside,
            "Cannot evaluate VirtualBrownianTree outside of its range [t0, t1]. Build "
            "the tree over an interval that holds all times of the solve, or with "
            "`t1=None`.",
        )

        def position(x):
            x = jnp.clip(x, 0, count)
            whole = jnp.minimum(jnp.floor(x), count - 1)
            return Position(whole.astype(self._geometry.int_dtype), x - whole)

        return position(first), position(second)


VirtualBrownianTree.__module__ = "pathax.brownian"


def element_count(struct: jax.ShapeDtypeStruct) -> int:
    """How many real numbers an array of this shape and dtype has."""
    is_complex = jnp.issubdtype(struct.dtype, jnp.complexfloating)
    return math.prod(struct.shape) * (2 if is_complex else 1)


def check_order(order: int | None, levy_area: type) -> int:
    """The order that is asked for by number or by class of increments."""
    needed = order_of(levy_area)
    if order is None:
        return needed
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 0:
        raise ValueError(f"`order` must be an integer >= 0; got {order!r}.")
    if order < needed:
        raise ValueError(
            f"`levy_area={levy_area.__name__}` needs `order={needed}` or more; got "
            f"`order={order}`. Pass one of the two."
        )
    return int(order)


def _check_cache(cache_levels: int, geometry: Geometry) -> int:
    if not isinstance(cache_levels, int) or not 0 <= cache_levels <= 24:
        raise ValueError(
            f"`cache_levels` must be an integer from 0 to 24; got {cache_levels!r}."
        )
    if cache_levels > geometry.depth:
        raise ValueError(
            f"`cache_levels={cache_levels}` exceeds the depth of the tree, "
            f"{geometry.depth}. Write `cache_levels={geometry.depth}` or less."
        )
    if cache_levels and geometry.unbounded:
        raise ValueError(
            "A tree without end (`t1=None`) has no top to cache: write "
            "`cache_levels=0`."
        )
    return cache_levels


def _plan(
    t0: Any, t1: Any, tol: Any, dtype: np.dtype
) -> tuple[Geometry, RealScalar | None]:
    """How deep the tree must be, and the length of a leaf if there is no end."""
    step = None if tol is None else check_tolerance(tol)
    if t1 is None:
        if step is None:
            raise ValueError(
                "A tree without end (`t1=None`) needs a `tol`, its unit of time. Let "
                "it be half of the smallest step."
            )
        start = concrete(t0)
        if start is not None and not math.isfinite(start):
            raise ValueError(f"`t0` must be finite; got {start}.")
        return Geometry(30 if dtype.itemsize < 8 else 52, unbounded=True), step
    start, end = concrete(t0), concrete(t1)
    if start is None or end is None:
        return Geometry(np.finfo(dtype).nmant, unbounded=False), None
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(
            f"`t0` and `t1` must be finite; got {start} and {end}. Write `t1=None` "
            "for a horizon without end."
        )
    if not start < end:
        raise ValueError(f"`t0` must be strictly less than `t1`; got {start}, {end}.")
    length = end - start
    resolution = float(np.finfo(dtype).eps) * max(abs(start), abs(end), length)
    if step is None:
        return Geometry(int(math.log2(length / resolution)), unbounded=False), None
    if step < resolution * (1 - _SLACK):
        raise ValueError(
            f"`tol` must be at least {resolution:.3g}, the spacing of {dtype.name} "
            f"times in [{start}, {end}]; got {step}. Write `tol={resolution:.6g}` "
            "or `tol=None`"
            + ("." if dtype.itemsize == 8 else ", or use float64 times.")
        )
    return Geometry(depth_for(length, step), unbounded=False), None


def check_tolerance(tol: Any) -> float:
    """A positive number."""
    step = concrete(tol)
    if step is None:
        raise ValueError(
            "`tol` must be a number: it sets the depth of the tree, which is static. "
            "It was traced; pass it as a Python float, or `tol=None` for the finest."
        )
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"`tol` must be positive and finite; got {step}.")
    return step


def depth_for(length: float, tol: Any) -> int:
    """How many levels make the leaves of a tree on an interval as short as `tol`."""
    step = check_tolerance(tol)
    if step > length * (1 + _SLACK):
        raise ValueError(
            f"`tol` must be at most the length of the interval, {length}; got {step}. "
            f"Write `tol={length}` for a tree of a single leaf."
        )
    exact = math.log2(length / step)
    nearest = round(exact)
    return nearest if abs(exact - nearest) < _SLACK else math.ceil(exact)
