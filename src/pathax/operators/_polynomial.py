"""Fields that are polynomials in time, piece by piece."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from . import _time_basis as time_basis
from ._grid import Grid


class PolynomialTrajectory(eqx.Module):
    r"""A field at any time of a window, its derivative and its spectrum.

    The window $[0, T]$ is cut into equal slabs. In each, with $s$ the time since its
    start and $\hat w_0$ the spectrum there,

    $$\hat w(s) = \hat w_0 + \sum_{m=1}^{M} \hat c_m \int_0^s P_{m-1},$$

    with Legendre polynomials $P$ of the slab: a polynomial of degree $M$ that begins at
    $\hat w_0$ whatever the coefficients are.

    **Attributes:**

    - `initial`: half spectra at the starts of slabs, `(slabs, *half)`, normalized so
      that a mode's coefficient is its amplitude (`norm="forward"`).
    - `coefficients`: $\hat c$, `(slabs, M, *half)`.
    - `grid`: where the field is sampled.
    - `horizon`: $T$.

    `trajectory(t)` and `trajectory.derivative(t)` take a time or an array of times, and
    return the field with the axes of `t` in front; `spectrum` and `spectrum_rate` the
    same in Fourier space.

    **Raises:** nothing. Times outside of the window are answered by the polynomial of
    the nearest slab.

    **Cost:** of $n$ times, $n M$ multiplications a mode and $n$ inverse FFTs.

    **Gradients:** of coefficients and of times, in both modes.

    **Precision:** that of the coefficients.

    **Reference:** none; polynomials are those of a spectral element in time.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((8,), (1.0,))
    >>> flow = px.operators.PolynomialTrajectory(
    ...     initial=jnp.zeros((1, 5), complex),
    ...     coefficients=jnp.zeros((1, 3, 5), complex).at[0, 0, 1].set(0.5),
    ...     grid=grid,
    ...     horizon=2.0,
    ... )
    >>> flow(1.0).round(2)[:2], flow.derivative(1.0).round(2)[:2]
    (Array([1.  , 0.71], dtype=float32), Array([1.  , 0.71], dtype=float32))

    ```
    """

    initial: Complex[Array, "slabs *half"]
    coefficients: Complex[Array, "slabs degree *half"]
    grid: Grid = eqx.field(static=True)
    horizon: float = eqx.field(static=True)

    @property
    def degree(self) -> int:
        """The polynomials' degree."""
        return self.coefficients.shape[1]

    @property
    def slabs(self) -> int:
        """How many pieces there are."""
        return self.coefficients.shape[0]

    def __call__(self, t: Float[Array, "*times"] | float) -> Array:
        """The field at a time, or at many."""
        return self._in_space(self.spectrum(t), jnp.ndim(t))

    def derivative(self, t: Float[Array, "*times"] | float) -> Array:
        """The time derivative, exact, at a time or at many."""
        return self._in_space(self.spectrum_rate(t), jnp.ndim(t))

    def spectrum(self, t: Float[Array, "*times"] | float) -> Array:
        """Half spectra at a time, or at many."""
        return self._sum(t, time_basis.values, constant=True)

    def spectrum_rate(self, t: Float[Array, "*times"] | float) -> Array:
        """Half spectra of the time derivative."""
        return self._sum(t, time_basis.slopes, constant=False)

    def _sum(self, t, functions, *, constant: bool) -> Array:
        length = self.horizon / self.slabs
        t = jnp.asarray(t, self.coefficients.real.dtype)
        slab = jnp.clip(jnp.floor(t / length), 0, self.slabs - 1)
        since = t - slab * length
        slab = slab.astype(jnp.int32)

        def one(since, slab):
            weights = functions(since, self.degree, length)[None]
            total = time_basis.mix(weights, self.coefficients[slab])[0]
            return total + self.initial[slab] if constant else total

        found = jax.vmap(one)(since.reshape(-1), slab.reshape(-1))
        return found.reshape(*t.shape, *found.shape[1:])

    def _in_space(self, spectra: Array, axes: int) -> Array:
        flat = spectra.reshape(-1, *spectra.shape[axes:])
        fields = jax.vmap(self.grid.irfft)(flat)
        return fields.reshape(*spectra.shape[:axes], *fields.shape[1:])
