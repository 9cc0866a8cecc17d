"""The Fourier neural operator."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._pointwise import ChannelMLP, at_points
from ._spectral_conv import SpectralConv, moved


def positions(shape: tuple[int, ...], dtype: Any) -> Array:
    """Coordinates `i / n` of a periodic grid, `(d, *shape)`."""
    axes = [jnp.arange(n, dtype=dtype) / n for n in shape]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"))


class FNO(eqx.Module):
    r"""Fourier neural operator in one, two or three dimensions.

    $$v_0 = P(u, x), \qquad v_{l+1} = \sigma(K_l v_l + W_l v_l + c_l), \qquad
      y = Q(v_L),$$

    with spectral convolutions $K_l$, matrices $W_l$ and offsets $c_l$ on channels, and
    networks $P$ and $Q$ of two layers at every point; no $\sigma$ after the last $K_l$.
    With `mixing`, each layer is followed by
    $v \leftarrow \sigma(N_l v + g_l \odot v_l)$, a network $N_l$ of two layers at every
    point and a gate $g_l$ a channel on what the layer was given.

    **Arguments:**

    - `in_channels`, `out_channels`: channels of the input and of the output.
    - `modes`: modes of the convolutions along each axis, one to three numbers; see
      [`pathax.operators.SpectralConv`][].
    - `width`: channels inside.
    - `depth`: number of spectral convolutions.
    - `ratio`: hidden width of $P$ and $Q$ over `width`.
    - `mixing`: hidden width of $N_l$ over `width`, or `None` for none.
    - `activation`: $\sigma$.
    - `coordinates`: whether $P$ sees the coordinates $x \in [0, 1)^d$. Without them the
      operator commutes with shifts by a grid point.
    - `key`: random key of the parameters.
    - `dtype`: of the parameters; JAX's default if `None`.

    Called with `u` of shape `(in_channels, n_1, ..., n_d)` and, as an option,
    `out_shape`, the grid of the output. For time-dependent fields the frames are
    channels, so their number is fixed; [`pathax.operators.STFNO`][] has them on an axis
    of their own.

    **Attributes:**

    - `lift`, `project`: the networks $P$ and $Q$.
    - `convolutions`, `skips`: $K_l$, and $W_l$ with $c_l$.
    - `mixers`, `gates`: $N_l$ and $g_l$, or `None`.

    **Raises:** `ValueError` for a grid that is too coarse for the modes.

    **Cost:** `depth` spectral convolutions and as many matrix products at every point.

    **Gradients:** of input and parameters, in both modes.

    **Precision:** that of the FFT. The output on a finer grid differs by the aliasing
    of $\sigma$, which makes modes that a grid cannot hold.

    **Reference:** Li et al., Fourier neural operator for parametric partial
    differential equations, ICLR 2021, equation 2 and figure 2. With `mixing=0.5` and
    the exact GELU it is the default model of the library `neuraloperator` 2.0, number
    by number.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = px.operators.FNO(1, 1, (8,), width=8, depth=2, key=jax.random.key(0))
    >>> model(jnp.ones((1, 64))).shape
    (1, 64)
    >>> model(jnp.ones((1, 64)), out_shape=(128,)).shape
    (1, 128)

    ```
    """

    lift: ChannelMLP
    convolutions: tuple[SpectralConv, ...]
    skips: tuple[eqx.nn.Linear, ...]
    mixers: tuple[ChannelMLP, ...] | None
    gates: tuple[Float[Array, " width"], ...] | None
    project: ChannelMLP
    activation: Callable[[Array], Array] = eqx.field(static=True)
    coordinates: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: tuple[int, ...],
        *,
        width: int = 32,
        depth: int = 4,
        ratio: int = 2,
        mixing: float | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        coordinates: bool = True,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        if depth < 1 or width < 1:
            raise ValueError(
                f"`depth` and `width` must be at least 1; got {depth} and {width}."
            )
        keys = jax.random.split(key, 3 * depth + 2)
        inputs = in_channels + len(modes) * coordinates
        mlp = functools.partial(ChannelMLP, activation=activation, dtype=dtype)
        hidden = ratio * width
        self.lift = mlp(inputs, hidden, width, key=keys[0])
        self.project = mlp(width, hidden, out_channels, key=keys[1])
        self.convolutions = tuple(
            SpectralConv(width, width, modes, key=k, dtype=dtype)
            for k in keys[2 : depth + 2]
        )
        self.skips = tuple(
            eqx.nn.Linear(width, width, dtype=dtype, key=k)
            for k in keys[depth + 2 : 2 * depth + 2]
        )
        self.mixers, self.gates = None, None
        if mixing is not None:
            hidden, dtype = round(mixing * width), self.skips[0].weight.dtype
            self.mixers = tuple(
                mlp(width, hidden, width, key=k) for k in keys[2 * depth + 2 :]
            )
            self.gates = tuple(jnp.ones(width, dtype) for _ in range(depth))
        self.activation, self.coordinates = activation, coordinates

    def __call__(
        self,
        u: Float[Array, "inputs *grid"],
        out_shape: tuple[int, ...] | None = None,
    ) -> Float[Array, "outputs *grid2"]:
        """The operator on one example."""
        if self.coordinates:
            u = jnp.concatenate([u, positions(u.shape[1:], u.dtype)])
        v = self.lift(u)
        for i in range(len(self.skips)):
            v = self._layer(i, v, out_shape)
        return self.project(v)

    def _layer(self, i: int, v: Array, out_shape: tuple[int, ...] | None) -> Array:
        last = i == len(self.skips) - 1
        shape = v.shape[1:] if out_shape is None or not last else tuple(out_shape)
        activation = (lambda x: x) if last else self.activation
        resample = jax.vmap(lambda x: moved(x, shape))
        skipped = resample(at_points(self.skips[i], v))
        w = activation(self.convolutions[i](v, shape) + skipped)
        if self.mixers is None or self.gates is None:
            return w
        gate = self.gates[i].reshape(-1, *(1,) * len(shape))
        return activation(self.mixers[i](w) + gate * resample(v))
