"""The coordinates in which Langevin chains have unit mass, and what goes into them."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


# On the host, or in a compiled function.
_Vector = Float[np.ndarray, " d"] | Float[Array, " d"]
_Matrix = Float[np.ndarray, "d d"] | Float[Array, "d d"]


class Linear(eqx.Module):
    """`x = factor z`, of a vector or a matrix.

    Methods of one point `z` are for compiled functions, in the dtype of the chains;
    those of many, `(n, d)`, are for the host, in double precision.
    """

    factor: _Vector | _Matrix

    def cast(self, dtype: np.dtype) -> "Linear":
        return Linear(jnp.asarray(self.factor, dtype))

    def to_x(self, z: Float[Array, " d"]) -> Float[Array, " d"]:
        factor = jnp.asarray(self.factor)
        return factor * z if factor.ndim == 1 else factor @ z

    def log_volume(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log of the Jacobian determinant, up to a constant."""
        return jnp.zeros((), z.dtype)

    def to_z(self, x: np.ndarray) -> np.ndarray:
        if self.factor.ndim == 1:
            return x / self.factor
        return np.linalg.solve(self.factor, x.T).T

    def slopes_to_z(self, z: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Gradients of the potential of `z`, from those of the potential of `x`."""
        del z
        return g * self.factor if self.factor.ndim == 1 else g @ self.factor

    def slopes_to_x(self, z: np.ndarray, g: np.ndarray) -> np.ndarray:
        """The other way round."""
        del z
        if self.factor.ndim == 1:
            return g / self.factor
        return np.linalg.solve(self.factor.T, g.T).T


class ConditionalScale(eqx.Module):
    r"""Coordinates whose scales depend on other coordinates.

    With $u$ the entries of $x$ in a certain order, and $A$, $B$ strictly lower
    triangular,

    $$u_i = m_i + \sum_{j<i} A_{ij} z_j + \exp\Bigl(a_i + \sum_{j<i} B_{ij} z_j\Bigr)
      z_i.$$

    With $B = 0$ that is a Cholesky factor; with it the density of $x$, for $z$ normal,
    is of a hierarchy in which some entries are logarithms of the spreads of others.

    **Attributes:**

    - `order`: $u_i = x_{order_i}$.
    - `centre`: $m$, in that order, as all that follows.
    - `shift`: $A$.
    - `log_scale`: $a$.
    - `rates`: $B$.

    **Raises:** nothing; made by [`pathax.simulation.langevin`][].

    **Gradients:** of `to_x` and `log_volume`, in either mode. The other methods are for
    the host, in double precision.

    **Cost:** $d^2$ operations a point.

    **Precision:** that of the dtype; the inverse loses as many digits as there are in
    the ratio of the largest to the smallest scale.

    **Reference:** triangular maps as in G. Papamakarios et al., Normalizing flows for
    probabilistic modeling and inference, JMLR 22 (2021).

    **Example:** a funnel of two entries, the second of which rules the first.

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> of = px.simulation.ConditionalScale(
    ...     order=jnp.array([1, 0]),
    ...     centre=jnp.zeros(2),
    ...     shift=jnp.zeros((2, 2)),
    ...     log_scale=jnp.log(jnp.array([3.0, 1.0])),
    ...     rates=jnp.array([[0.0, 0.0], [1.5, 0.0]]),
    ... )
    >>> [round(float(x), 3) for x in of.to_x(jnp.array([1.0, 1.0]))]
    [4.482, 3.0]

    ```
    """

    order: Int[np.ndarray, " d"] | Int[Array, " d"]
    centre: _Vector
    shift: _Matrix
    log_scale: _Vector
    rates: _Matrix

    def cast(self, dtype: np.dtype) -> "ConditionalScale":
        """The same in another dtype, as arrays of JAX."""
        rest = self.centre, self.shift, self.log_scale, self.rates
        order = jnp.asarray(self.order, jnp.int32)
        return ConditionalScale(order, *(jnp.asarray(part, dtype) for part in rest))

    def to_x(self, z: Float[Array, " d"]) -> Float[Array, " d"]:
        """The point of coordinates `z`."""
        scale = jnp.exp(self.log_scale + self.rates @ z)
        u = self.centre + self.shift @ z + scale * z
        return jnp.zeros_like(u).at[self.order].set(u)

    def log_volume(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log of the Jacobian determinant, up to a constant."""
        return jnp.sum(self.rates @ z)

    def to_z(self, x: np.ndarray) -> np.ndarray:
        """Coordinates of many points, one entry after the other."""
        u, z = x[:, self.order], np.zeros_like(x)
        for i in range(x.shape[1]):
            scale = np.exp(self.log_scale[i] + z @ self.rates[i])
            z[:, i] = (u[:, i] - self.centre[i] - z @ self.shift[i]) / scale
        return z

    def _scales(self, z: np.ndarray) -> np.ndarray:
        return np.exp(self.log_scale + z @ self.rates.T)

    def slopes_to_z(self, z: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Gradients of the potential of `z`, from those of the potential of `x`."""
        g, scaled = g[:, self.order], self._scales(z)
        return g @ self.shift + scaled * g + (g * scaled * z - 1) @ self.rates

    def slopes_to_x(self, z: np.ndarray, g: np.ndarray) -> np.ndarray:
        """The other way round, one entry after the other from the last."""
        scales, left = self._scales(z), g + self.rates.sum(0)
        out = np.zeros_like(left)
        for i in reversed(range(z.shape[1])):
            slope = left[:, i] / scales[:, i]
            left -= slope[:, None] * self.shift[i]
            left -= (slope * scales[:, i] * z[:, i])[:, None] * self.rates[i]
            out[:, self.order[i]] = slope
        return out


ConditionalScale.__module__ = "pathax.simulation"

Coordinates = Linear | ConditionalScale
