"""Two-dimensional flow in terms of its vorticity."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ._grid import Grid
from ._semilinear import AbstractSemilinear, banded, real_dtype, source


class NavierStokes(AbstractSemilinear):
    r"""Incompressible flow in a periodic box in two dimensions, as vorticity.

    $$\partial_t w + u \cdot \nabla w = \nu \Delta w - \mu w + f, \qquad
      u = (\psi_y, -\psi_x), \quad -\Delta \psi = w.$$

    **Arguments:**

    - `viscosity`: $\nu$.
    - `drag`: $\mu$.
    - `source`: $f$, a field on any grid of the box, or `None`; see
      [`pathax.operators.kolmogorov_forcing`][] and
      [`pathax.operators.diagonal_forcing`][].

    **Raises:** `ValueError` on grids that aren't two-dimensional.

    **Cost:** four inverse FFTs and one FFT an evaluation.

    **Gradients:** of all arguments and fields.

    **Precision:** that of the fields. Products have no aliases in the band.

    **Reference:** Canuto, Hussaini, Quarteroni and Zang, Spectral methods: evolution to
    complex geometries, Springer 2007, chapter 3.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16, 16), (2 * jnp.pi,) * 2)
    >>> x, y = grid.points()
    >>> swirl = grid.rfft(jnp.cos(x) * jnp.cos(y))
    >>> flow = px.operators.NavierStokes(viscosity=0.5)
    >>> bool(jnp.allclose(flow.rhs(grid, swirl), -swirl, atol=1e-6))  # it only decays
    True

    ```
    """

    viscosity: float | Float[Array, ""]
    drag: float | Float[Array, ""] = 0.0
    source: Float[Array, "*any"] | None = None

    def linear(self, grid: Grid) -> Array:
        """`-nu |k|^2 - mu`."""
        dtype = real_dtype()
        viscosity = jnp.asarray(self.viscosity, dtype)
        return -viscosity * grid.square_wavenumbers(dtype) - jnp.asarray(
            self.drag, dtype
        )

    def nonlinear(
        self, grid: Grid, w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """Transport of vorticity by the flow that it makes."""
        return self.advect(grid, w, w)

    def advect(
        self,
        grid: Grid,
        by: Complex[Array, "*half"],
        w: Complex[Array, "*half"],
    ) -> Complex[Array, "*half"]:
        """Transport of `w` by the flow whose vorticity is `by`."""
        u, v = (grid.irfft(a) for a in grid.velocity(banded(grid, by)))
        w = banded(grid, w)
        slopes = (grid.irfft(grid.derivative(w, axis)) for axis in range(2))
        wx, wy = slopes
        return -banded(grid, grid.rfft(u * wx + v * wy))

    def forcing(self, grid: Grid) -> Complex[Array, "*half"]:
        """What drives the flow."""
        return source(grid, self.source, real_dtype())

    def speed(self, grid: Grid, w: Complex[Array, "*half"]) -> Float[Array, ""]:
        """The largest speed of the flow."""
        u, v = (grid.irfft(a) for a in grid.velocity(w))
        return jnp.sqrt(jnp.max(u**2 + v**2))


def kolmogorov_forcing(
    grid: Grid, wavenumber: int = 4, amplitude: float = 1.0
) -> Float[Array, "*grid"]:
    """The curl of a shear `amplitude sin(k y)` along the first axis.

    **Arguments:**

    - `grid`: of two dimensions.
    - `wavenumber`: periods of the shear in the box.
    - `amplitude`: of the shear, an acceleration.

    **Returns:** the field `-amplitude k cos(k y)`, with `k` in radians a length.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16, 16), (2 * jnp.pi,) * 2)
    >>> float(px.operators.kolmogorov_forcing(grid)[0, 0])
    -4.0

    ```
    """
    k = 2 * math.pi * wavenumber / grid.lengths[1]
    return -amplitude * k * jnp.cos(k * grid.points()[1])


def diagonal_forcing(grid: Grid, amplitude: float = 0.1) -> Float[Array, "*grid"]:
    """`amplitude (sin + cos)(2 pi (x / L_x + y / L_y))`, of the data of the first FNO.

    **Arguments:**

    - `grid`: of two dimensions.
    - `amplitude`: of each wave.

    **Returns:** the field.

    **Example:**

    ```python
    >>> import pathax as px
    >>> grid = px.operators.Grid((16, 16), (1.0, 1.0))
    >>> round(float(px.operators.diagonal_forcing(grid)[0, 0]), 3)
    0.1

    ```
    """
    x, y = (p / length for p, length in zip(grid.points(), grid.lengths, strict=True))
    angle = 2 * math.pi * (x + y)
    return amplitude * (jnp.sin(angle) + jnp.cos(angle))
