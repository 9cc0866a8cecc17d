"""Phases that separate."""

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ._grid import Grid
from ._semilinear import AbstractSemilinear, banded, real_dtype, source


class AllenCahn(AbstractSemilinear):
    r"""The equation of Allen and Cahn, in one to three dimensions.

    $$\partial_t w = \varepsilon^2 \Delta w + w - w^3 + f.$$

    **Arguments:**

    - `width`: $\varepsilon$, of interfaces.
    - `source`: $f$, a field on any grid of the box, or `None`.

    **Raises:** nothing of its own.

    **Cost:** two FFTs of a grid with twice the points along each axis an evaluation,
    as a cube has more aliases than a square.

    **Gradients:** of all arguments and fields.

    **Precision:** that of the fields. Products have no aliases in the band.

    **Reference:** Allen and Cahn, A microscopic theory for antiphase boundary motion,
    Acta Metallurgica 27 (1979).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> still = px.operators.AllenCahn(0.1).rhs(grid, grid.rfft(jnp.ones(16)))
    >>> bool(jnp.abs(still).max() < 1e-6)
    True

    ```
    """

    width: float | Float[Array, ""]
    source: Float[Array, "*any"] | None = None

    def linear(self, grid: Grid) -> Array:
        """`1 - width^2 |k|^2`."""
        dtype = real_dtype()
        return 1 - jnp.asarray(self.width, dtype) ** 2 * grid.square_wavenumbers(dtype)

    def nonlinear(
        self, grid: Grid, w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """Minus the cube."""
        fine = grid.refined(2)
        field = fine.irfft(grid.resample(banded(grid, w), fine))
        return -banded(grid, fine.resample(fine.rfft(field**3), grid))

    def forcing(self, grid: Grid) -> Complex[Array, "*half"]:
        """What drives the phases."""
        return source(grid, self.source, real_dtype())
