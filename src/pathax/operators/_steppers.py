"""Marching in time: what makes data, and what refinement is compared with."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from ._grid import Grid, scaled
from ._semilinear import AbstractSemilinear


Spectrum = Complex[Array, "*half"]
Step = Callable[[Spectrum], Spectrum]

# Five stages of order four that need one register: Carpenter and Kennedy 1994, with
# implicit parts as in Canuto et al. 2007, appendix D.3.
_ALPHA = (0.0, 0.1496590219993, 0.3704009573644, 0.6222557631345, 0.9582821306748, 1.0)
_BETA = (0.0, -0.4178904745, -1.192151694643, -1.697784692471, -1.514183444257)
_GAMMA = (
    0.1496590219993,
    0.3792103129999,
    0.8229550293869,
    0.6994504559488,
    0.1530572479681,
)
_CIRCLE = 32  # points of the contour on which functions of the linear part are taken


def _parts(
    equation: AbstractSemilinear, grid: Grid
) -> tuple[Array, Callable[[Spectrum], Spectrum]]:
    """The symbol of the linear part, and all the rest."""
    force = equation.forcing(grid)

    def explicit(w: Spectrum) -> Spectrum:
        return equation.nonlinear(grid, w) + force.astype(w.dtype)

    symbol = jnp.asarray(equation.linear(grid))
    return symbol.astype(np.result_type(symbol.dtype, np.complex64)), explicit


def _imex_rk4_cn(equation: AbstractSemilinear, grid: Grid, dt: float) -> Step:
    """Explicit in five stages of order four, Crank-Nicolson in each for the rest."""
    linear, explicit = _parts(equation, grid)

    def step(w: Spectrum) -> Spectrum:
        h = jnp.zeros_like(w)
        for s in range(5):
            h = explicit(w) + _BETA[s] * h
            m = dt * (_ALPHA[s + 1] - _ALPHA[s]) / 2
            w = (w + _GAMMA[s] * dt * h + m * linear * w) / (1 - m * linear)
        return w

    return step


def _heun_cn(equation: AbstractSemilinear, grid: Grid, dt: float) -> Step:
    """Heun's method with Crank-Nicolson: order two."""
    linear, explicit = _parts(equation, grid)
    forward, backward = 1 + dt / 2 * linear, 1 / (1 - dt / 2 * linear)

    def step(w: Spectrum) -> Spectrum:
        first = explicit(w)
        guess = (forward * w + dt * first) * backward
        return (forward * w + dt / 2 * (first + explicit(guess))) * backward

    return step


def _ifrk4(equation: AbstractSemilinear, grid: Grid, dt: float) -> Step:
    """The classical method of order four with the linear part integrated exactly."""
    linear, explicit = _parts(equation, grid)
    half = jnp.exp(dt / 2 * linear)
    whole = half * half

    def step(w: Spectrum) -> Spectrum:
        k0 = explicit(w)
        k1 = explicit(half * (w + dt / 2 * k0))
        k2 = explicit(half * w + dt / 2 * k1)
        k3 = explicit(whole * w + dt * half * k2)
        mean = whole * k0 + 2 * half * (k1 + k2) + k3
        return whole * w + dt / 6 * mean

    return step


def _etdrk4(equation: AbstractSemilinear, grid: Grid, dt: float) -> Step:
    """Exponential time differencing of order four, its functions by a contour."""
    linear, explicit = _parts(equation, grid)
    z = dt * linear
    angles = 2 * np.pi * (np.arange(_CIRCLE) + 0.5) / _CIRCLE
    circle = jnp.asarray(np.exp(1j * angles), z.dtype)
    at = z[..., None] + circle.reshape((1,) * z.ndim + (-1,))
    mean = lambda values: jnp.mean(values, axis=-1)

    e = jnp.exp(at)
    half, whole = jnp.exp(z / 2), jnp.exp(z)
    q = dt * mean((jnp.exp(at / 2) - 1) / at)
    f0 = dt * mean((-4 - at + e * (4 - 3 * at + at**2)) / at**3)
    f1 = dt * mean((2 + at + e * (at - 2)) / at**3)
    f2 = dt * mean((-4 - 3 * at - at**2 + e * (4 - at)) / at**3)

    def step(w: Spectrum) -> Spectrum:
        n0 = explicit(w)
        a = half * w + q * n0
        n1 = explicit(a)
        n2 = explicit(half * w + q * n1)
        n3 = explicit(half * a + q * (2 * n2 - n0))
        return whole * w + f0 * n0 + 2 * f1 * (n1 + n2) + f2 * n3

    return step


STEPPERS: dict[str, Callable[[AbstractSemilinear, Grid, float], Step]] = {
    "etdrk4": _etdrk4,
    "ifrk4": _ifrk4,
    "imex_rk4_cn": _imex_rk4_cn,
    "heun_cn": _heun_cn,
}


