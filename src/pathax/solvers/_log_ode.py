"""Log-ODE steps for noise that does not commute, with the path's own Lévy area."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..brownian import AbstractMomentPath
from ._evaluations import Evaluations


class LogODE(dfx.AbstractStratonovichSolver):
    r"""Solves an ODE for each step, whose field has the same Lie series as the noise.

    For `dy = f(t, y) dt + sum_i g_i(t, y) o dW^i`, a step from `t` to `t + h` is the
    solution at time one, by one step of the classical Runge-Kutta method, of

    $$\dot z = h f(z) + \sum_i W^i g_i(z) + \sum_{i < j} A^{ij} [g_i, g_j]\,(z),
    \qquad [g_i, g_j] = g_j' g_i - g_i' g_j,$$

    with the area `A` of the same path, from `terms` products of moments on each of
    `pieces` equal parts of the step. The area has the mean-square error
    `h^2 / (4 pieces (2 terms + 1))`, the only error of strong order 1/2; with
    `pieces` proportional to `1 / h` the strong order is 1, with a fixed number it is
    1/2 with a smaller constant. If the noise commutes, the order is 1 for any area.

    **Arguments:**

    - `terms`: as for `AbstractMomentPath.space_space_area`; `None` is the order of the
      path, 0 leaves the area inside of the pieces out.
    - `pieces`: into how many parts a step is cut for the area.

    The terms of the equation are `MultiTerm(ODETerm, ControlTerm)`, the control a path
    of `pathax.brownian` whose shape is `(d,)`.

    **Raises:** `TypeError` if the control is not such a path; `ValueError` for
    `terms < 0` or `pieces < 1`.

    **Cost:** 4 evaluations of the drift and, for `d` components of the noise,
    `4 (1 + d)` of the diffusion and `4 d` Jacobian-vector products of it; `pieces + 1`
    queries to the path.

    **Gradients:** of any order, in parameters and initial state.

    **Precision:** that of the state.

    **Reference:** Castell, Gaines, "An efficient approximation method for stochastic
    differential equations by means of the exponential Lie series", Math. Comput.
    Simul. 38 (1995); Foster, Lyons, Oberhauser, "An optimal polynomial approximation
    of Brownian motion", SIAM J. Numer. Anal. 58 (2020), for the area.

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-8, (2,), jax.random.key(0), order=2
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.ControlTerm(lambda t, y, args: jnp.outer(y[::-1], y), path),
    ... )
    >>> solution = dfx.diffeqsolve(
    ...     terms, px.solvers.LogODE(pieces=4), 0.0, 1.0, 1 / 16, jnp.ones(2)
    ... )
    >>> solution.ys.shape
    (1, 2)
    """

    terms: int | None = eqx.field(static=True, default=None)
    pieces: int = eqx.field(static=True, default=1)

    term_structure = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    interpolation_cls = dfx.LocalLinearInterpolation

    def __check_init__(self):
        if self.terms is not None and self.terms < 0:
            raise ValueError(f"`terms` must be at least 0 or None; got {self.terms}.")
        if self.pieces < 1:
            raise ValueError(f"`pieces` must be at least 1; got {self.pieces}.")

    def order(self, terms: PyTree) -> int:
        return 1

    def strong_order(self, terms: PyTree) -> float:
        return 0.5

    def init(self, terms, t0, t1, y0, args) -> None:
        """Check that the path knows its area."""
        _path_of(terms.terms[1])

    def func(self, terms, t0, y0, args) -> PyTree:
        """The vector fields at one time."""
        return terms.vf(t0, y0, args)

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`; Jacobian-vector products are diffusion."""
        path, _ = _path_of(terms.terms[1])
        d = jax.tree.leaves(path.shape)[0].shape[-1]
        return Evaluations(4, 4 * (1 + 2 * d), 1 + self.pieces)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        drift, diffusion = terms.terms
        path, direction = _path_of(diffusion)
        dt, w = drift.contr(t0, t1), diffusion.contr(t0, t1)
        area = path.space_space_area(
            t0 * direction, t1 * direction, self.terms, pieces=self.pieces
        )
        units = jnp.eye(w.shape[0], dtype=w.dtype)

        def field(part, y):
            t = t0 + (t1 - t0) * part

            def along(control, y):
                return diffusion.vf_prod(t, y, args, control)

            def one(unit, column):  # g_j' (sum_i A_ij g_i)
                _, out = jax.jvp(lambda y: along(unit, y), (y,), (along(column, y),))
                return out

            brackets = jax.vmap(one)(units, area.T)
            return jax.tree.map(
                lambda f, g, b: f + g + jnp.sum(b, axis=0),
                drift.vf_prod(t, y, args, dt),
                along(w, y),
                brackets,
            )

        k1 = field(0.0, y0)
        k2 = field(0.5, _moved(y0, k1, 0.5))
        k3 = field(0.5, _moved(y0, k2, 0.5))
        k4 = field(1.0, _moved(y0, k3, 1.0))
        y1 = jax.tree.map(
            lambda y, a, b, c, d: y + (a + 2 * (b + c) + d) / 6, y0, k1, k2, k3, k4
        )
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


LogODE.__module__ = "pathax.solvers"


def _moved(y: PyTree, k: PyTree, part: float) -> PyTree:
    return jax.tree.map(lambda y, k: y + part * k, y, k)


def _path_of(term: Any) -> tuple[AbstractMomentPath, Array | int]:
    """The path that drives a term, and in which direction a solve runs over it."""
    direction: Any = 1
    while isinstance(term, dfx.AbstractTerm) and hasattr(term, "term"):
        direction = direction * getattr(term, "direction", 1)
        term = getattr(term, "term")  # noqa: B009
    path = getattr(term, "control", None)
    single = isinstance(path, AbstractMomentPath) and (
        [len(x.shape) for x in jax.tree.leaves(path.shape)] == [1]
    )
    if not single:
        raise TypeError(
            "LogODE needs the area of its noise: a ControlTerm whose control is a path "
            f"of pathax.brownian of a shape `(d,)`; got {type(path).__name__}. Write "
            "`MultiTerm(ODETerm(drift), ControlTerm(diffusion, VirtualBrownianTree("
            "..., shape=(d,), order=2)))`."
        )
    assert isinstance(path, AbstractMomentPath)
    return path, direction
