"""Waves that steepen: Burgers' equation, and the one of flames."""

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ._grid import Grid
from ._semilinear import AbstractSemilinear, banded, real_dtype, source


class Burgers(AbstractSemilinear):
    r"""Burgers' equation of a scalar, in one to three dimensions.

    $$\partial_t w + \sum_i \partial_i \tfrac12 w^2 = \nu \Delta w + f.$$

    **Arguments:**

    - `viscosity`: $\nu$.
    - `source`: $f$, a field on any grid of the box, or `None`.

    **Raises:** nothing of its own.

    **Cost:** two FFTs an evaluation.

    **Gradients:** of all arguments and fields.

    **Precision:** that of the fields. Products have no aliases in the band.

    **Reference:** J. M. Burgers, A mathematical model illustrating the theory of
    turbulence, Advances in Applied Mechanics 1 (1948).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> w = grid.rfft(jnp.sin(grid.points()[0]))
    >>> rate = grid.irfft(px.operators.Burgers(viscosity=0.0).rhs(grid, w))
    >>> bool(jnp.allclose(rate, -0.5 * jnp.sin(2 * grid.points()[0]), atol=1e-6))
    True

    ```
    """

    viscosity: float | Float[Array, ""]
    source: Float[Array, "*any"] | None = None

    def linear(self, grid: Grid) -> Array:
        """`-nu |k|^2`."""
        dtype = real_dtype()
        return -jnp.asarray(self.viscosity, dtype) * grid.square_wavenumbers(dtype)

    def nonlinear(
        self, grid: Grid, w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """Transport of the field by itself."""
        return half_square(grid, w, w)

    def advect(
        self, grid: Grid, by: Complex[Array, "*half"], w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """The same of two fields."""
        return half_square(grid, by, w)

    def forcing(self, grid: Grid) -> Complex[Array, "*half"]:
        """What drives the waves."""
        return source(grid, self.source, real_dtype())

    def speed(self, grid: Grid, w: Complex[Array, "*half"]) -> Float[Array, ""]:
        """The largest speed of a wave."""
        return grid.dimension**0.5 * jnp.max(jnp.abs(grid.irfft(w)))


class KuramotoSivashinsky(AbstractSemilinear):
    r"""The equation of Kuramoto and Sivashinsky, conservative form.

    $$\partial_t w + \sum_i \partial_i \tfrac12 w^2
      = -\Delta w - \gamma \Delta^2 w + f.$$

    **Arguments:**

    - `hyperviscosity`: $\gamma$.
    - `source`: $f$, a field on any grid of the box, or `None`.

    **Raises:** nothing of its own.

    **Cost:** two FFTs an evaluation.

    **Gradients:** of all arguments and fields.

    **Precision:** that of the fields. Products have no aliases in the band.

    **Reference:** Kassam and Trefethen, Fourth-order time-stepping for stiff PDEs, SIAM
    Journal on Scientific Computing 26 (2005), section 4.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> px.operators.KuramotoSivashinsky().linear(grid)[:3]
    Array([  0.,   0., -12.], dtype=float32)

    ```
    """

    hyperviscosity: float | Float[Array, ""] = 1.0
    source: Float[Array, "*any"] | None = None

    def linear(self, grid: Grid) -> Array:
        """`|k|^2 - gamma |k|^4`."""
        dtype = real_dtype()
        k2 = jnp.asarray(grid.square_wavenumbers(dtype))
        return k2 - jnp.asarray(self.hyperviscosity, dtype) * k2**2

    def nonlinear(
        self, grid: Grid, w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """Transport of the field by itself."""
        return half_square(grid, w, w)

    def advect(
        self, grid: Grid, by: Complex[Array, "*half"], w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """The same of two fields."""
        return half_square(grid, by, w)

    def forcing(self, grid: Grid) -> Complex[Array, "*half"]:
        """What drives the waves."""
        return source(grid, self.source, real_dtype())

    def speed(self, grid: Grid, w: Complex[Array, "*half"]) -> Float[Array, ""]:
        """The largest speed of a wave."""
        return grid.dimension**0.5 * jnp.max(jnp.abs(grid.irfft(w)))


def half_square(
    grid: Grid, by: Complex[Array, "*half"], w: Complex[Array, "*half"]
) -> Complex[Array, "*half"]:
    """`-sum_i d_i (by w / 2)`, in the band."""
    product = grid.irfft(banded(grid, by)) * grid.irfft(banded(grid, w))
    flux = banded(grid, grid.rfft(-0.5 * product))
    slopes = [grid.derivative(flux, axis) for axis in range(grid.dimension)]
    return sum(slopes[1:], start=slopes[0])
