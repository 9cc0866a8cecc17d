"""The spatiotemporal Fourier neural operator: frames in, a function of time out."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._head import SpectralHead
from ._pointwise import ChannelMLP, at_points
from ._spectral_conv import SpectralConv
from ._trajectory import Trajectory


class STFNO(eqx.Module):
    r"""Spatiotemporal Fourier neural operator.

    Takes a few frames of a scalar field and returns its next frames at any times of a
    window $[0, T]$, in one evaluation. Space and time are transformed together:

    $$v_1 = \sigma(\ell + F_0 K_0 v_0), \qquad v_{l+1} = \sigma(F_l K_l v_l + W_l v_l),
      \qquad z = R v_L, \qquad w(t) = w_0 + (Q z)(t) - (Q z)(0),$$

    where $v_0$ are the frames with features of place and time, normalized and mixed by
    a matrix, $\ell$ is its last frame, $K_l$ are spectral convolutions over space and
    time, of which $K_0$ brings the frames that come in to those inside, $F_l$ are
    networks of two layers at every point, $W_l$ and $R$ matrices on channels, and $Q$
    is the [`pathax.operators.SpectralHead`][].

    **Arguments:**

    - `modes`: modes of the convolutions along each axis of space and, last, along time.
    - `width`: channels inside.
    - `depth`: number of spectral convolutions, the head's not counted.
    - `frames`: frames inside. As many or more must come in.
    - `horizon`: the window $T$, in the unit in which times are asked for.
    - `ratio`: hidden width of $F_l$ over `width`.
    - `growth`: $\beta$ of the features $e^{\beta s} \sin$ and $\cos(\pi k s)$, where
      $s$ counts the frames that come in, in hundreds.
    - `coordinates`: whether there are features $\sin$ and $\cos(2 \pi x_i)$ of the
      place. Without them the operator commutes with shifts by a grid point.
    - `conserve_mean`: whether the mean over space stays exactly that of the last frame,
      as that of vorticity does.
    - `activation`: $\sigma$.
    - `key`: random key of the parameters.
    - `dtype`: of the parameters; JAX's default if `None`.

    Called with the frames, `(t_in, n_1, ..., n_d)`, the last of which is $w_0$ at time
    zero, and an array of times; returns one frame a time. `trajectory` returns the
    [`pathax.operators.Trajectory`][] itself, which has the time derivative as well.

    **Raises:** `ValueError` for grids or frames that are too few for the modes.

    **Cost:** `depth` spectral convolutions of `frames` frames. The number of times that
    are asked for costs one product of matrices a point.

    **Gradients:** of frames, parameters and times, in both modes.

    **Precision:** that of the FFT. The head doesn't know the grid; the layers before it
    do, through the aliasing of $\sigma$.

    **Reference:** Cao, Brarda, Li and Xi, Spectral-Refiner: accurate fine-tuning of
    spatiotemporal Fourier neural operator for turbulent flows, ICLR 2025. The trunk is
    theirs, up to features of place that are periodic. Their head samples a padded
    period of which the number of frames decides how much is returned and at what
    amplitude; this one is a function of time.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = px.operators.STFNO(
    ...     (4, 4, 3), width=8, depth=2, frames=6, horizon=2.0, key=jax.random.key(0)
    ... )
    >>> frames = jnp.ones((6, 16, 16))
    >>> model(frames, jnp.linspace(0.2, 2.0, 10)).shape
    (10, 16, 16)
    >>> model.trajectory(frames).derivative(0.5).shape
    (16, 16)

    ```
    """

    normalize: eqx.nn.GroupNorm
    embed: eqx.nn.Linear
    convolutions: tuple[SpectralConv, ...]
    mixers: tuple[ChannelMLP, ...]
    skips: tuple[eqx.nn.Linear, ...]
    reduce: eqx.nn.Linear
    head: SpectralHead
    frames: int = eqx.field(static=True)
    growth: float = eqx.field(static=True)
    coordinates: bool = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        modes: tuple[int, ...],
        *,
        width: int = 20,
        depth: int = 4,
        frames: int = 10,
        horizon: float = 1.0,
        ratio: int = 4,
        growth: float = -0.01,
        coordinates: bool = True,
        conserve_mean: bool = True,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        self._check(modes, width, depth, frames, coordinates)
        keys = iter(jax.random.split(key, 3 * depth + 2))
        linear = lambda inputs, outputs: eqx.nn.Linear(
            inputs, outputs, dtype=dtype, key=next(keys)
        )
        self.normalize = eqx.nn.GroupNorm(1, width, eps=1e-7, dtype=dtype)
        self.embed = linear(width, width)
        self.convolutions = tuple(
            SpectralConv(width, width, modes, key=next(keys), dtype=dtype)
            for _ in range(depth)
        )
        self.mixers = tuple(
            ChannelMLP(
                width, ratio * width, width, activation, key=next(keys), dtype=dtype
            )
            for _ in range(depth)
        )
        self.skips = tuple(linear(width, width) for _ in range(depth - 1))
        self.reduce = linear(width, 1)
        self.head = SpectralHead(
            modes,
            horizon=horizon,
            conserve_mean=conserve_mean,
            key=next(keys),
            dtype=dtype,
        )
        self.frames, self.growth, self.coordinates = frames, growth, coordinates
        self.activation = activation

    @staticmethod
    def _check(modes, width, depth, frames, coordinates) -> None:
        if len(modes) < 2:
            raise ValueError(
                "`modes` must have one number for each axis of space and one for time; "
                f"got {modes}."
            )
        least = 2 * (len(modes) - 1) * coordinates + 2
        if depth < 1 or width < least:
            raise ValueError(
                f"`depth` must be at least 1 and `width` at least {least}, for the "
                f"features of place and time; got {depth} and {width}."
            )
        if modes[-1] > frames:
            raise ValueError(
                f"The head needs as many frames inside as modes in time; got {frames} "
                f"frames for {modes[-1]} modes."
            )

    def __call__(
        self,
        frames: Float[Array, "t_in *grid"],
        times: Float[Array, "*t_out"] | float,
    ) -> Float[Array, "..."]:
        """The field at these times, after the frames that are given."""
        return self.trajectory(frames)(times)

    def trajectory(self, frames: Float[Array, "t_in *grid"]) -> Trajectory:
        """The field as a function of time."""
        return self.head(self.latent(frames), frames[-1])

    def latent(self, frames: Float[Array, "t_in *grid"]) -> Float[Array, "frames *g"]:
        """What the head is given: all that a refinement of the head leaves alone."""
        if frames.shape[0] < self.frames:
            raise ValueError(
                f"The operator needs at least {self.frames} frames, as many as it has "
                f"inside; got {frames.shape[0]}."
            )
        x = jnp.moveaxis(frames, 0, -1)[None]
        width = self.embed.in_features
        x = x + features(
            x.shape[1:], int(width), self.growth, self.coordinates, x.dtype
        )
        x = at_points(self.embed, self.normalize(x))
        shape = (*x.shape[1:-1], self.frames)
        lifted = self.mixers[0](self.convolutions[0](x, shape))
        v = self.activation(x[..., -1:] + lifted)
        for conv, mixer, skip in zip(
            self.convolutions[1:], self.mixers[1:], self.skips, strict=True
        ):
            v = self.activation(mixer(conv(v)) + at_points(skip, v))
        return jnp.moveaxis(at_points(self.reduce, v)[0], -1, 0)


def features(
    shape: tuple[int, ...], width: int, growth: float, coordinates: bool, dtype: Any
) -> Array:
    """Features of place and time that are added to the channels, `(width, *shape)`."""
    *grid, count = shape
    axes = len(grid)
    found = []
    for i, n in enumerate(grid if coordinates else ()):
        angles = 2 * math.pi * jnp.arange(n, dtype=dtype) / n
        angles = angles.reshape((n,) + (1,) * (axes - i))
        found += [jnp.sin(angles), jnp.cos(angles)]
    s = jnp.arange(1, count + 1, dtype=dtype) / 100
    found.append(s)
    for k in range(width - len(found)):
        wave = jnp.sin if k % 2 == 0 else jnp.cos
        found.append(jnp.exp(growth * s) * wave(math.pi * (k + 1) * s))
    whole = [x.reshape((1,) * (axes + 1 - x.ndim) + x.shape) for x in found]
    return jnp.stack([jnp.broadcast_to(x, shape) for x in whole])
