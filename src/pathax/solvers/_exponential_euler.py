"""Exponential Euler for underdamped Langevin diffusion."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import PyTree

from ._evaluations import Evaluations
from ._langevin import AbstractLangevinSolver, chi, gradient, phi, psi


class ExponentialEuler(AbstractLangevinSolver):
    r"""Exponential Euler for underdamped Langevin diffusion, the force frozen.

    The equation of [`pathax.solvers.UBU`][] is solved with the gradient at the start of
    the step. With $\alpha = \gamma h$ and $g = u \nabla f(x_0)$,

    $$\begin{aligned}
    x_1 &= x_0 + \tfrac{1 - e^{-\alpha}}{\gamma} v_0 -
    \tfrac{e^{-\alpha} + \alpha - 1}{\gamma^2} g + \rho (b_1 W + c_1 H), \\
    v_1 &= e^{-\alpha} v_0 - \tfrac{1 - e^{-\alpha}}{\gamma} g +
    \rho \bigl(\tfrac{1 - e^{-\alpha}}{\alpha} W - \gamma c_1 H\bigr).
    \end{aligned}$$

    **Arguments:** none.

    The terms and the path are as for [`pathax.solvers.UBU`][]. It is there to compare
    with; for the same gradient a step, `UBU` has order two.

    **Raises:** `ValueError` for a path without a space-time area.

    **Cost:** one gradient and one query a step.

    **Gradients:** of any order.

    **Precision:** that of the state; coefficients of short steps are summed by series.

    **Reference:** Cheng, Chatterji, Bartlett, Jordan, "Underdamped Langevin MCMC: a
    non-asymptotic analysis", COLT 2018, algorithm 1, on a given path.

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-8, (2,), jax.random.key(0), dfx.SpaceTimeLevyArea
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.UnderdampedLangevinDriftTerm(1.0, 1.0, lambda x, args: x),
    ...     dfx.UnderdampedLangevinDiffusionTerm(1.0, 1.0, path),
    ... )
    >>> start = jnp.ones(2), jnp.zeros(2)
    >>> solver = px.solvers.ExponentialEuler()
    >>> dfx.diffeqsolve(terms, solver, 0.0, 1.0, 1 / 16, start).ys[0].shape
    (1, 2)
    """

    minimal_levy_area = dfx.AbstractSpaceTimeLevyArea

    def order(self, terms: PyTree) -> int:
        return 1

    def strong_order(self, terms: PyTree) -> float:
        return 1.0

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`."""
        return Evaluations(drift=1, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        parts, tree = self._begin(terms, t0, t1, y0)
        gradients = tree.flatten_up_to(gradient(terms)(y0[0], args))
        xs, vs = [], []
        for p, g in zip(parts, gradients, strict=True):
            alpha, h = p.friction, p.dt
            force, area = p.force * g, chi(alpha) * p.h
            x = p.x + h * (phi(alpha) * p.v - psi(alpha) * force)
            xs.append(x + p.noise * h * (psi(alpha) * p.w + area))
            v = jnp.exp(-alpha) * p.v - phi(alpha) * force
            vs.append(v + p.noise * (phi(alpha) * p.w - alpha * area))
        y1 = tree.unflatten(xs), tree.unflatten(vs)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


ExponentialEuler.__module__ = "pathax.solvers"
