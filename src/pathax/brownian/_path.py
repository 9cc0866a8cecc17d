"""What all paths of this folder share: everything that follows from the moments.

A path supplies the normalised Legendre moments of one interval, `Z_0, ..., Z_N`, which
are i.i.d. standard normal. Increments, iterated time integrals and the space-space Lévy
area are fixed linear or bilinear functions of them, written once, here.
"""

import abc
import functools as ft
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import _legendre as lg
from ._area import polynomial_area
from ._inputs import RealScalar, as_time, as_traced, real_dtype
from ._levy import class_of, from_moments


_Method = TypeVar("_Method", bound=Callable)


def _compiled(method: _Method) -> _Method:
    """`eqx.filter_jit` of a method whose first two arguments are times.

    Python numbers become arrays, as each new one would be compiled in otherwise.
    """
    jitted = eqx.filter_jit(method)

    @ft.wraps(method)
    def call(self, t0, t1=None, *args, **kwargs):
        return jitted(self, as_traced(t0), as_traced(t1), *args, **kwargs)

    return cast(_Method, call)


class Standardised(eqx.Module):
    """Normalised moments of one interval `[s, u]`, `s <= u`."""

    z: PyTree[Array]  # (rows, *shape) a leaf, in float32 or float64 (or complex)
    length: Float[Array, ""]  # u - s, in the dtype of the times


def orientation(rows: int) -> np.ndarray:
    """What moments over an interval are multiplied by when it is run backward."""
    return np.array([-((-1.0) ** n) for n in range(rows)])


