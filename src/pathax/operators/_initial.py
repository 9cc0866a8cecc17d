"""Random fields to start from."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._grid import Grid, scaled
from ._semilinear import real_dtype


def gaussian_field(
    key: PRNGKeyArray, grid: Grid, *, smoothness: float = 2.5, tau: float = 7.0
) -> Float[Array, "*grid"]:
    r"""A Gaussian random field without mean.

    $$w \sim \mathcal N\bigl(0, \sigma^2 (-\Delta + \tau^2)^{-\alpha}\bigr), \qquad
      \sigma = \tau^{\alpha - d / 2},$$

    up to a factor $\sqrt 2$ on a box of unit volume: a mode's amplitude is
    $\sqrt 2 \tau^{\alpha - d/2} (|k|^2 + \tau^2)^{-\alpha / 2}$ times a standard
    complex normal number.

    **Arguments:**

    - `key`: a random key. The modes that two grids share get the same numbers only if
      the grids are the same.
    - `grid`: where it is sampled.
    - `smoothness`: $\alpha$.
    - `tau`: an inverse length.

    **Returns:** the field.

    **Reference:** Li et al., Fourier neural operator for parametric partial
    differential equations, ICLR 2021, appendix A.3.

    **Example:**

    ```python
    >>> import jax
    >>> import pathax as px
    >>> grid = px.operators.Grid((16, 16), (1.0, 1.0))
    >>> px.operators.gaussian_field(jax.random.key(0), grid).shape
    (16, 16)

    ```
    """
    k2 = grid.square_wavenumbers()
    scale = np.sqrt(2) * tau ** (smoothness - grid.dimension / 2)
    amplitude = scale * (k2 + tau**2) ** (-smoothness / 2)
    amplitude = amplitude * grid.mask("nyquist")
    amplitude[(0,) * grid.dimension] = 0
    white = jax.random.normal(key, grid.shape, real_dtype())
    amplitude = amplitude * np.sqrt(np.prod(grid.shape))
    return grid.irfft(scaled(grid.rfft(white), amplitude))


def mcwilliams_vorticity(
    key: PRNGKeyArray, grid: Grid, *, peak: float = 4.0, energy: float = 0.25
) -> Float[Array, "*grid"]:
    r"""Vorticity of random eddies whose energy peaks at a wavenumber.

    The stream function has independent normal modes of amplitude proportional to
    $1 / (|k| (1 + (|k| / k_0)^4))$, and is scaled to a kinetic energy.

    **Arguments:**

    - `key`: a random key.
    - `grid`: of two dimensions.
    - `peak`: $k_0$, in radians a length.
    - `energy`: half of the mean square of velocity.

    **Returns:** the vorticity, in the band that the 2/3 rule keeps.

    **Reference:** J. C. McWilliams, The emergence of isolated coherent vortices in
    turbulent flow, Journal of Fluid Mechanics 146 (1984), with the filter as an
    amplitude, as data of neural operators have it.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16, 16), (2 * jnp.pi,) * 2)
    >>> px.operators.mcwilliams_vorticity(jax.random.key(0), grid).shape
    (16, 16)

    ```
    """
    size = np.sqrt(grid.square_wavenumbers())
    safe = np.where(size > 0, size, 1.0)
    density = np.where(size > 0, 1 / (safe * (1 + (safe / peak) ** 4)), 0.0)
    density = density * grid.mask("2/3")
    white = grid.rfft(jax.random.normal(key, grid.shape, real_dtype()))
    vorticity = scaled(white, density * size**2)
    u, v = (grid.irfft(a) for a in grid.velocity(vorticity))
    now = 0.5 * jnp.mean(u**2 + v**2)
    return grid.irfft(vorticity) * jnp.sqrt(energy / now)


def filtered_vorticity(
    key: PRNGKeyArray, grid: Grid, *, peak: float = 4.0, speed: float = 5.0
) -> Float[Array, "*grid"]:
    r"""Vorticity of a random flow whose amplitudes are log-normal in the wavenumber.

    Both components of velocity are white noise times
    $\frac{1}{|k|} \exp\bigl(-2 (\log (|k| / k_0) - \tfrac14)^2\bigr)$, which is
    largest at $k_0$; divergence is projected away, and the flow is scaled to a largest
    speed.

    **Arguments:**

    - `key`: a random key.
    - `grid`: of two dimensions.
    - `peak`: $k_0$, in radians a length.
    - `speed`: the largest length of a velocity.

    **Returns:** the vorticity, in the band that the 2/3 rule keeps.

    **Reference:** Kochkov et al., Machine learning-accelerated computational fluid
    dynamics, PNAS 118 (2021), whose flows start so, with a projection by finite
    volumes.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((24, 24), (2 * jnp.pi,) * 2)
    >>> px.operators.filtered_vorticity(jax.random.key(0), grid).shape
    (24, 24)

    ```
    """
    size = np.sqrt(grid.square_wavenumbers())
    safe = np.where(size > 0, size, 1.0)
    density = np.exp(-2 * (np.log(safe / peak) - 0.25) ** 2) / safe
    density = np.where(size > 0, density, 0.0) * grid.mask("2/3")
    noise = jax.random.normal(key, (2, *grid.shape), real_dtype())
    flow = grid.leray(tuple(scaled(grid.rfft(u), density) for u in noise))
    u, v = (grid.irfft(a) for a in flow)
    largest = jnp.sqrt(jnp.max(u**2 + v**2))
    vorticity = grid.derivative(flow[1], 0) - grid.derivative(flow[0], 1)
    return grid.irfft(vorticity) * (speed / largest)
