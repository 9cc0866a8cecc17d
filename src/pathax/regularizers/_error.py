"""The solver's estimate of its error."""

import equinox as eqx
from jaxtyping import Array

from ._penalty import AbstractStepPenalty, check_reduction
from ._step import Step


class Error(AbstractStepPenalty):
    r"""The error that the solver estimates, over all accepted steps.

    With $q_j$ the norm of the estimated error of step $j$ in units of the tolerances,
    as the controller sees it, and $h_j$ the step size,

    $$ R_E = \sum_j q_j\, h_j, \qquad R_{E2} = \sum_j q_j^2 . $$

    The value is no measure of cost: a controller holds $q_j$ near a constant, so $R_E$
    is about half the time that is integrated whatever the number of steps. It is its
    derivative at frozen step sizes that lets later solves take larger steps. Watch the
    number of evaluations instead.

    **Arguments:**

    - `power`: of $q_j$, 1 or 2.
    - `weighted`: whether to multiply by $h_j$; by default for `power=1` alone.
    - `reduction`: `"sum"`, `"mean"` (which the authors' code takes), `"max"` or
      `"time_mean"`.

    **Raises:** `ValueError` for another power or reduction.

    **Cost:** one pass over the state a step.

    **Gradients:** exact for the steps as they were taken, with their sizes held
    constant; needs an adjoint that differentiates the solver itself.

    **Precision:** that of the state. Tolerances below its resolution make $q_j$ noise.

    **Reference:** A. Pal, Y. Ma, V. Shah, C. Rackauckas, "Opening the Blackbox:
    Accelerating Neural Differential Equations by Regularizing Internal Solver
    Heuristics", ICML 2021.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(2),
    ...     stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    ...     penalties={"error": px.regularizers.Error()},
    ... )
    >>> bool(0 < record.penalties["error"] < 1)
    True

    ```
    """

    power: int = eqx.field(static=True)
    weighted: bool = eqx.field(static=True)
    reduction: str = eqx.field(static=True)

    def __init__(
        self, power: int = 1, *, weighted: bool | None = None, reduction: str = "sum"
    ):
        if power not in (1, 2):
            raise ValueError(f"`power` must be 1 or 2; got {power!r}.")
        check_reduction(reduction)
        self.power, self.reduction = power, reduction
        self.weighted = power == 1 if weighted is None else weighted

    def of_step(self, step: Step) -> Array:
        assert step.scaled_error is not None
        value = step.scaled_error**self.power
        return value * step.size.astype(value.dtype) if self.weighted else value