def stepper(
    equation: AbstractSemilinear, grid: Grid, dt: float, method: str = "etdrk4"
) -> Step:
    r"""One step of a method, from half spectrum to half spectrum.

    **Arguments:**

    - `equation`, `grid`: what is marched, and where.
    - `dt`: the step.
    - `method`: `"etdrk4"`, exponential time differencing of order four; `"ifrk4"`, an
      integrating factor and the classical method of order four; `"imex_rk4_cn"`, order
      four for the nonlinear part and Crank-Nicolson, order two, for the linear one;
      `"heun_cn"`, order two.

    **Returns:** a function of half spectra, to be compiled by the caller.

    **Raises:** `ValueError` for methods that don't exist.

    **Cost:** four evaluations of the nonlinear part a step; five of `"imex_rk4_cn"`,
    two of `"heun_cn"`.

    **Reference:** Kassam and Trefethen, Fourth-order time-stepping for stiff PDEs, SIAM
    Journal on Scientific Computing 26 (2005), equations 2.4 to 2.6; Canuto, Hussaini,
    Quarteroni and Zang, Spectral methods: evolution to complex geometries, Springer
    2007, appendix D.3; Chandler and Kerswell, Invariant recurrent solutions embedded in
    a turbulent two-dimensional Kolmogorov flow, Journal of Fluid Mechanics 722 (2013).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> step = px.operators.stepper(px.operators.Burgers(1.0), grid, 0.01)
    >>> step(grid.rfft(jnp.sin(grid.points()[0]))).shape
    (9,)

    ```
    """
    if method not in STEPPERS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, STEPPERS))}; got {method!r}."
        )
    return STEPPERS[method](equation, grid, dt)


def integrate(
    equation: AbstractSemilinear,
    grid: Grid,
    initial: Float[Array, "*grid"],
    times: Any,
    *,
    dt: float,
    method: str = "etdrk4",
) -> Float[Array, "times *grid"]:
    """Fields at increasing times, from one at time zero.

    **Arguments:**

    - `equation`, `grid`: what is marched, and where.
    - `initial`: the field at time zero; what the 2/3 rule drops of it is dropped.
    - `times`: concrete numbers, not negative.
    - `dt`: the longest step; between two times all steps are equal.
    - `method`: see [`pathax.operators.stepper`][].

    **Returns:** one field a time.

    **Raises:** `ValueError` for times that don't increase, or methods that don't exist.

    **Cost:** of each step, that of [`pathax.operators.stepper`][]; one compilation for
    each number of steps between times.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> grid = px.operators.Grid((16,), (2 * jnp.pi,))
    >>> waves = px.operators.integrate(
    ...     px.operators.Burgers(0.1),
    ...     grid,
    ...     jnp.sin(grid.points()[0]),
    ...     [0.1, 0.2],
    ...     dt=0.01,
    ... )
    >>> waves.shape
    (2, 16)

    ```
    """
    times = np.atleast_1d(np.asarray(times, np.float64))
    gaps = np.diff(times, prepend=0.0)
    if times.ndim != 1 or not (gaps[0] >= 0 and np.all(gaps[1:] > 0)) or not dt > 0:
        raise ValueError(
            "`integrate` needs increasing times >= 0 and a `dt > 0`; got "
            f"{times.tolist()} and {dt}."
        )
    if initial.shape != grid.shape:
        raise ValueError(
            f"`initial` must be a field of shape {grid.shape}; got {initial.shape}."
        )
    w = grid.rfft(initial)
    w = scaled(w, grid.mask("2/3"))
    counts = np.where(gaps > 0, np.maximum(np.ceil(gaps / dt - 1e-9), 1), 0).astype(int)
    if len(times) > 1 and np.allclose(gaps, gaps[0], rtol=1e-9) and counts[0] > 0:
        counts[:] = counts[0]
        step = float(gaps[0] / counts[0])
        shots = _frames(equation, grid, w, step, (int(counts[0]), len(times)), method)
        return shots
    frames = []
    for gap, count in zip(gaps, counts, strict=True):
        if count:
            step = float(gap / count)
            w, _ = _march(equation, grid, w, step, (int(count), 1), method)
        frames.append(grid.irfft(w))
    return jnp.stack(frames)


@eqx.filter_jit
def _march(equation, grid, w, dt, counts, method):
    """`counts[1]` times `counts[0]` steps; the spectra after each of those times."""
    step = stepper(equation, grid, dt, method)
    several = lambda w, _: (
        (jax.lax.fori_loop(0, counts[0], lambda _, w: step(w), w),) * 2
    )
    return jax.lax.scan(several, w, None, length=counts[1])


def _frames(equation, grid, w, dt, counts, method) -> Array:
    _, spectra = _march(equation, grid, w, dt, counts, method)
    return grid.irfft(spectra)
