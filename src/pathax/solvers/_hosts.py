"""High-order Strang splitting: flows of the drift, and of the noise between them."""

import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ._cir import CIR
from ._evaluations import Evaluations, add, evaluations_of_step


_ROOT = math.sqrt(3)
_OUTER, _INNER = (3 - _ROOT) / 6, 1 / _ROOT  # parts of the step; 2 _OUTER + _INNER = 1


class HOStS(dfx.AbstractStratonovichSolver):
    r"""High-order Strang splitting for noise that commutes.

    A step follows a path of five straight pieces, three in time and two in noise, that
    has the increment and the space-time area of the Brownian path:

    $$\begin{aligned}
    Y_1 &= \Phi^f_{\frac{3 - \sqrt 3}{6} h} (Y_0), &
    Y_2 &= \Phi^g_{\frac12 W + \sqrt 3 H} (Y_1), &
    Y_3 &= \Phi^f_{h / \sqrt 3} (Y_2), \\
    Y_4 &= \Phi^g_{\frac12 W - \sqrt 3 H} (Y_3), &
    Y_5 &= \Phi^f_{\frac{3 - \sqrt 3}{6} h} (Y_4)
    \end{aligned}$$

    with the flow `Phi^f` of the drift, and that of the noise, `Phi^g_w`: the solution
    at time one of `z' = g(t, z) w`. Strong order 3/2 for one component of noise or
    several that commute, with smooth fields.

    **Arguments:**

    - `drift_flow(t0, t1, y, args)`: where the drift of Stratonovich's form leads; if
      `None`, a step of `ode` does it.
    - `noise_flow(t, w, y, args)`: where the noise leads; if `None`, likewise.
    - `ode`: the solver for flows that are not given, of order four at least.

    `HOStS.of(cir)` has the exact flows of a [`pathax.solvers.CIR`][]. The terms of the
    equation are `MultiTerm(ODETerm, ControlTerm)`, the control a Brownian path that
    knows its space-time area, such as
    `VirtualBrownianTree(..., levy_area=diffrax.SpaceTimeLevyArea)`.

    There is no estimate of the error: take constant steps, a
    [`pathax.solvers.CIRController`][], or `diffrax.HalfSolver`.

    **Raises:** `TypeError` for a path without a space-time area.

    **Cost:** three flows of the drift and two of the noise, one query.

    **Gradients:** of any order, in parameters and initial state.

    **Precision:** that of the state.

    **Reference:** Foster, dos Reis, Strange, "High order splitting methods for SDEs
    satisfying a commutativity condition", SIAM J. Numer. Anal. 62 (2024),
    arXiv:2210.17543, equation (5.3).

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-8, (), jax.random.key(0), dfx.SpaceTimeLevyArea
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.ODETerm(lambda t, y, args: jnp.sin(y)),
    ...     dfx.ControlTerm(lambda t, y, args: jnp.cos(y), path),
    ... )
    >>> solver = px.solvers.HOStS()
    >>> dfx.diffeqsolve(terms, solver, 0.0, 1.0, 1 / 16, jnp.array(0.5)).ys.shape
    (1,)
    """

    drift_flow: Callable | None = None
    noise_flow: Callable | None = None
    ode: dfx.AbstractSolver = eqx.field(default_factory=dfx.Tsit5)

    term_structure = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    interpolation_cls = dfx.LocalLinearInterpolation
    minimal_levy_area = dfx.AbstractSpaceTimeLevyArea

    @classmethod
    def of(cls, cir: CIR) -> "HOStS":
        """With the exact flows of this process."""
        return cls(cir.drift_flow, cir.noise_flow)

    def order(self, terms: PyTree) -> int:
        return 2

    def strong_order(self, terms: PyTree) -> float:
        return 1.5

    def init(self, terms, t0, t1, y0, args) -> None:
        """Nothing is kept between steps."""

    def func(self, terms, t0, y0, args) -> PyTree:
        """The vector fields at one time."""
        return terms.vf(t0, y0, args)

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`; a flow that is given counts as one."""
        once = self._evaluations_of_a_flow(terms.terms[0])
        drift = 3 * (1 if self.drift_flow else once)
        noise = 2 * (1 if self.noise_flow else once)
        return add(Evaluations(drift=drift), Evaluations(diffusion=noise, noise=1))

    def _evaluations_of_a_flow(self, drift: dfx.AbstractTerm) -> Any:
        state = (True, None)  # if it has any: a first step
        return evaluations_of_step(self.ode, drift, state, False).drift

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        drift, noise = terms.terms
        h = t1 - t0
        increment = noise.contr(t0, t1, use_levy=True)
        if not isinstance(increment, dfx.AbstractSpaceTimeLevyArea):
            raise TypeError(
                "HOStS needs the space-time area of its noise; the control of the last "
                f"term gives a {type(increment).__name__}. Write "
                "`VirtualBrownianTree(..., levy_area=diffrax.SpaceTimeLevyArea)`."
            )
        early = t0 + _OUTER * h
        late = early + _INNER * h
        first, second = _halves(increment)
        y = self._along_drift(drift, t0, early, y0, args)
        y = self._along_noise(noise, early, first, y, args)
        y = self._along_drift(drift, early, late, y, args)
        y = self._along_noise(noise, late, second, y, args)
        y1 = self._along_drift(drift, late, t1, y, args)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def _along_drift(self, drift, t0, t1, y, args) -> PyTree:
        if self.drift_flow is not None:
            return self.drift_flow(t0, t1, y, args)
        return self._solved(drift, t0, t1, y, args)

    def _along_noise(self, noise, t, w, y, args) -> PyTree:
        if self.noise_flow is not None:
            return self.noise_flow(t, w, y, args)
        field = lambda _, y, args: noise.vf_prod(t, y, args, w)
        zero = 0 * t
        return self._solved(dfx.ODETerm(field), zero, zero + 1, y, args)

    def _solved(self, term, t0, t1, y, args) -> PyTree:
        state = self.ode.init(term, t0, t1, y, args)
        return self.ode.step(term, t0, t1, y, args, state, made_jump=False)[0]


HOStS.__module__ = "pathax.solvers"


def _halves(increment: Any) -> tuple[PyTree[Array], PyTree[Array]]:
    """What the noise does before the middle, and after."""
    halves = lambda sign: jax.tree.map(
        lambda w, h: 0.5 * w + sign * _ROOT * h, increment.W, increment.H
    )
    return halves(1), halves(-1)
