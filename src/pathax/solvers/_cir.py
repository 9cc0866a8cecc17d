"""The Cox-Ingersoll-Ross process: its equation, flows and closed forms."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array


class CIR(eqx.Module):
    r"""The Cox-Ingersoll-Ross process, its flows and what is known in closed form.

    $$dX = a (b - X) \, dt + \sigma \sqrt{X} \, dW = a (\tilde b - X) \, dt +
    \sigma \sqrt{X} \circ dW, \qquad \tilde b = b - \frac{\sigma^2}{4a}.$$

    It stays positive, but comes close to zero, where the square root is not smooth, and
    reaches it if `2 a b < sigma^2`: there methods with constant steps lose their order.

    **Arguments:**

    - `a`, `b`, `sigma`: speed of reversion, level, volatility. Numbers or arrays, of
      one shape with the state.

    **Raises:** `ValueError` from `terms` for a form that is neither, or a path whose
    shape is neither `()` nor `(n,)`.

    **Cost:** a square root for each flow of the noise.

    **Gradients:** in state and parameters; at zero, the square root's is set to zero.

    **Precision:** that of the state.

    **Reference:** Cox, Ingersoll, Ross, "A theory of the term structure of interest
    rates", Econometrica 53 (1985), equations (17), (19) and (23).

    **Example:**

    >>> import diffrax as dfx, jax, jax.numpy as jnp
    >>> import pathax as px
    >>> cir = px.solvers.CIR(a=1.0, b=1.0, sigma=1.5)
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 4.0, 2**-16, (), jax.random.key(0), dfx.SpaceTimeLevyArea
    ... )
    >>> solution = dfx.diffeqsolve(
    ...     cir.terms(path), px.solvers.HOStS.of(cir), 0.0, 4.0, None, jnp.array(1.0),
    ...     stepsize_controller=px.solvers.CIRController(2**-4),
    ... )
    >>> bool(solution.ys[0] >= 0)
    True
    """

    a: Any
    b: Any
    sigma: Any

    def drift(self, t: Any, x: Array, args: Any = None) -> Array:
        """That of Ito's form, `a (b - x)`."""
        return self.a * (self.b - x)

    def stratonovich_drift(self, t: Any, x: Array, args: Any = None) -> Array:
        """That of Stratonovich's form."""
        return self.a * (self._level() - x)

    def diffusion(self, t: Any, x: Array, args: Any = None) -> Array:
        """`sigma sqrt(x)`, zero for `x < 0`."""
        return self.sigma * _root(x)

    def terms(self, path: Any, form: str = "stratonovich") -> dfx.MultiTerm:
        """The terms of a solve, in the `form` `"stratonovich"` or `"ito"`."""
        if form not in ("stratonovich", "ito"):
            raise ValueError(f'`form` must be "stratonovich" or "ito"; got {form!r}.')
        drift = self.drift if form == "ito" else self.stratonovich_drift
        noise = dfx.ControlTerm(_elementwise(self.diffusion, path), path)
        return dfx.MultiTerm(dfx.ODETerm(drift), noise)

    def drift_flow(self, t0: Any, t1: Any, x: Array, args: Any = None) -> Array:
        """Where Stratonovich's drift alone leads from `t0` to `t1`."""
        kept = jnp.exp(-self.a * (t1 - t0))
        return kept * x + (1 - kept) * self._level()

    def noise_flow(self, t: Any, w: Array, x: Array, args: Any = None) -> Array:
        """Where the noise alone leads along the increment `w`."""
        return (_root(x) + self.sigma / 2 * w) ** 2

    def mean(self, x: Array, t: Any) -> Array:
        """Expectation after the time `t`, from `x`."""
        kept = jnp.exp(-self.a * t)
        return kept * x + (1 - kept) * self.b

    def variance(self, x: Array, t: Any) -> Array:
        """Variance after the time `t`, from `x`."""
        kept = jnp.exp(-self.a * t)
        scale = self.sigma**2 / self.a * (1 - kept)
        return scale * (kept * x + (1 - kept) * self.b / 2)

    def bond_price(self, x: Array, t: Any) -> Array:
        """Price of one unit at `t` for the rate `x` now, `E exp(-integral of X)`."""
        gamma = jnp.sqrt(self.a**2 + 2 * self.sigma**2)
        # Times e^{-gamma t}, so that long times don't overflow.
        falling = jnp.exp(-gamma * t)
        below = (gamma + self.a) * (1 - falling) + 2 * gamma * falling
        slope = 2 * (1 - falling) / below
        power = 2 * self.a * self.b / self.sigma**2
        level = (2 * gamma * jnp.exp((self.a - gamma) * t / 2) / below) ** power
        return level * jnp.exp(-slope * x)

    def _level(self) -> Any:
        return self.b - self.sigma**2 / (4 * self.a)


CIR.__module__ = "pathax.solvers"


def _root(x: Array) -> Array:
    """Square root of the positive part; its derivative at zero is zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _elementwise(diffusion: Any, path: Any) -> Any:
    """As a field that `ControlTerm` multiplies by the noise of independent copies."""
    shape = jax.tree.leaves(path.shape)[0].shape
    if shape == ():
        return diffusion
    import lineax as lx

    if len(shape) != 1:
        raise ValueError(f"`path` must have a shape of `()` or `(n,)`; got {shape}.")
    return lambda t, x, args: lx.DiagonalLinearOperator(diffusion(t, x, args))
