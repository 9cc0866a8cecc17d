"""The spectral convolution: a matrix a wavenumber, on any grid."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from ._grid import Grid


def retained(x: Array, modes: tuple[int, ...]) -> Array:
    """Amplitudes of the lowest modes of real fields, over the last axes.

    Of the last axis wavenumbers `0..m-1`, of the others `0..m-1` and then `-m..-1`.
    Each axis is cut before the next is transformed, so that most of the work isn't
    done.
    """
    y = jnp.fft.rfft(x, axis=-1, norm="forward")[..., : modes[-1]]
    for axis in range(-2, -len(modes) - 1, -1):
        m = modes[axis]
        y = jnp.fft.fft(y, axis=axis, norm="forward")
        n = y.shape[axis]
        low = jax.lax.slice_in_dim(y, 0, m, axis=axis % y.ndim)
        high = jax.lax.slice_in_dim(y, n - m, n, axis=axis % y.ndim)
        y = jnp.concatenate([low, high], axis=axis)
    return y


def restored(y: Array, modes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Real fields on a grid from the amplitudes that `retained` returns."""
    for axis in range(-len(modes), -1):
        m, n = modes[axis], shape[axis]
        low = jax.lax.slice_in_dim(y, 0, m, axis=axis % y.ndim)
        high = jax.lax.slice_in_dim(y, m, 2 * m, axis=axis % y.ndim)
        gap = list(y.shape)
        gap[axis] = n - 2 * m
        y = jnp.concatenate([low, jnp.zeros(gap, y.dtype), high], axis=axis)
        y = jnp.fft.ifft(y, axis=axis, norm="forward")
    return jnp.fft.irfft(y, n=shape[-1], axis=-1, norm="forward")


def moved(field: Array, shape: tuple[int, ...]) -> Array:
    """Band-limited interpolation of a real field to another grid of the unit box."""
    if field.shape == shape:
        return field
    unit = (1.0,) * len(shape)
    old, new = Grid(field.shape, unit), Grid(shape, unit)
    return new.irfft(old.resample(old.rfft(field), new))


def as_complex(pairs: Array) -> Array:
    """Complex numbers from real pairs in the last axis."""
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


def check_modes(modes: tuple[int, ...], shape: tuple[int, ...], what: str) -> None:
    """Raise unless a grid has room for the modes."""
    most = (*(n // 2 for n in shape[:-1]), shape[-1] // 2 + 1)
    if len(shape) != len(modes) or any(
        m > n for m, n in zip(modes, most, strict=False)
    ):
        raise ValueError(
            f"A spectral convolution with modes {modes} needs {len(modes)} axes of at "
            f"least {(*(2 * m for m in modes[:-1]), 2 * modes[-1] - 2)} points; the "
            f"{what} has {shape}. Take fewer modes or a finer grid."
        )


class SpectralConv(eqx.Module):
    r"""A convolution with a kernel of few modes, on a grid of any size.

    $$y(x) = \sum_k (W_k \hat u_k + b_k) e^{2\pi i k \cdot x}, \qquad
      \hat u_k = \frac1N \sum_j u(x_j) e^{-2\pi i k \cdot x_j},$$

    over the periodic unit box, for wavenumbers $-m_i \le k_i < m_i$ along all axes but
    the last and $0 \le k_d < m_d$ along the last, whose other half follows because
    fields are real. $\hat u_k$ are amplitudes (`norm="forward"`), so neither $W$ nor
    $b$ knows the grid: the layer may be evaluated on another one, and may return
    another one.

    **Arguments:**

    - `in_channels`, `out_channels`: channels of the input and of the output.
    - `modes`: how many, $m_1, \dots, m_d$; their number is that of the axes.
    - `use_bias`: whether there is a $b_k$, zero at first.
    - `key`: random key of the weights.
    - `dtype`: of the parameters; JAX's default if `None`.

    Called with `x` of shape `(in_channels, n_1, ..., n_d)` and, as an option,
    `out_shape`, the grid of the output. Parameters are pairs of reals, in the order
    `0, ..., m - 1, -m, ..., -1` of wavenumbers, so that every optimizer works.

    **Attributes:**

    - `weight`: $W_k$, of shape `(in_channels, out_channels, 2 m_1, ..., m_d, 2)`.
    - `bias`: $b_k$, of shape `(out_channels, 2 m_1, ..., m_d, 2)`, or `None`.

    **Raises:** `ValueError` if a grid has fewer than $2 m_i$ points along an axis, or
    fewer than $2 m_d - 2$ along the last.

    **Cost:** $C_{in} C_{out} M$ multiplications, $M = 2^{d-1} m_1 \cdots m_d$, and FFTs
    in which each axis is cut to its modes before the next is transformed.

    **Gradients:** of input and parameters, in both modes.

    **Precision:** that of the FFT. On a grid with exactly $2 m_i$ points the mode
    $-m_i$ is the Nyquist frequency, which means something else on a finer one; likewise
    $m_d = n_d / 2 + 1$.

    **Reference:** Li et al., Fourier neural operator for parametric partial
    differential equations, ICLR 2021, equations 4 and 5. Amplitudes instead of sums, as
    in the library of its authors. Weights start uniform in $[0, 1/(2 C_{in} C_{out}))$.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> layer = px.operators.SpectralConv(1, 2, (4, 3), key=jax.random.key(0))
    >>> layer(jnp.ones((1, 16, 12)), out_shape=(32, 8)).shape
    (2, 32, 8)

    ```
    """

    weight: Float[Array, "inputs outputs *modes 2"]
    bias: Float[Array, "outputs *modes 2"] | None
    modes: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: tuple[int, ...],
        *,
        use_bias: bool = False,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        if not modes or any(m < 1 for m in modes):
            raise ValueError(
                f"`modes` must be one positive number an axis; got {modes}."
            )
        self.modes = tuple(modes)
        kept = (*(2 * m for m in modes[:-1]), modes[-1])
        dtype = jnp.result_type(float) if dtype is None else dtype
        shape = (in_channels, out_channels, *kept, 2)
        scale = 0.5 / (in_channels * out_channels)
        self.weight = jax.random.uniform(key, shape, dtype, maxval=scale)
        self.bias = jnp.zeros(shape[1:], dtype) if use_bias else None

    def __call__(
        self,
        x: Float[Array, "inputs *grid"],
        out_shape: tuple[int, ...] | None = None,
    ) -> Float[Array, "outputs *grid2"]:
        """Convolve one example."""
        shape = x.shape[1:] if out_shape is None else tuple(out_shape)
        check_modes(self.modes, x.shape[1:], "input")
        check_modes(self.modes, shape, "output")
        y = self._mix(retained(x, self.modes))
        return restored(y, self.modes, shape)

    def _mix(self, spectrum: Complex[Array, "inputs *modes"]) -> Array:
        weight = as_complex(self.weight)
        modes = math.prod(weight.shape[2:])
        flat = spectrum.reshape(spectrum.shape[0], modes)
        y = jnp.einsum("im,iom->om", flat, weight.reshape(*weight.shape[:2], modes))
        y = y.reshape(weight.shape[1:])
        return y if self.bias is None else y + as_complex(self.bias)
