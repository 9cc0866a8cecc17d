"""Steps for the Cox-Ingersoll-Ross process, shorter the closer it is to zero."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array


class CIRController(dfx.AbstractAdaptiveStepSizeController):
    r"""Chooses steps by where the process is: short where the root is not smooth.

    $$h(x) = \min \bigl( \max ( (c \, x^+)^{2/3}, h_{\min} ), \; h_{\max} \bigr)$$

    A step that was tried is accepted if it is shorter than `1.1 h(x)` with the smaller
    one of its ends; then the next one is `h` of the new state. If it is rejected, it is
    tried again with that `h`. No estimate of the error is needed.

    The end of a rejected step may be passed over afterwards, which is safe for noise
    that commutes, as of this process; inside of [`pathax.solvers.DyadicController`][]
    it is not. With `accept=None` nothing is rejected: a step then depends on nothing
    but the state at its start.

    **Arguments:**

    - `tolerance`: `c`. Halve it to halve the error, or better.
    - `dtmin`, `dtmax`: the shortest and the longest step.
    - `accept`: the factor 1.1, or another one above 1, or `None`.

    Independent copies in one state, of a shape `(n,)`, take the step of the one that
    is smallest; under `jax.vmap` each takes its own.

    **Raises:** `ValueError` for a tolerance that is not positive, `dtmin > dtmax`, or
    `accept <= 1`, by which a step would be tried over and over.

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
    dtmin: float
    dtmax: float
    accept: float | None = eqx.field(static=True)

    def __init__(
        self,
        tolerance: Any,
        dtmin: float = 2**-15,
        dtmax: float = 1.0,
        accept: float | None = 1.1,
    ):
        if isinstance(tolerance, float | int) and not tolerance > 0:
            raise ValueError(f"`tolerance` must be positive; got {tolerance}.")
        if not 0 < dtmin <= dtmax:
            raise ValueError(
                "`dtmin` must be positive and at most `dtmax`; got "
                f"{dtmin} and {dtmax}."
            )
        if accept is not None and not accept > 1:
            raise ValueError(
                f"`accept` must be above 1, or None to accept every step; got {accept}."
            )
        self.tolerance, self.dtmin, self.dtmax = tolerance, dtmin, dtmax
        self.accept = accept

    @property
    def rtol(self) -> Any:
        return self.tolerance

    @property
    def atol(self) -> Any:
        return self.tolerance

    @property
    def norm(self) -> Callable:
        return lambda x: jnp.max(jnp.abs(x))

    def desired(self, x: Any) -> Array:
        """The step from a state, or from the smallest of several."""
        x = jnp.min(jnp.maximum(jnp.asarray(x, float), 0))
        step = jnp.clip((self.tolerance * x) ** (2 / 3), self.dtmin, self.dtmax)
        return jax.lax.stop_gradient(step)  # the power has none at zero

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
        after = self.desired(y1_candidate)
        of_both = jnp.minimum(self.desired(y0), after)
        keep = jnp.array(True)
        if self.accept is not None:
            keep = t1 - t0 < self.accept * of_both
        step = jnp.where(keep, after, of_both)
        begin = jnp.where(keep, t1, t0)
        end = begin + step.astype(begin.dtype)
        return keep, begin, end, jnp.array(False), None, dfx.RESULTS.successful


CIRController.__module__ = "pathax.solvers"
