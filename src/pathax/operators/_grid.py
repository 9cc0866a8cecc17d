"""Periodic grids and what is done to fields in Fourier space."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float


MASKS = ("2/3", "nyquist", "none")


@dataclasses.dataclass(frozen=True)
class Grid:
    r"""A periodic box with equally spaced points, in one to three dimensions.

    A field's half spectrum is $\hat u_k = N^{-1} \sum_j u(x_j) e^{-i k \cdot x_j}$, so
    that a coefficient is an amplitude whatever the grid is; the last axis holds
    frequencies from zero up. Wavenumbers are $k = 2 \pi m / L$ with integers $m$.

    Methods act on one field, or on one half spectrum, in real or in Fourier space; use
    `jax.vmap` for several.

    **Attributes:**

    - `shape`: points along each axis.
    - `lengths`: of the box along each axis.

    **Raises:** `ValueError` for sizes that don't fit.

    **Cost:** of `rfft` and `irfft`, one FFT; of all else, a product a mode.

    **Gradients:** of all methods that take arrays.

    **Precision:** that of the arrays given. The highest frequency of an even axis has
    no sign; odd derivatives, and changes of grid, take it for zero.

    **Reference:** Canuto, Hussaini, Quarteroni and Zang, Spectral methods: fundamentals
    in single domains, Springer 2006, chapter 2.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((8, 8), (1.0, 1.0))
    >>> x, y = grid.points()
    >>> spectrum = grid.rfft(jnp.sin(2 * jnp.pi * x))
    >>> slope = grid.irfft(grid.derivative(spectrum, axis=0))
    >>> bool(jnp.allclose(slope, 2 * jnp.pi * jnp.cos(2 * jnp.pi * x), atol=1e-5))
    True

    ```
    """

    shape: tuple[int, ...]
    lengths: tuple[float, ...]

    def __post_init__(self):
        shape = tuple(int(n) for n in self.shape)
        lengths = tuple(float(length) for length in self.lengths)
        if not 1 <= len(shape) <= 3 or len(shape) != len(lengths):
            raise ValueError(
                "`Grid` needs a number of points and a length for each of one to three "
                f"axes; got {self.shape} and {self.lengths}."
            )
        if min(shape) < 4 or not min(lengths) > 0:
            raise ValueError(
                "`Grid` needs at least four points along each axis, and positive "
                f"lengths; got {self.shape} and {self.lengths}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "lengths", lengths)

    # Geometry ---------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def spectrum_shape(self) -> tuple[int, ...]:
        """Of half spectra."""
        return (*self.shape[:-1], self.shape[-1] // 2 + 1)

    @property
    def volume(self) -> float:
        """Of the box."""
        return math.prod(self.lengths)

    def points(self, dtype: Any = None) -> tuple[Array, ...]:
        """Coordinates of all points, an array of the grid's shape for each axis."""
        dtype = jnp.result_type(float) if dtype is None else dtype
        axes = [
            np.arange(n) * (length / n)
            for n, length in zip(self.shape, self.lengths, strict=True)
        ]
        mesh = np.meshgrid(*axes, indexing="ij")
        return tuple(jnp.asarray(x, dtype) for x in mesh)

    def frequencies(self) -> tuple[Float[np.ndarray, "*half"], ...]:
        """Integers $m$ of all modes, an array of a half spectrum's shape each axis."""
        last = self.shape[-1]
        axes = [np.fft.fftfreq(n) * n for n in self.shape[:-1]]
        axes.append(np.arange(last // 2 + 1, dtype=float))
        return tuple(np.round(m) for m in np.meshgrid(*axes, indexing="ij"))

    def wavenumbers(self, dtype: Any = float) -> tuple[Float[np.ndarray, "*half"], ...]:
        """Physical wavenumbers $2 \\pi m / L$ of all modes."""
        return tuple(
            (2 * np.pi / length * m).astype(dtype)
            for m, length in zip(self.frequencies(), self.lengths, strict=True)
        )

    def square_wavenumbers(self, dtype: Any = float) -> Float[np.ndarray, "*half"]:
        """Squares of their lengths."""
        return sum(
            (k**2 for k in self.wavenumbers()), np.zeros(self.spectrum_shape)
        ).astype(dtype)

    def multiplicity(self, dtype: Any = float) -> Float[np.ndarray, "*half"]:
        """How many modes of the whole spectrum each one of the half stands for."""
        count = np.full(self.spectrum_shape, 2.0)
        count[..., 0] = 1
        if self.shape[-1] % 2 == 0:
            count[..., -1] = 1
        return count.astype(dtype)

    def mask(self, rule: str = "2/3", dtype: Any = float) -> np.ndarray:
        """One for the modes that a rule keeps, zero for the others.

        `"2/3"` keeps $3 |m| < n$, for which products of two fields have no aliases in
        the band; `"nyquist"` drops the highest frequencies of even axes only; `"none"`
        nothing.
        """
        if rule not in MASKS:
            raise ValueError(
                f"a mask is one of {', '.join(map(repr, MASKS))}; got {rule!r}."
            )
        kept = np.ones(self.spectrum_shape, bool)
        for m, n in zip(self.frequencies(), self.shape, strict=True):
            if rule == "2/3":
                kept &= 3 * np.abs(m) < n
            elif rule == "nyquist":
                kept &= 2 * np.abs(m) < n
        return kept.astype(dtype)

    # Transforms -------------------------------------------------------------------

    def rfft(self, u: Float[Array, "*grid"]) -> Complex[Array, "*half"]:
        """The half spectrum of a field."""
        axes = tuple(range(-self.dimension, 0))
        return jnp.fft.rfftn(u, axes=axes, norm="forward")

    def irfft(self, spectrum: Complex[Array, "*half"]) -> Float[Array, "*grid"]:
        """The field with a half spectrum."""
        axes = tuple(range(-self.dimension, 0))
        return jnp.fft.irfftn(spectrum, s=self.shape, axes=axes, norm="forward")

    def refined(self, factor: int = 2) -> "Grid":
        """The same box with so many times the points along each axis."""
        return Grid(tuple(factor * n for n in self.shape), self.lengths)

    def resample(
        self, spectrum: Complex[Array, "*half"], to: "Grid"
    ) -> Complex[Array, "*half2"]:
        """A half spectrum on another grid of the same box: padded or truncated.

        Highest frequencies of even axes, which have no sign, are dropped on the smaller
        of the two grids.
        """
        if to.lengths != self.lengths:
            raise ValueError(
                f"grids must be of the same box; got lengths {self.lengths} and "
                f"{to.lengths}."
            )
        smaller = Grid(
            tuple(min(a, b) for a, b in zip(self.shape, to.shape, strict=True)),
            self.lengths,
        )
        kept = spectrum
        for axis, n in enumerate(smaller.shape):
            half = axis == self.dimension - 1
            kept = _resampled(kept, axis, n, half)
        mask = smaller.mask("nyquist")
        kept = scaled(kept, mask)
        for axis, n in enumerate(to.shape):
            half = axis == self.dimension - 1
            kept = _resampled(kept, axis, n, half)
        return kept

    # Calculus ---------------------------------------------------------------------

    def derivative(
        self, spectrum: Complex[Array, "*half"], axis: int, order: int = 1
    ) -> Complex[Array, "*half"]:
        """The spectrum of a derivative along an axis."""
        k = self.wavenumbers()[axis]
        if order % 2:
            k = np.where(2 * np.abs(self.frequencies()[axis]) == self.shape[axis], 0, k)
        turned = (1.0, 1j, -1.0, -1j)[order % 4]
        return scaled(spectrum, k**order) * turned

    def laplacian(
        self, spectrum: Complex[Array, "*half"], power: float = 1.0
    ) -> Complex[Array, "*half"]:
        """`-(-Laplacian)^power`; negative powers take the mean for zero."""
        k2 = self.square_wavenumbers()
        safe = np.where(k2 > 0, k2, 1.0)
        symbol = np.where(k2 > 0, -(safe**power), 0.0 if power else -1.0)
        return scaled(spectrum, symbol)

    def inverse_laplacian(
        self, spectrum: Complex[Array, "*half"]
    ) -> Complex[Array, "*half"]:
        """The solution of Poisson's equation that has no mean."""
        return self.laplacian(spectrum, -1.0)

    def curl(
        self, velocity: tuple[Complex[Array, "*half"], ...]
    ) -> Complex[Array, "..."] | tuple[Complex[Array, "*half"], ...]:
        """Of a vector field: a scalar in two dimensions, a vector in three."""
        d = self.derivative
        if self.dimension == 2:
            u, v = velocity
            return d(v, 0) - d(u, 1)
        if self.dimension == 3:
            u, v, w = velocity
            return d(w, 1) - d(v, 2), d(u, 2) - d(w, 0), d(v, 0) - d(u, 1)
        raise ValueError("a curl needs two or three dimensions; got one.")

    def velocity(
        self, vorticity: Complex[Array, "*half"]
    ) -> tuple[Complex[Array, "*half"], Complex[Array, "*half"]]:
        """The flow without divergence and mean that has a vorticity, in two dimensions.

        `u = (psi_y, -psi_x)` with `-Laplacian psi = vorticity`.
        """
        if self.dimension != 2:
            raise ValueError(
                f"vorticity is a scalar in two dimensions; got {self.dimension}."
            )
        stream = -self.inverse_laplacian(vorticity)
        return self.derivative(stream, 1), -self.derivative(stream, 0)

    def leray(
        self, velocity: tuple[Complex[Array, "*half"], ...]
    ) -> tuple[Complex[Array, "*half"], ...]:
        """The part of a vector field that has no divergence."""
        if len(velocity) != self.dimension:
            raise ValueError(
                f"a vector field has {self.dimension} components here; got "
                f"{len(velocity)}."
            )
        pairs = zip(velocity, range(self.dimension), strict=True)
        divergence = sum(
            (self.derivative(u, axis) for u, axis in pairs), jnp.zeros_like(velocity[0])
        )
        potential = self.inverse_laplacian(divergence)
        return tuple(
            u - self.derivative(potential, axis) for axis, u in enumerate(velocity)
        )


def scaled(
    spectrum: Complex[Array, "..."], factor: Float[Any, "..."]
) -> Complex[Array, "..."]:
    """A spectrum times real numbers of the same rank, without complex products."""
    factor = jnp.asarray(factor, spectrum.real.dtype)
    return jax.lax.complex(spectrum.real * factor, spectrum.imag * factor)


def _resampled(x: Array, axis: int, n: int, half: bool) -> Array:
    """One axis of a spectrum brought to the length that goes with `n` points."""
    size = n // 2 + 1 if half else n
    old = x.shape[axis]
    if size == old:
        return x
    x = jnp.moveaxis(x, axis, 0)
    if half:
        out = x[:size]
        out = jnp.pad(out, [(0, max(0, size - old))] + [(0, 0)] * (x.ndim - 1))
        return jnp.moveaxis(out, 0, axis)
    least = min(old, n)
    low, high = (least + 1) // 2, least // 2  # frequencies >= 0, and < 0
    gap = jnp.zeros((n - least, *x.shape[1:]), x.dtype)
    out = jnp.concatenate([x[:low], gap, x[old - high :]])
    return jnp.moveaxis(out, 0, axis)
