"""Fields that are functions of time: a start and a short trigonometric sum."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Trajectory(eqx.Module):
    r"""A field at any time of a window, and its derivative.

    $$w(t) = w_0 + \sum_{k=1}^{m} a_k \left(\cos \frac{\pi k t}{T} - 1\right)
      + b_k \sin \frac{\pi k t}{T}, \qquad 0 \le t \le T,$$

    with fields $a_k$, $b_k$: trigonometric in time with period $2 T$, of which the
    window is one half, so that nothing forces $w(T)$ to be $w(0)$. $w(0) = w_0$ holds
    exactly.

    **Arguments:**

    - `initial`: $w_0$, of shape `(*grid)`.
    - `coefficients`: $a_1, \dots, a_m, b_1, \dots, b_m$, of shape `(2 m, *grid)`.
    - `horizon`: $T$, in any unit of time.

    `trajectory(t)` and `trajectory.derivative(t)` take a time or an array of times, and
    return the field with the axes of `t` in front. Times outside of the window are
    answered by the same sum, but no operator was trained for them.

    **Raises:** nothing of its own.

    **Cost:** of $n$ times, $2 m n$ multiplications a point; no FFT, and no new
    compilation of what made the coefficients.

    **Gradients:** of fields and of times, in both modes.

    **Precision:** $\cos - 1$ is taken as $-2 \sin^2$, so that nothing cancels at small
    times.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner, ICLR 2025, whose last layer
    samples such a sum; here it is evaluated, so that frames don't matter.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.operators.Trajectory(jnp.ones(2), jnp.full((2, 2), 0.5), 1.0)
    >>> path(0.0)
    Array([1., 1.], dtype=float32)
    >>> path.derivative(jnp.array([0.0, 1.0]))[:, 0].round(3)
    Array([ 1.571, -1.571], dtype=float32)

    ```
    """

    initial: Float[Array, "*grid"]
    coefficients: Float[Array, "functions *grid"]
    horizon: float = eqx.field(static=True)

    def __call__(self, t: Float[Array, "*times"] | float) -> Array:
        """The field at a time, or at many."""
        steps = self._sum(t, self._functions)
        return self.initial.reshape((1,) * jnp.ndim(t) + self.initial.shape) + steps

    def derivative(self, t: Float[Array, "*times"] | float) -> Array:
        """The time derivative, exact, at a time or at many."""
        return self._sum(t, self._slopes)

    def _sum(self, t, functions) -> Array:
        count = self.coefficients.shape[0]
        t = jnp.asarray(t, self.coefficients.dtype)
        rates = jnp.arange(1, count // 2 + 1, dtype=t.dtype) * (math.pi / self.horizon)
        matrix = functions(t.reshape(-1, 1) * rates[None], rates[None])
        flat = matrix @ self.coefficients.reshape(count, -1)
        return flat.reshape(*t.shape, *self.coefficients.shape[1:])

    @staticmethod
    def _functions(angles: Array, rates: Array) -> Array:
        del rates
        values = [-2 * jnp.sin(angles / 2) ** 2, jnp.sin(angles)]
        return jnp.concatenate(values, axis=1)

    @staticmethod
    def _slopes(angles: Array, rates: Array) -> Array:
        slopes = [-rates * jnp.sin(angles), rates * jnp.cos(angles)]
        return jnp.concatenate(slopes, axis=1)
