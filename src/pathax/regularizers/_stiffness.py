"""An estimate of the largest eigenvalue, from two evaluations at one time."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..solvers._augmented import is_single
from ..solvers._wrapped import innermost
from ._penalty import AbstractStepPenalty, check_reduction
from ._step import Step, real_dtype, safe_norm


# How far the stability region reaches along the negative axis.
STABILITY = {"Tsit5": 3.5068, "Dopri5": 3.3066, "Dopri8": 5.8641}


class Stiffness(AbstractStepPenalty):
    r"""How stiff the equation is, as the solver sees it.

    From two evaluations $f_a$, $f_b$ of the field at the same time, at states $g_a$ and
    $g_b$, Shampine's estimate of the largest eigenvalue of its Jacobian is

    $$ S_j = \frac{\lVert f_a - f_b \rVert}{\lVert g_a - g_b \rVert}, \qquad
       R_S = \sum_j S_j\, h_j . $$

    With `form="stages"` they are two stages of an explicit Runge-Kutta method that have
    the same abscissa (the last two of Tsit5, Dopri5 and Dopri8), which costs nothing.
    With `form="field"` they are taken at $y_{j+1}$ and at
    $y_{j+1} + h_j f(y_{j+1})$, which costs two more evaluations of the drift a step
    and is there for every solver. `"auto"` takes the stages where there are such.

    **Arguments:**

    - `form`: `"auto"`, `"stages"` or `"field"`.
    - `weighted`: whether to multiply by $h_j$.
    - `scale`: what $S_j$ is divided by; `"stability"` stands for the extent of the
      solver's region of stability.
    - `reduction`: `"sum"`, `"mean"`, `"max"` or `"time_mean"`. The formula in the paper
      is the default; its code takes `weighted=False, scale="stability"` and the maximum
      (or the mean, for stochastic equations).

    **Raises:** `ValueError` for other values; in the solve, if the solver has no such
    stages, or the equation has more terms than one.

    **Cost:** one pass over the state a step, and with `"field"` two evaluations, which
    the record doesn't count.

    **Gradients:** exact for the steps as they were taken. The maximum has a derivative
    at one step alone.

    **Precision:** the differences are taken of increments, not of states. Where they
    are of the size of rounding errors, the estimate is zero.

    **Reference:** A. Pal et al., ICML 2021; L. F. Shampine, "Stiffness and nonstiff
    differential equation solvers, II", ACM Trans. Math. Software 3 (1977).

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: jnp.array([-50.0, -1.0]) * y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     0.1,
    ...     0.02,
    ...     jnp.ones(2),
    ...     penalties={"eigenvalue": px.regularizers.Stiffness(reduction="time_mean")},
    ... )
    >>> print(f"{record.penalties['eigenvalue']:.1f}")
    50.0

    ```
    """

    form: str = eqx.field(static=True)
    weighted: bool = eqx.field(static=True)
    scale: Any = eqx.field(static=True)
    reduction: str = eqx.field(static=True)
    needs_error: ClassVar[bool] = False

    def __init__(
        self,
        *,
        form: str = "auto",
        weighted: bool = True,
        scale: float | str = 1.0,
        reduction: str = "sum",
    ):
        if form not in ("auto", "stages", "field"):
            raise ValueError(
                f'`form` must be "auto", "stages" or "field"; got {form!r}.'
            )
        if isinstance(scale, str) and scale != "stability":
            raise ValueError(f'`scale` must be a number or "stability"; got {scale!r}.')
        check_reduction(reduction)
        self.form, self.weighted = form, weighted
        self.scale, self.reduction = scale, reduction

    def of_step(self, step: Step) -> Array:
        solver = innermost(step.solver)
        pair = equal_pair(solver) if is_single(step.terms) else None
        if self.form == "stages" and pair is None:
            raise ValueError(
                f"{type(solver).__name__} has no two stages at one time of a single "
                'term. Write `Stiffness(form="field")`, or solve with Tsit5, Dopri5 '
                "or Dopri8."
            )
        if pair is None or self.form == "field":
            field, state, noise = _from_field(step)
        else:
            field, state, noise = _from_stages(solver, pair, step)
        # Both are increments over the step, so their ratio is the eigenvalue times h.
        stiffness = _ratio(field, state, noise)
        size = step.size.astype(stiffness.dtype)
        value = stiffness if self.weighted else stiffness / size
        return value / jnp.asarray(_scale(self.scale, solver), value.dtype)


def equal_pair(solver: Any) -> tuple[int, int] | None:
    """The last two stages of an explicit method with equal abscissae, if any."""
    if not isinstance(solver, dfx.AbstractERK):
        return None
    tableau: Any = solver.tableau
    c = np.concatenate([[0.0], np.asarray(tableau.c)])
    same = [(a, a - 1) for a in range(len(c) - 1, 0, -1) if c[a] == c[a - 1]]
    return same[0] if same else None


def _from_stages(solver: Any, pair: tuple[int, int], step: Step) -> tuple:
    k, (a, b) = step.dense_info["k"], pair
    rows = np.zeros((2, solver.tableau.num_stages))
    for row, stage in zip(rows, pair, strict=True):
        if stage > 0:
            lower = solver.tableau.a_lower[stage - 1]
            row[: len(lower)] = lower
    weights = rows[0] - rows[1]
    field = jax.tree.map(lambda x: x[a] - x[b], k)

    def combined(x: Array) -> Array:
        # No matrix product: the compiler would merge it with the solver's own, which
        # rounds those otherwise.
        column = jnp.asarray(weights, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.sum(column * x, axis=0)

    state = jax.tree.map(combined, k)
    return field, state, jax.tree.map(lambda x: x[b], k)


def _from_field(step: Step) -> tuple:
    drift = first_term(step.terms)
    if drift is None:
        raise ValueError(
            "`Stiffness` needs a drift, the first `diffrax.ODETerm` of the terms; got "
            f"{step.terms}."
        )
    control = drift.contr(step.t0, step.t1)
    finite = lambda x, y: jnp.where(jnp.isfinite(x), x, y)
    y1 = jax.tree.map(finite, step.y1, step.y0)  # a step that will be rejected
    first = drift.vf_prod(step.t1, y1, step.args, control)
    further = jax.tree.map(jnp.add, y1, first)
    second = drift.vf_prod(step.t1, further, step.args, control)
    return jax.tree.map(jnp.subtract, second, first), first, y1


def first_term(terms: PyTree) -> Any:
    """The first term whose control is time: the drift."""
    is_term = lambda x: isinstance(x, dfx.AbstractTerm)
    for term in jax.tree.leaves(terms, is_leaf=is_term):
        if isinstance(term, dfx.MultiTerm):
            found = first_term(list(term.terms))
            if found is not None:
                return found
        elif is_drift(term):
            return term
    return None


def is_drift(term: Any) -> bool:
    """Whether a term, or the one inside it, is that of an ordinary equation."""
    inner = getattr(term, "term", None)
    return isinstance(term, dfx.ODETerm) or (inner is not None and is_drift(inner))


def _ratio(top: PyTree, bottom: PyTree, noise: PyTree) -> Array:
    dtype = real_dtype(bottom)
    zero = lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))
    top, bottom = jax.tree.map(zero, (top, bottom))
    high, low = safe_norm(top), safe_norm(bottom)
    level = jax.lax.stop_gradient(safe_norm(noise)) * jnp.asarray(
        10 * jnp.finfo(dtype).eps, dtype
    )
    fine = low > level
    ratio = jnp.where(fine, high, 0) / jnp.where(fine, low, 1)
    return jnp.where(fine, ratio, jnp.zeros_like(ratio))


def _scale(scale: float | str, solver: Any) -> float:
    if not isinstance(scale, str):
        return scale
    name = type(solver).__name__
    if name not in STABILITY:
        raise ValueError(
            f'`scale="stability"` is known for {", ".join(STABILITY)}; got {name}. '
            "Give a number."
        )
    return STABILITY[name]