class AbstractMomentPath(diffrax.AbstractBrownianPath):
    """A Brownian path that knows the Legendre moments of its increments.

    Concrete classes provide `standardised`, the normalised moments of one interval;
    everything public follows from them.
    """

    shape: eqx.AbstractVar[PyTree[jax.ShapeDtypeStruct]]
    order: eqx.AbstractVar[int]

    @abc.abstractmethod
    def standardised(self, s: RealScalar, u: RealScalar, rows: int) -> Standardised:
        """`Z_0, ..., Z_{rows-1}` over `[s, u]`, for times with `s <= u`."""

    @abc.abstractmethod
    def time_dtype(self) -> np.dtype:
        """The dtype in which this path holds times."""

    @property
    def levy_area(self) -> type:
        """The class of increments, as Diffrax's solvers look it up."""
        return class_of(self.order)

    @_compiled
    def evaluate(
        self,
        t0: RealScalar,
        t1: RealScalar | None = None,
        left: bool = True,
        use_levy: bool = False,
    ) -> PyTree[Array]:
        """The increment `W(t1) - W(t0)`, or `W(t0) - W(self.t0)` if `t1` is not given.

        **Arguments:**

        - `t0`, `t1`: times in the path's range, in any order (an interval from later to
          earlier has oriented integrals: `W` and `K` change sign, `H` does not).
        - `left`: ignored, as Brownian motion has no jumps.
        - `use_levy`: whether to return the increment object (`self.levy_area`, with
          `dt`, `W` and, by order, `H`, `K`, `higher`) or `W` alone.

        **Returns:** a PyTree like `shape`, or an increment with such PyTrees as fields.

        **Raises:** a run-time error for times outside of the range.
        """
        del left
        if t1 is None:
            t0, t1 = jax.lax.stop_gradient(self.t0), t0
        order = self.order if use_levy else 0
        moments, dt = self._oriented(t0, t1, order + 1)
        if not use_levy:
            return jax.tree.map(lambda m: m[0], moments)
        lengths = jax.tree.map(lambda s: dt.astype(real_dtype(s.dtype)), self.shape)
        return from_moments(lengths, moments, order)

    @_compiled
    def moments(self, t0: RealScalar, t1: RealScalar | None = None) -> PyTree[Array]:
        """The Legendre moments `L_n = int P_n(2 (r - t0) / (t1 - t0) - 1) dW_r`.

        They are independent, `L_n ~ N(0, (t1 - t0) / (2n + 1))`, and `L_0 = W`,
        `L_1 = -2 H`, `L_2 = 12 K`.

        **Arguments:** `t0`, `t1` as for `evaluate`.

        **Returns:** a PyTree like `shape` of arrays `(order + 1, *shape)`.
        """
        if t1 is None:
            t0, t1 = jax.lax.stop_gradient(self.t0), t0
        return self._oriented(t0, t1, self.order + 1)[0]

    @_compiled
    def time_integrals(
        self, t0: RealScalar, t1: RealScalar | None = None
    ) -> PyTree[Array]:
        """The iterated time integrals `J_k = int (t1 - r)^k / k! dW_r`, `k = 0..order`.

        `J_0 = W`, and `J_k` is the `k`-fold integral of `W_r - W_t0` over
        `t0 < r_1 < ... < r_k < t1`; unit time^(k + 1/2).

        **Arguments:** `t0`, `t1` as for `evaluate`.

        **Returns:** a PyTree like `shape` of arrays `(order + 1, *shape)`.
        """
        if t1 is None:
            t0, t1 = jax.lax.stop_gradient(self.t0), t0
        moments, dt = self._oriented(t0, t1, self.order + 1)

        def integrals(m, struct):
            dtype = real_dtype(m.dtype)
            table = lg.integral_coefficients(self.order).astype(dtype)
            powers = dt.astype(dtype) ** np.arange(self.order + 1, dtype=dtype)
            table = (table * powers[:, None]).astype(m.dtype)
            return jnp.tensordot(table, m, axes=1, precision="highest")

        return jax.tree.map(integrals, moments, self.shape)

    def space_space_area(
        self,
        t0: RealScalar,
        t1: RealScalar,
        terms: int | None = None,
        *,
        pieces: int = 1,
        tail: Literal["moment"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> PyTree[Array]:
        """The Lévy area `A_ij = (int W^i dW^j - int W^j dW^i) / 2` between components.

        The components are the last axis of each array of `shape`. `[t0, t1]` is cut
        into `pieces` equal parts; on each the area is expanded in `terms` products of
        neighbouring moments, and the parts are joined exactly. What is left out has
        mean zero and variance `h^2 / (4 pieces (2 terms + 1))`, with `h = t1 - t0`.

        **Arguments:**

        - `t0`, `t1`: as for `evaluate`.
        - `terms`: between 0 and `order`, which is the default.
        - `pieces`: how many parts; the cost is that of as many queries.
        - `tail`: `"moment"` adds a normal variable with the conditional variance of
          what is left out. It is for weak approximation: the tails of two adjacent
          intervals don't add up to the tail of their union.
        - `key`: for the tail, which is a function of this key and of the two times.

        **Returns:** a PyTree like `shape` of antisymmetric arrays `(*shape, d)`, `d`
        being the last axis; unit of time.

        **Raises:** `ValueError` if `terms` exceeds the order, `pieces < 1`, an array
        has no last axis, or a tail comes without a key.

        **Reference:** Foster, Lyons, Oberhauser, "An optimal polynomial approximation
        of Brownian motion", SIAM J. Numer. Anal. 58 (2020); Kuznetsov's expansion in
        Legendre polynomials.
        """
        terms = self.order if terms is None else terms
        if not 0 <= terms <= self.order:
            raise ValueError(
                f"`terms` must be between 0 and the order of the path, {self.order}; "
                f"got {terms}. Build the path with `order={max(terms, 0)}`, or raise "
                "`pieces`."
            )
        if pieces < 1:
            raise ValueError(f"`pieces` must be at least 1; got {pieces}.")
        if any(len(s.shape) == 0 for s in jax.tree.leaves(self.shape)):
            raise ValueError(
                "The area is between components, along the last axis: a path of shape "
                "() has none. Write `shape=(d,)`."
            )
        if any(
            jnp.issubdtype(s.dtype, jnp.complexfloating)
            for s in jax.tree.leaves(self.shape)
        ):
            raise ValueError(
                "The area is defined for real components. Give real and imaginary "
                "parts as two components of a real path."
            )
        if tail not in (None, "moment"):
            raise ValueError(f'`tail` must be None or "moment"; got {tail!r}.')
        if (tail is None) != (key is None):
            raise ValueError('`tail="moment"` and `key=...` go together.')
        t0, t1 = as_traced(t0), as_traced(t1)
        return polynomial_area(self, t0, t1, terms, pieces, key)

    def on_grid(
        self, ts: Any, *, span: int = 1, check: bool = True
    ) -> "AbstractMomentPath":
        """This path on a fixed grid, laid out once, looked up in constant time.

        For fixed-step solves and save grids. The values are those of this path (to a
        few units in the last place), so a solve on the grid has the same noise as an
        adaptive one.

        **Arguments:**

        - `ts`: increasing times in `[t0, t1]`, shape `(n,)`, `n >= 2`. Use the times
          that the solver takes: `diffrax.StepTo(ts)`, or
          [`pathax.brownian.step_times`][] for `diffrax.ConstantStepSize`.
        - `span`: the longest query, in grid steps (2 for `diffrax.HalfSolver` on a grid
          that has the midpoints).
        - `check`: raise when asked off the grid. `False` returns NaN instead, and keeps
          the loop of the solve free of branches to the host. With `diffrax.StepTo(ts)`
          on the same grid no query can be off it.

        **Returns:** a [`pathax.brownian.GridPath`][].

        **Raises:** `ValueError` for grids that are not increasing or have one point.
        """
        from ._grid import GridPath  # which is such a path itself

        return GridPath(self, ts, span=span, check=check)

    def _oriented(self, t0, t1, rows: int) -> tuple[PyTree[Array], Float[Array, ""]]:
        """Moments `L_n` from `t0` to `t1` and the signed length."""
        dtype = self.time_dtype()
        t0, t1 = as_time(t0, dtype), as_time(t1, dtype)
        backward = t1 < t0
        out = self.standardised(
            jnp.where(backward, t1, t0), jnp.where(backward, t0, t1), rows
        )
        flips = orientation(rows)
        norms = np.array([1 / math.sqrt(2 * n + 1) for n in range(rows)])

        def scale(z, struct):
            dtype = real_dtype(z.dtype)
            flip = jnp.where(backward, flips.astype(dtype), np.ones(rows, dtype))
            factor = jnp.sqrt(out.length.astype(dtype)) * norms.astype(dtype) * flip
            factor = factor.reshape(rows, *(1,) * (z.ndim - 1)).astype(z.dtype)
            return (factor * z).astype(struct.dtype)

        moments = jax.tree.map(scale, out.z, self.shape)
        return moments, jnp.where(backward, -out.length, out.length)
