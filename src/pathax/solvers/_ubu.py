"""UBU: half a step of the noise, the whole force, half a step of the noise."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evaluations import Evaluations
from ._langevin import AbstractLangevinSolver, Leaf, chi, chi_half, gradient, phi, psi


class UBU(AbstractLangevinSolver):
    r"""UBU, a solver of order two for underdamped Langevin diffusion.

    $$dx = v \, dt, \qquad dv = -\gamma v \, dt - u \nabla f(x) \, dt +
    \sqrt{2 \gamma u} \, dW$$

    is solved without its force up to the middle of the step, where the force of the
    whole step is applied at once, and from there to the end. With $\alpha = \gamma h$,
    $\rho = \sqrt{2 \gamma u}$,

    $$\begin{aligned}
    z &= x_0 + \tfrac{1 - e^{-\alpha / 2}}{\gamma} v_0 + \rho (b_{1/2} W + c_{1/2} H),
    \qquad g = h u \nabla f(z), \\
    x_1 &= x_0 + \tfrac{1 - e^{-\alpha}}{\gamma} v_0 -
    \tfrac{1 - e^{-\alpha / 2}}{\gamma} g + \rho (b_1 W + c_1 H), \\
    v_1 &= e^{-\alpha} v_0 - e^{-\alpha / 2} g +
    \rho \bigl(\tfrac{1 - e^{-\alpha}}{\alpha} W - \gamma c_1 H\bigr),
    \end{aligned}$$

    where `b` and `c` are the best coefficients of what the noise does to the position,
    given `W` and `H`.

    **Arguments:** none.

    The terms are `MultiTerm(UnderdampedLangevinDriftTerm,
    UnderdampedLangevinDiffusionTerm)`, the path's increments at least
    `diffrax.SpaceTimeLevyArea`. There is no estimate of the error.

    **Raises:** `ValueError` for a path without a space-time area.

    **Cost:** one gradient and one query a step.

    **Gradients:** of any order.

    **Precision:** that of the state; coefficients of short steps are summed by series.

    **Reference:** Sanz-Serna, Zygalakis, "Wasserstein distance estimates for the
    distributions of numerical approximations to ergodic stochastic differential
    equations", JMLR 22 (2021); Chada, Leimkuhler, Paulin, Whalley, arXiv:2311.05025.

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
    >>> x, v = dfx.diffeqsolve(terms, px.solvers.UBU(), 0.0, 1.0, 1 / 16, start).ys
    >>> x.shape
    (1, 2)
    """

    minimal_levy_area = dfx.AbstractSpaceTimeLevyArea

    def order(self, terms: PyTree) -> int:
        return 2

    def strong_order(self, terms: PyTree) -> float:
        return 2.0

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`."""
        return Evaluations(drift=1, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        parts, tree = self._begin(terms, t0, t1, y0)
        middle = tree.unflatten([_middle(p) for p in parts])
        gradients = tree.flatten_up_to(gradient(terms)(middle, args))
        xs, vs = [], []
        for p, g in zip(parts, gradients, strict=True):
            alpha, force = p.friction, p.force * g
            area = chi(alpha) * p.h
            x = p.x + p.dt * (phi(alpha) * p.v - phi(alpha / 2) / 2 * force)
            xs.append(x + p.noise * p.dt * (psi(alpha) * p.w + area))
            v = jnp.exp(-alpha) * p.v - jnp.exp(-alpha / 2) * force
            vs.append(v + p.noise * (phi(alpha) * p.w - alpha * area))
        y1 = tree.unflatten(xs), tree.unflatten(vs)
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


UBU.__module__ = "pathax.solvers"


def _middle(p: Leaf) -> Array:
    """The position in the middle of the step, without the force."""
    half = p.friction / 2
    noise = psi(half) / 4 * p.w + chi_half(p.friction) * p.h
    return p.x + p.dt * (phi(half) / 2 * p.v + p.noise * noise)
