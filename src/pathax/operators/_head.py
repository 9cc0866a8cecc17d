"""The last layer of the spatiotemporal operator: a function of time."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._spectral_conv import as_complex, moved
from ._trajectory import Trajectory


class SpectralHead(eqx.Module):
    r"""Turns latent frames into a function of time, linearly.

    The last known frame $w_0$ and the latent frames $z_1, \dots, z_n$ are values at
    times $j T / (n + 1)$ on the second half of a period $2 T$ whose first half is zero.
    Of their amplitudes $\hat z_{k,\omega}$ in space and time

    $$\hat c_{k,\omega} = W_{k,\omega} \hat z_{k,\omega} + b_{k,\omega}, \qquad
      w(t) = w_0 + y(t) - y(0), \quad
      y(t) = 2 \operatorname{Re} \sum_{k,\omega} \hat c_{k,\omega}
      e^{2\pi i k \cdot x + i \pi \omega (1 + t/T)},$$

    for $|k_i| < m_i$ and $\omega = 1, \dots, m_t$; $\omega = 0$ is constant in time and
    would cancel.

    **Arguments:**

    - `modes`: $m_1, \dots, m_d, m_t$.
    - `horizon`: the window $T$.
    - `conserve_mean`: whether $\hat c_{0,\omega} = 0$, so that the mean over space is
      that of $w_0$ at all times.
    - `key`: random key of the weights.
    - `dtype`: of the parameters; JAX's default if `None`.

    Called with the latent frames, `(n, *grid)`, and $w_0$, `(*grid)`; returns a
    [`pathax.operators.Trajectory`][]. As an option, `out_shape` is another grid.

    **Attributes:**

    - `weight`, `bias`: $W$ and $b$, of shape `(m_t, 2 m_1 - 1, ..., 2 m_d - 1, 2)`.

    **Raises:** `ValueError` if there are fewer frames than $m_t$, or fewer than
    $2 m_i - 1$ points along an axis.

    **Cost:** $m_t$ complex FFTs over space there and back.

    **Gradients:** of input and parameters, in both modes. The head is affine in its
    parameters.

    **Precision:** parameters act on amplitudes; they know neither the grid nor the
    number of frames that are asked for.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner, ICLR 2025, the operator
    $Q$. Deviations: amplitudes instead of sums, a fixed period, an exact start, and
    modes that come in pairs of $\pm k$.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> head = px.operators.SpectralHead((3, 2), horizon=1.0, key=jax.random.key(0))
    >>> path = head(jnp.ones((4, 8)), jnp.zeros(8))
    >>> path(jnp.array([0.0, 0.5])).shape
    (2, 8)

    ```
    """

    weight: Float[Array, "omega *modes 2"]
    bias: Float[Array, "omega *modes 2"]
    modes: tuple[int, ...] = eqx.field(static=True)
    horizon: float = eqx.field(static=True)
    conserve_mean: bool = eqx.field(static=True)

    def __init__(
        self,
        modes: tuple[int, ...],
        *,
        horizon: float,
        conserve_mean: bool = True,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        if len(modes) < 2 or any(m < 1 for m in modes):
            raise ValueError(
                "`modes` must have one positive number for each axis of space and one "
                f"for time; got {modes}."
            )
        if not horizon > 0:
            raise ValueError(f"`horizon` must be a positive time; got {horizon}.")
        self.modes, self.horizon = tuple(modes), float(horizon)
        self.conserve_mean = conserve_mean
        dtype = jnp.result_type(float) if dtype is None else dtype
        shape = (modes[-1], *(2 * m - 1 for m in modes[:-1]), 2)
        self.weight = jax.random.uniform(key, shape, dtype, maxval=0.5)
        self.bias = jnp.zeros(shape, dtype)

    def __call__(
        self,
        latent: Float[Array, "frames *grid"],
        initial: Float[Array, "*grid"],
        out_shape: tuple[int, ...] | None = None,
    ) -> Trajectory:
        """The trajectory that starts at `initial`."""
        shape = initial.shape if out_shape is None else tuple(out_shape)
        self._check(latent.shape[0], initial.shape)
        self._check(latent.shape[0], shape)
        amplitudes = as_complex(self.weight) * self._amplitudes(latent, initial)
        amplitudes = amplitudes + as_complex(self.bias)
        if self.conserve_mean:
            amplitudes = amplitudes.at[(slice(None),) + (0,) * len(shape)].set(0)
        fields = _to_grid(amplitudes, self.modes[:-1], shape)
        omega = np.arange(1, self.modes[-1] + 1)
        signs = jnp.asarray(2.0 * (-1.0) ** omega, initial.dtype)
        signs = signs.reshape((-1,) + (1,) * len(shape))
        coefficients = jnp.concatenate([signs * fields.real, -signs * fields.imag])
        start = initial if shape == initial.shape else moved(initial, shape)
        return Trajectory(start, coefficients, self.horizon)

    def _amplitudes(self, latent: Array, initial: Array) -> Array:
        """In space and time, of the frames on the second half of the period."""
        z = jnp.concatenate([initial[None], latent])
        count = z.shape[0]
        omega = np.arange(1, self.modes[-1] + 1)[:, None]
        angles = math.pi * omega * (1 + np.arange(count) / count)
        flat = z.reshape(count, -1)
        real = jnp.asarray(np.cos(angles) / (2 * count), z.dtype) @ flat
        imag = jnp.asarray(-np.sin(angles) / (2 * count), z.dtype) @ flat
        x = jax.lax.complex(real, imag).reshape(-1, *initial.shape)
        for axis, m in enumerate(self.modes[:-1], 1):
            x = jnp.fft.fft(x, axis=axis, norm="forward")
            n = x.shape[axis]
            low = jax.lax.slice_in_dim(x, 0, m, axis=axis)
            high = jax.lax.slice_in_dim(x, n - m + 1, n, axis=axis)
            x = jnp.concatenate([low, high], axis=axis)
        return x

    def _check(self, frames: int, grid: tuple[int, ...]) -> None:
        space = self.modes[:-1]
        coarse = any(n < 2 * m - 1 for m, n in zip(space, grid, strict=False))
        if len(grid) != len(space) or coarse or frames < self.modes[-1]:
            raise ValueError(
                f"A head with modes {self.modes} needs at least {self.modes[-1]} "
                f"frames and {tuple(2 * m - 1 for m in space)} points; got {frames} "
                f"and {grid}."
            )


def _to_grid(x: Array, modes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Complex fields from amplitudes in the order `0..m-1, -(m-1)..-1`."""
    for axis, (m, n) in enumerate(zip(modes, shape, strict=True), 1):
        low = jax.lax.slice_in_dim(x, 0, m, axis=axis)
        high = jax.lax.slice_in_dim(x, m, 2 * m - 1, axis=axis)
        gap = list(x.shape)
        gap[axis] = n - (2 * m - 1)
        x = jnp.concatenate([low, jnp.zeros(gap, x.dtype), high], axis=axis)
        x = jnp.fft.ifft(x, axis=axis, norm="forward")
    return x
