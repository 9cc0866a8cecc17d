"""What an equation must know of itself to be marched, measured and refined."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from ._grid import Grid, scaled


class AbstractSemilinear(eqx.Module):
    r"""A periodic equation $\partial_t w = L w + N(w) + f$ with a diagonal $L$.

    Diagonal in Fourier space, that is.

    A subclass has three methods; the rest of this folder needs no more. Each takes the
    grid, so that one equation serves on all of them.

    - `linear(grid)`: the symbol of $L$, real or complex, on the half spectrum.
    - `nonlinear(grid, w)`: the half spectrum of $N$ at the half spectrum `w`, without
      aliases, in the band that the 2/3 rule keeps.
    - `forcing(grid)`: the half spectrum of $f$.

    If $N(w) = B(w, w)$ with a bilinear $B$, `advect(grid, by, w)` may give $B(by, w)$,
    and `speed(grid, w)` the largest speed at which anything is carried.

    **Raises:** nothing of its own.

    **Cost:** that of the subclass.

    **Gradients:** of parameters and fields.

    **Precision:** that of the fields.

    **Reference:** none.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> class Heat(px.operators.AbstractSemilinear):
    ...     def linear(self, grid):
    ...         return -grid.square_wavenumbers("float32")
    ...     def nonlinear(self, grid, w):
    ...         return jnp.zeros_like(w)
    ...     def forcing(self, grid):
    ...         return jnp.zeros(grid.spectrum_shape, "complex64")
    >>> grid = px.operators.Grid((8,), (2 * jnp.pi,))
    >>> w = grid.rfft(jnp.sin(grid.points()[0]))
    >>> bool(jnp.allclose(Heat().rhs(grid, w), -w, atol=1e-6))
    True

    ```
    """

    @abc.abstractmethod
    def linear(self, grid: Grid) -> Array:
        """The symbol of the linear part."""

    @abc.abstractmethod
    def nonlinear(
        self, grid: Grid, w: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """The nonlinear part of a half spectrum."""

    @abc.abstractmethod
    def forcing(self, grid: Grid) -> Complex[Array, "*half"]:
        """What drives the flow."""

    def rhs(self, grid: Grid, w: Complex[Array, "*half"]) -> Complex[Array, "*half"]:
        """All of the right-hand side."""
        known = self.nonlinear(grid, w) + self.forcing(grid).astype(w.dtype)
        return jnp.asarray(self.linear(grid)).astype(w.dtype) * w + known

    def residual(
        self, grid: Grid, w: Complex[Array, "*half"], rate: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """What is left of the equation, given the time derivative too.

        All modes of it, if `w` is in the band of a grid with half of the points, padded
        to this one.
        """
        return rate - self.rhs(grid, w)


def real_dtype() -> Any:
    """JAX's default."""
    return jnp.result_type(float)


def source(
    grid: Grid, field: Float[Array, "*any"] | None, dtype: Any
) -> Complex[Array, "*half"]:
    """The half spectrum of a forcing that was given as a field on any grid."""
    if field is None:
        return jnp.zeros(grid.spectrum_shape, np.result_type(dtype, np.complex64))
    given = Grid(field.shape, grid.lengths)
    return given.resample(given.rfft(field), grid)


def banded(grid: Grid, w: Complex[Array, "*half"]) -> Complex[Array, "*half"]:
    """What the 2/3 rule keeps."""
    return scaled(w, grid.mask("2/3"))
