"""Penalties whose values count steps."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ._penalty import AbstractStepPenalty, check_reduction
from ._step import Step, real_dtype


# Below this scaled error a step counts no less; far below what any controller leaves.
_FLOOR = 1e-6


class StepCost(AbstractStepPenalty):
    r"""The number of steps, as a function that can be differentiated.

    A controller would have taken the step size $h_j\, q_j^{-1/p}$, where $q_j$ is the
    scaled error of step $j$ and $p$ the order of the error. So

    $$ R_N = \sum_j q_j^{1/p} \approx \int \frac{\mathrm dt}{h_{\mathrm{opt}}(t)} $$

    is about the number of steps (0.9 of it, where the controller's safety factor is
    0.9), and its weight in a loss reads as loss per step. Its derivative gives each
    step's relative error the same weight.

    **Arguments:**

    - `reduction`: `"sum"`, `"mean"`, `"max"` or `"time_mean"`.

    **Raises:** `ValueError` for another reduction, and in the solve if the order of
    the error isn't known.

    **Cost:** one pass over the state a step.

    **Gradients:** exact for the steps as they were taken, with their sizes held
    constant; zero where the scaled error is below 1e-6.

    **Precision:** that of the state.

    **Reference:** none; proposed here.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: jnp.sin(20 * t) * y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(2),
    ...     stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    ...     penalties={"steps": px.regularizers.StepCost()},
    ... )
    >>> bool(0.7 < record.penalties["steps"] / record.accepted_steps < 1)
    True

    ```
    """

    reduction: str = eqx.field(static=True)

    def __init__(self, *, reduction: str = "sum"):
        check_reduction(reduction)
        self.reduction = reduction

    def of_step(self, step: Step) -> Array:
        q = step.scaled_error
        assert q is not None
        if step.error_order is None:
            raise ValueError(
                "`StepCost` needs the order of the solver's error: write "
                "`diffrax.PIDController(..., error_order=...)`."
            )
        power = jnp.asarray(1 / step.error_order, q.dtype)
        return jnp.maximum(q, _FLOOR) ** power


class StepCount(AbstractStepPenalty):
    """The number of accepted steps, which has no derivative; to be reported.

    **Arguments:** none.

    **Raises:** nothing.

    **Cost:** none.

    **Gradients:** zero.

    **Precision:** exact.

    **Reference:** none.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: -y),
    ...     dfx.Heun(),
    ...     0.0,
    ...     1.0,
    ...     0.25,
    ...     jnp.ones(2),
    ...     penalties={"steps": px.regularizers.StepCount()},
    ... )
    >>> float(record.penalties["steps"])
    4.0

    ```
    """

    reduction: ClassVar[str] = "sum"
    needs_error: ClassVar[bool] = False
    has_gradient: ClassVar[bool] = False

    def of_step(self, step: Step) -> Array:
        return jnp.ones((), real_dtype(step.y0))
