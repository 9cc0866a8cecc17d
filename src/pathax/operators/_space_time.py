"""A semilinear equation over a window of time, as least squares in space and time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from . import _time_basis as time_basis
from ._grid import Grid, scaled


# Coefficients and residuals are real arrays with a leading axis of two, real and
# imaginary parts, scaled so that plain inner products are those of fields in space.
Pairs = Float[Array, "..."]


class SpaceTimeProblem(eqx.Module):
    r"""An initial value problem as least squares: small where it is nearly solved.

    A trajectory is a polynomial of degree $M$ in time, in each slab, that begins at the
    initial field, see [`pathax.operators.PolynomialTrajectory`][]. Its residual in
    $\partial_t w = L w + N(w) + f$ is measured by

    $$\eta^2 = \int_0^T \| \partial_t w - L w - N(w) - f \|_{H^s}^2 \, dt,
      \qquad \| r \|_{H^s}^2 = V \sum_k |k|^{2 s} |\hat r_k|^2,$$

    with $V$ the volume, $k$ the physical wavenumbers, and the smallest of them in place
    of $|k|$ for the mean, so that nothing escapes the norm. Where $N$ is quadratic,
    Gauss quadrature with $2 M + 1$ nodes makes the integral exact.

    **Arguments:**

    - `equation`: one of this folder, such as [`pathax.operators.NavierStokes`][], or
      anything with its methods `linear`, `nonlinear` and `forcing`.
    - `grid`: where fields are sampled; products are taken without aliasing.
    - `initial`: the field at time zero, in space; what the 2/3 rule drops is dropped.
    - `horizon`: the window $T$.
    - `degree`: $M$.
    - `order`: $s$; for vorticity -1 is the dual norm of its energy estimate, and -2
      that of velocity.
    - `nodes`: Gauss nodes a slab, $2 M + 1$ if `None`.
    - `slabs`: equal parts of the window, solved one after another, each with a
      polynomial of its own. What an eddy of the smallest scale travels in a slab, in
      radians of its wave, should not be much more than $M$.
    - `sharding`: how arrays of one entry a node are laid out over devices, the nodes
      along the first axis; nothing else depends on more than one node.

    **Raises:** `ValueError` for sizes that don't fit.

    **Cost:** a residual is one evaluation of $N$ at each node.

    **Gradients:** of the initial field and of the equation's parameters.

    **Precision:** double is needed to go below a relative error of about 1e-5.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner: accurate fine-tuning of
    spatiotemporal Fourier neural operator for turbulent flows, ICLR 2025, for the dual
    norm; the residual is that of the trajectory, not of a small step of a solver.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((8, 8), (1.0, 1.0))
    >>> flow = px.operators.SpaceTimeProblem(
    ...     px.operators.NavierStokes(viscosity=0.1), grid, jnp.zeros((8, 8)), 1.0
    ... )
    >>> float(flow.norm(flow.residual(flow.persistence())))
    0.0

    ```
    """

    equation: Any
    initial: Complex[Array, "*half"]
    grid: Grid = eqx.field(static=True)
    horizon: float = eqx.field(static=True)
    degree: int = eqx.field(static=True)
    order: float = eqx.field(static=True)
    nodes: int = eqx.field(static=True)
    slabs: int = eqx.field(static=True)
    sharding: Any = eqx.field(static=True)

    def __init__(
        self,
        equation: Any,
        grid: Grid,
        initial: Float[Array, "*grid"],
        horizon: float,
        *,
        degree: int = 10,
        order: float = -1.0,
        nodes: int | None = None,
        slabs: int = 1,
        sharding: Any = None,
    ):
        nodes = 2 * degree + 1 if nodes is None else nodes
        if not horizon > 0:
            raise ValueError(f"`horizon` must be positive; got {horizon}.")
        if degree < 1 or nodes < degree or slabs < 1:
            raise ValueError(
                "`degree` and `slabs` must be at least 1 and `nodes` at least "
                f"`degree`; got {degree}, {slabs} and {nodes}."
            )
        if initial.shape != grid.shape:
            raise ValueError(
                f"`initial` must be a field on the grid, of shape {grid.shape}; got "
                f"{initial.shape}."
            )
        self.equation, self.grid = equation, grid
        spectrum = grid.rfft(initial)
        self.initial = scaled(spectrum, grid.mask("2/3"))
        self.horizon, self.degree = float(horizon), degree
        self.order, self.nodes, self.slabs = float(order), nodes, slabs
        self.sharding = sharding

    @property
    def length(self) -> float:
        """Of a slab."""
        return self.horizon / self.slabs

    def beginning_at(self, spectrum: Complex[Array, "*half"]) -> "SpaceTimeProblem":
        """The same problem from another initial field, as its spectrum."""
        return eqx.tree_at(lambda problem: problem.initial, self, spectrum)

    # Coordinates ------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """Of the fields."""
        return np.dtype(self.initial.real.dtype)

    def persistence(self) -> Pairs:
        """The coefficients of a field that stays as it is: none."""
        return jnp.zeros((2, self.degree, *self.initial.shape), self.dtype)

    def spectra(self, z: Pairs) -> Complex[Array, "degree *half"]:
        """Coefficients as half spectra, those outside of the band being zero."""
        scale = (self._band() / np.sqrt(self.grid.multiplicity()))[None]
        return scaled(jax.lax.complex(z[0], z[1]), scale)

    def pairs(self, c: Complex[Array, "degree *half"]) -> Pairs:
        """The inverse of `spectra`, for what lies in the band."""
        scale = (self._band() * np.sqrt(self.grid.multiplicity()))[None]
        c = scaled(c, scale)
        return jnp.stack([c.real, c.imag])

    def weights(self) -> Float[np.ndarray, "*half"]:
        """Square roots of the weights of modes in the norm."""
        size = np.sqrt(self.grid.square_wavenumbers())
        least = 2 * np.pi / max(self.grid.lengths)
        measure = np.sqrt(np.prod(self.grid.lengths) * self.grid.multiplicity())
        return self._band() * measure * np.maximum(size, least) ** self.order

    def _band(self) -> Float[np.ndarray, "*half"]:
        return self.grid.mask("2/3").astype(float)

    def quadrature(self) -> time_basis.Quadrature:
        """In time, over a slab."""
        return time_basis.gauss(self.length, self.nodes)

    def table(self, kind: str) -> Float[np.ndarray, "nodes degree"]:
        """`"values"` or `"slopes"` of the basis at the nodes."""
        times = self.quadrature().nodes
        return time_basis.table(kind, times, self.degree, self.length)

    # Residual ---------------------------------------------------------------------

    def residual(
        self, z: Pairs, carriers: Complex[Array, "nodes *half"] | None = None
    ) -> Pairs:
        """What is left of the equation at the nodes; its sum of squares is `eta^2`.

        Fields that carry the flow may be given; they are those of `z` otherwise.
        """
        return self.measured(self.defect(self.spectra(z), carriers))

    def measured(self, defect: Complex[Array, "nodes *half"]) -> Pairs:
        """Spectra at the nodes in the units of the norm."""
        weights = np.sqrt(self.quadrature().weights)
        scale = weights.reshape(-1, *(1,) * self.initial.ndim) * self.weights()[None]
        found = scaled(defect, scale)
        return jnp.stack([found.real, found.imag])

    def unmeasured(self, residual: Pairs) -> Complex[Array, "nodes *half"]:
        """The inverse of `measured` in the band, zero outside."""
        weights = np.sqrt(self.quadrature().weights)
        inverse = np.where(self._band() > 0, 1 / np.maximum(self.weights(), 1e-300), 0)
        scale = inverse[None] / weights.reshape(-1, *(1,) * self.initial.ndim)
        return scaled(jax.lax.complex(residual[0], residual[1]), scale)

    def defect(
        self,
        c: Complex[Array, "degree *half"],
        carriers: Complex[Array, "nodes *half"] | None = None,
    ) -> Complex[Array, "nodes *half"]:
        """Spectra of `w_t - L w - N(w) - f` at the nodes, in the band or not."""
        w = self.at_nodes(c)
        rate = self._combine(self.table("slopes"), c)
        linear = jnp.asarray(self.equation.linear(self.grid)).astype(w.dtype)
        source = self.equation.forcing(self.grid)
        if carriers is None:
            nonlinear = jax.vmap(lambda w: self.equation.nonlinear(self.grid, w))(w)
        else:
            advect = lambda by, w: self.equation.advect(self.grid, by, w)
            nonlinear = jax.vmap(advect)(carriers, w)
        known = linear[None] * w + nonlinear + source.astype(w.dtype)[None]
        return self._placed(rate - known)

    def at_nodes(
        self, c: Complex[Array, "degree *half"]
    ) -> Complex[Array, "nodes *half"]:
        """The field's spectra at the nodes."""
        change = self._combine(self.table("values"), c)
        return self._placed(self.initial[None] + change)

    def _combine(self, table: np.ndarray, c: Array) -> Array:
        return time_basis.mix(jnp.asarray(table, self.dtype), c)

    def _placed(self, x: Array) -> Array:
        if self.sharding is None:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding)

    def norm(self, residual: Pairs) -> Float[Array, ""]:
        """`eta` of a residual."""
        return jnp.sqrt(jnp.sum(residual**2))
