"""Rößler's SRIW1 for Itô equations, with an embedded estimate of its error."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from ._evaluations import Evaluations


class SRIW1(dfx.AbstractAdaptiveSolver, dfx.AbstractItoSolver):
    r"""SRIW1, of strong order 3/2 for Itô equations with diagonal or scalar noise.

    For $dy = f(t, y) \, dt + g(t, y) \, dW$ in the sense of Itô, with
    $I_1 = W$, $I_{11} = (W^2 - h) / 2$, $I_{111} = (W^3 - 3 h W) / 6$ and
    $I_{10} = h (W / 2 + H)$ of each component, the stages are

    $$\begin{aligned}
    x &= y + \tfrac34 h f(y) + \tfrac32 g(y) I_{10} / h, \\
    z_2 &= y + \tfrac14 h f(y) + \tfrac12 \sqrt h \, g(y), \qquad
    z_3 = y + h f(y) - \sqrt h \, g(y), \\
    z_4 &= y + \tfrac14 h f(y) + \sqrt h \, (-5 g(y) + 3 g(z_2) + \tfrac12 g(z_3)),
    \end{aligned}$$

    and with $z_1 = y$ the step is

    $$y_1 = y + h \bigl(\tfrac13 f(y) + \tfrac23 f(x)\bigr) + \sum_i g(z_i) \bigl(
    \beta^1_i I_1 + \beta^2_i I_{11} / \sqrt h + \beta^3_i I_{10} / h +
    \beta^4_i I_{111} / h \bigr).$$

    The estimate of the error is what distinguishes it from a scheme of order one: the
    terms of $\beta^3$ and $\beta^4$, and $\tfrac23 h (f(x) - f(y))$ of the drift.

    **Arguments:** none.

    The terms are `MultiTerm(ODETerm, ControlTerm)`, the control a path with a
    space-time area. The noise is scalar, a control with one component, or diagonal, a
    vector field that returns a `lineax.DiagonalLinearOperator`.

    **Raises:** `ValueError` for a path without a space-time area, or noise that is
    neither scalar nor diagonal.

    **Cost:** two evaluations of the drift, four of the diffusion, and one query a step.

    **Gradients:** of any order, in parameters and initial state.

    **Precision:** that of the state.

    **Reference:** A. Rößler, Runge-Kutta methods for the strong approximation of
    solutions of stochastic differential equations, SIAM J. Numer. Anal. 48 (2010),
    table 6.2. The idea of the estimate: C. Rackauckas and Q. Nie, Adaptive methods for
    stochastic differential equations via natural embeddings and rejection sampling with
    memory, Discrete Contin. Dyn. Syst. B 22 (2017).

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-12, (), jax.random.key(0), dfx.SpaceTimeLevyArea
    ... )
    >>> terms = dfx.MultiTerm(
    ...     dfx.ODETerm(lambda t, y, args: 0.1 * y),
    ...     dfx.ControlTerm(lambda t, y, args: 0.5 * y, path),
    ... )
    >>> solution = dfx.diffeqsolve(
    ...     terms, px.solvers.SRIW1(), 0.0, 1.0, 0.1, jnp.array(1.0),
    ...     stepsize_controller=dfx.PIDController(rtol=0, atol=1e-3, dtmin=2**-11),
    ... )
    >>> exact = jnp.exp((0.1 - 0.5**2 / 2) + 0.5 * path.evaluate(0.0, 1.0))
    >>> bool(abs(solution.ys[0] - exact) < 5e-3)
    True
    """

    term_structure = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    minimal_levy_area = dfx.AbstractSpaceTimeLevyArea
    interpolation_cls = dfx.LocalLinearInterpolation

    def order(self, terms: PyTree) -> int:
        return 2

    def strong_order(self, terms: PyTree) -> float:
        return 1.5

    def error_order(self, terms: PyTree) -> float:
        """The estimate is the local error of a scheme of order one."""
        return 1.5

    def init(self, terms, t0, t1, y0, args) -> None:
        """Nothing is kept between steps."""

    def func(self, terms, t0, y0, args) -> PyTree:
        """The vector fields at one time."""
        return terms.vf(t0, y0, args)

    def evaluations(self, terms, solver_state, made_jump) -> Evaluations:
        """Those of one step, for `counting`."""
        return Evaluations(drift=2, diffusion=4, noise=1)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        """One step of the solver."""
        drift, noise = terms.terms
        h = drift.contr(t0, t1)
        integrals = _integrals(noise.contr(t0, t1, use_levy=True))
        at = lambda part: t0 + part * (t1 - t0)
        root = jax.tree.map(
            lambda w: jnp.sqrt(jnp.abs(t1 - t0)) * jnp.ones_like(w), integrals[0]
        )

        def f(t: Any, y: PyTree) -> PyTree:
            return drift.vf_prod(t, y, args, h)

        def g(t: Any, y: PyTree) -> Any:
            field = noise.vf(t, y, args)
            _check(field, root)
            return lambda control: noise.prod(field, control)

        f1, g1 = f(t0, y0), g(t0, y0)
        kick = g1(root)
        g2 = g(at(0.25), _sum(y0, (0.25, f1), (0.5, kick)))
        z3 = _sum(y0, (1.0, f1), (-1.0, kick))
        g3 = g(t1, z3)
        pushes = (-5.0, kick), (3.0, g2(root)), (0.5, g3(root))
        g4 = g(at(0.25), _sum(y0, (0.25, f1), *pushes))
        f2 = f(at(0.75), _sum(y0, (0.75, f1), (1.5, g1(integrals[2]))))
        fields = g1, g2, g3, g4
        low = _noise(fields, integrals, _FIRST)
        high = _noise(fields, integrals, _SECOND)
        bend = _sum(jax.tree.map(jnp.zeros_like, y0), (2 / 3, f2), (-2 / 3, f1))
        y1 = _sum(y0, (1.0, f1), (1.0, bend), (1.0, low), (1.0, high))
        error = jax.tree.map(lambda a, b: jnp.abs(a) + jnp.abs(b), bend, high)
        return y1, error, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


SRIW1.__module__ = "pathax.solvers"

# Weights of the four stages, for each of the four integrals; those of order one first.
_FIRST = ((-1, 4 / 3, 2 / 3, 0), (-1, 4 / 3, -1 / 3, 0), (), ())
_SECOND = ((), (), (2, -4 / 3, -2 / 3, 0), (-2, 5 / 3, -2 / 3, 1))


def _integrals(levy: Any) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """`I_1`, and `I_11 / sqrt(h)`, `I_10 / h`, `I_111 / h`, all of the size of `W`."""
    if not isinstance(levy, dfx.AbstractSpaceTimeLevyArea):
        raise ValueError(
            "SRIW1 needs a path with a space-time area; its increments are "
            f"{type(levy).__name__}. Write `VirtualBrownianTree(..., "
            "levy_area=diffrax.SpaceTimeLevyArea)`."
        )
    over = lambda of: jax.tree.map(of, levy.W, levy.H)
    h = jnp.abs(levy.dt)
    small = jnp.finfo(jnp.result_type(h)).tiny  # an empty step has no noise
    safe = jnp.maximum(h, small)
    cast = lambda x, w: jnp.asarray(x).astype(w.dtype)
    second = over(lambda w, _: (w**2 - cast(h, w)) / (2 * cast(jnp.sqrt(safe), w)))
    third = over(lambda w, _: w * (w**2 / cast(safe, w) - 3 * cast(h / safe, w)) / 6)
    return levy.W, second, over(lambda w, area: w / 2 + area), third


def _noise(fields: Any, integrals: Any, weights: Any) -> PyTree:
    """The sum of the stages, each with its combination of the integrals."""
    parts = []
    for i, field in enumerate(fields):
        used = [(row[i], x) for row, x in zip(weights, integrals, strict=True) if row]
        if any(weight for weight, _ in used):
            control = jax.tree.map(
                lambda *xs, used=used: sum(
                    weight * x for (weight, _), x in zip(used, xs, strict=True)
                ),
                *(x for _, x in used),
            )
            parts.append(field(control))
    return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *parts)


def _sum(y: PyTree, *parts: tuple[float, PyTree]) -> PyTree:
    for weight, x in parts:
        y = jax.tree.map(lambda a, b, weight=weight: a + weight * b, y, x)
    return y


def _check(field: PyTree, control: PyTree) -> None:
    """Scalar or diagonal."""
    components = sum(x.size for x in jax.tree.leaves(control))
    if components == 1 or isinstance(field, lx.DiagonalLinearOperator):
        return
    raise ValueError(
        "SRIW1 must have scalar noise, a path of shape (), or diagonal noise, a vector "
        f"field that returns `lineax.DiagonalLinearOperator(...)`; got {components} "
        f"components and {type(field).__name__}. Try `diffrax.SPaRK()` or "
        "`pathax.solvers.LogODE()` on the Stratonovich form of the equation."
    )
