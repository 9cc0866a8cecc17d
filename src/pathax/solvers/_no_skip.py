"""Adaptive steps that are nodes of a dyadic tree, so that no time is skipped."""

import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..brownian._inputs import concrete


# Counters of leaves are 32-bit integers.
_MAX_DEPTH = 30


class _State(eqx.Module):
    inner: PyTree
    leaf: Array  # the step starts at this leaf
    size: Array  # and is this many leaves long, a power of two
    last: Array  # leaf at which the solve ends
    t1: Array  # and its time


class DyadicController(dfx.AbstractAdaptiveStepSizeController):
    r"""Makes every step of a controller a node of the path's dyadic tree.

    With leaves of length `l = (path.t1 - path.t0) 2^-depth`, every step is an interval

    $$[t_0 + k 2^j l, \; t_0 + (k + 1) 2^j l], \qquad k, j \in \{0, 1, \dots\},$$

    the longest that starts where the solve is, is no longer than what the `controller`
    inside asks for, and ends within the solve. After a rejection the next one is
    shorter. Two nodes of a tree are nested or disjoint; so no later step reaches past
    the end of a rejected one, and each rejected time becomes the end of a step.

    This matters for equations whose noise does not commute. What a rejected step saw of
    the path influences the steps after it. If they skip its end, this part of the
    path is used for the choice of the steps but not for the solution, and the
    error of a step, whose mean is zero for a step chosen in advance, gets a bias; as
    there are `O(1 / h)` steps with biases of `O(h)`, the limit is wrong.

    **Arguments:**

    - `controller`: an adaptive controller that accepts, rejects and proposes, such as
      `diffrax.PIDController`.
    - `path`: the Brownian path of the solve, for its interval and its leaves; anything
      with finite `t0`, `t1`, and with `depth` or `tol`. The solve must start and end at
      multiples of a leaf.
    - `depth`: that of the tree of steps, if it shall be less than the path's. The
      shortest step is `(t1 - t0) 2^-depth`. By default the path's, at most 30.
    - `force_leaf`: whether a step as short as a leaf is always accepted. If not, its
      rejection ends the solve with `diffrax.RESULTS.dt_min_reached`.

    With `dt0=None` the first step tried is the longest.

    **Raises:** `ValueError` or `TypeError` for a controller that is not adaptive or
    that has jump times of its own, for a path without end, and for a depth that is
    deeper than the path's leaves or than times are resolved; at run time, if the solve
    does not start and end at multiples of a leaf.

    **Cost:** a few integer operations a step. Steps are at most twice shorter than what
    is asked for, or as short as the place in the tree demands.

    **Gradients:** as those of the `controller` inside: none with respect to times.

    **Precision:** places are integers, and ends of steps are rounded once: a time that
    is visited again has the same bits.

    **Reference:** Foster, Jelinčič, "On the convergence of adaptive approximations for
    stochastic differential equations", arXiv:2311.14201 (steps that are nested make
    Heun's and related methods converge); Gaines, Lyons, "Variable step size control in
    the numerical solution of stochastic differential equations", SIAM J. Appl. Math. 57
    (1997).

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-10, (2,), jax.random.key(0), dfx.SpaceTimeLevyArea
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.ControlTerm(lambda t, y, args: jnp.outer(y[::-1], y), path),
    ... )
    >>> solution = dfx.diffeqsolve(
    ...     terms, dfx.SPaRK(), 0.0, 1.0, None, jnp.ones(2),
    ...     stepsize_controller=px.solvers.DyadicController(
    ...         dfx.PIDController(rtol=1e-2, atol=1e-2), path
    ...     ),
    ...     saveat=dfx.SaveAt(steps=True),
    ... )
    >>> leaves = solution.ts[jnp.isfinite(solution.ts)] * 2**10
    >>> bool(jnp.all(leaves == jnp.round(leaves)))
    True
    """

    controller: dfx.AbstractAdaptiveStepSizeController
    start: Array
    end: Array
    depth: int = eqx.field(static=True)
    force_leaf: bool = eqx.field(static=True)

    def __init__(
        self,
        controller: dfx.AbstractAdaptiveStepSizeController,
        path: Any,
        depth: int | None = None,
        *,
        force_leaf: bool = True,
    ):
        has_jumps = isinstance(controller, dfx.ClipStepSizeController)
        if has_jumps or not isinstance(
            controller, dfx.AbstractAdaptiveStepSizeController
        ):
            raise TypeError(
                "`controller` must accept and reject steps and propose their lengths, "
                f"and leave their places alone; got {type(controller).__name__}. Write "
                "`DyadicController(diffrax.PIDController(rtol=..., atol=...), path)`."
            )
        self.controller = controller
        self.start, self.end = jnp.asarray(path.t0), jnp.asarray(path.t1)
        self.depth = _check_depth(depth, path, self.start.dtype)
        self.force_leaf = force_leaf

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Callable:
        return self.controller.norm

    def wrap(self, direction: Any) -> "DyadicController":
        """As for every controller: time runs from larger to smaller if `-1`."""
        forward = jnp.asarray(direction) > 0
        start = jnp.where(forward, self.start, -self.end)
        end = jnp.where(forward, self.end, -self.start)
        new = (self.controller.wrap(direction), start, end)
        return eqx.tree_at(lambda c: (c.controller, c.start, c.end), self, new)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order) -> Any:
        """The first step, and where in the tree it is."""
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        dt = t1 - t0 if dt0 is None else jnp.asarray(dt0)
        first, inner = self.controller.init(
            terms, t0, t1, y0, dt.astype(t0.dtype), args, func, error_order
        )
        leaf, last = self._leaf(t0), self._leaf(t1)
        size = self._fitting(leaf, last, first - t0)
        state = _State(inner, leaf, size, last, t1)
        return self._time(leaf + size, state), state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ) -> Any:
        """Accept or reject as the controller inside does; the next step is a node."""
        state = controller_state
        keep, next_t0, next_t1, made_jump, inner, result = (
            self.controller.adapt_step_size(
                t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
            )
        )
        at_leaf = state.size == 1
        failed = at_leaf & ~jnp.asarray(keep)
        if self.force_leaf:
            keep = keep | at_leaf
        else:
            result = dfx.RESULTS.where(failed, dfx.RESULTS.dt_min_reached, result)
        leaf = jnp.where(keep, state.leaf + state.size, state.leaf)
        size = self._fitting(leaf, state.last, next_t1 - next_t0)
        shorter = jnp.maximum(state.size // 2, 1)
        size = jnp.where(keep, size, jnp.minimum(size, shorter))
        new = _State(inner, leaf, size, state.last, state.t1)
        begin = jnp.where(keep, t1, t0)
        return keep, begin, self._time(leaf + size, new), made_jump, new, result

    def _leaf(self, t: Array) -> Array:
        """The number of leaves before this time."""
        count = 2.0**self.depth
        start, end = self.start.astype(t.dtype), self.end.astype(t.dtype)
        place = (t - start) / (end - start) * np.asarray(count, t.dtype)
        whole = jnp.round(place)
        # What two roundings of times can be away from a multiple.
        unit = jnp.maximum(jnp.abs(start), jnp.abs(end)) / (end - start)
        slack = 4 * float(np.finfo(t.dtype).eps) * count * jnp.maximum(unit, 1)
        off = ~(jnp.abs(place - whole) <= slack) | (whole < 0) | (whole > count)
        whole = eqx.error_if(
            whole,
            off,
            "DyadicController: the solve must start and end at multiples of the "
            "shortest step, (path.t1 - path.t0) / 2**depth after path.t0. Build the "
            "path over the interval of the solve.",
        )
        return whole.astype(jnp.int32)

    def _fitting(self, leaf: Array, last: Array, dt: Any) -> Array:
        """The longest node from here that is at most `dt` long, in leaves."""
        dt = jax.lax.stop_gradient(jnp.asarray(dt))
        length = (self.end - self.start).astype(dt.dtype)
        ratio = dt / length * np.asarray(2.0**self.depth, dt.dtype)
        ratio = ratio * np.asarray(1 + 8 * np.finfo(dt.dtype).eps, dt.dtype)
        # NaN and infinity, of a step that failed, become the shortest and the longest.
        ratio = jnp.where(jnp.isnan(ratio), 1, ratio)
        ratio = jnp.clip(ratio, 1, 2.0**self.depth)
        wanted = jnp.left_shift(jnp.int32(1), jnp.frexp(ratio)[1].astype(jnp.int32) - 1)
        aligned = jnp.where(leaf == 0, jnp.int32(2**_MAX_DEPTH), leaf & -leaf)
        left = jnp.maximum(last - leaf, 1)
        fits = jnp.left_shift(jnp.int32(1), 31 - jax.lax.clz(left))
        return jnp.minimum(jnp.minimum(wanted, aligned), fits)

    def _time(self, leaf: Array, state: _State) -> Array:
        """When this leaf starts."""
        dtype = state.t1.dtype
        start, end = self.start.astype(dtype), self.end.astype(dtype)
        part = leaf.astype(dtype) * np.asarray(2.0**-self.depth, dtype)
        time = jnp.where(leaf < state.last, start + (end - start) * part, state.t1)
        return jax.lax.stop_gradient(time)


DyadicController.__module__ = "pathax.solvers"


def _check_depth(depth: int | None, path: Any, dtype: Any) -> int:
    """The depth of the tree of steps."""
    start, end = concrete(path.t0), concrete(path.t1)
    known = start is not None and end is not None
    length = end - start if start is not None and end is not None else 1.0
    if not (math.isfinite(length) and length > 0):
        raise ValueError(
            f"`path` must have a finite interval; got [{start}, {end}]. Build it with "
            "`t1` the end of the solve."
        )
    own = getattr(path, "depth", None)
    if own is None and known and getattr(path, "tol", None) is not None:
        own = max(math.ceil(math.log2(length / float(path.tol)) - 1e-6), 0)
    finest = min(_MAX_DEPTH, int(np.finfo(dtype).nmant))
    if own is not None:
        finest = min(finest, own)
    if depth is None:
        if own is None:
            raise ValueError(
                f"{type(path).__name__} has no `depth`, nor a known `tol`: write "
                "`DyadicController(controller, path, depth=...)`, with a shortest "
                "step of (t1 - t0) / 2**depth."
            )
        return finest
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ValueError(f"`depth` must be an integer >= 0; got {depth!r}.")
    if depth > finest:
        raise ValueError(
            f"`depth` must be at most {finest}, for leaves of this path and times in "
            f"{np.dtype(dtype).name}; got {depth}. Write `depth={finest}`, or a "
            "smaller `tol` of the path."
        )
    return depth
