"""Steps for the Cox-Ingersoll-Ross process, shorter the closer it is to zero."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array


class CIRController(dfx.AbstractStepSizeController):
    r"""Chooses steps by where the process is: short where the root is not smooth.

    $$h(x) = \min \bigl( \max ( (c \, x^+)^{2/3}, h_{\min} ), \; h_{\max} \bigr)$$

    A step that was tried is accepted if it is shorter than `1.1 h(x)` with the smaller
    one of its ends; then the next one is `h` of the new state. If it is rejected, it is
    tried again with that `h`. No estimate of the error is needed.

    The end of a rejected step may be passed over afterwards, which is safe for noise
    that commutes, as of this process.

    **Arguments:**

    - `tolerance`: `c`. Halve it to halve the error, or better.
    - `dtmin`, `dtmax`: the shortest and the longest step.

    Independent copies in one state, of a shape `(n,)`, take the step of the one that
    is smallest; under `jax.vmap` each takes its own.

    **Raises:** `ValueError` for a tolerance that is not positive or `dtmin > dtmax`.

    **Cost:** a power a step.

    **Gradients:** none with respect to times.

    **Precision:** that of the state.

    **Reference:** the rule that Jelinčič, Foster, Kidger, "Single-seed generation of
    Brownian paths and integrals for adaptive and high order SDE solvers",
    arXiv:2405.06464, section 6.1, uses for this process.

    **Example:**

    >>> import pathax as px
    >>> controller = px.solvers.CIRController(2**-4, dtmin=2**-12)
    >>> [round(float(controller.desired(x)), 4) for x in (0.0, 1.0)]
    [0.0002, 0.1575]
    """

    tolerance: Any
    dtmin: float = 2**-15
    dtmax: float = 1.0

    def __check_init__(self):
        number = isinstance(self.tolerance, float | int)
        if number and not self.tolerance > 0:
            raise ValueError(f"`tolerance` must be positive; got {self.tolerance}.")
        if not 0 < self.dtmin <= self.dtmax:
            raise ValueError(
                "`dtmin` must be positive and at most `dtmax`; got "
                f"{self.dtmin} and {self.dtmax}."
            )

    def desired(self, x: Any) -> Array:
        """The step from a state, or from the smallest of several."""
        x = jnp.min(jnp.maximum(jnp.asarray(x, float), 0))
        return jnp.clip((self.tolerance * x) ** (2 / 3), self.dtmin, self.dtmax)

    def wrap(self, direction: Any) -> "CIRController":
        """As for every controller; the rule is the same in both directions."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order) -> Any:
        """The first step, of a given length or by the rule."""
        dt = self.desired(y0) if dt0 is None else dt0
        return t0 + jnp.asarray(dt).astype(jnp.result_type(t0)), None

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ) -> Any:
        """Accept what is not much longer than what either end asks for."""
        of_both = jnp.minimum(self.desired(y0), self.desired(y1_candidate))
        keep = t1 - t0 < 1.1 * of_both
        step = jnp.where(keep, self.desired(y1_candidate), of_both)
        begin = jnp.where(keep, t1, t0)
        end = begin + step.astype(begin.dtype)
        return keep, begin, end, jnp.array(False), None, dfx.RESULTS.successful


CIRController.__module__ = "pathax.solvers"
