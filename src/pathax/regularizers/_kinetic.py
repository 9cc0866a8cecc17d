"""Penalties on the vector field along the path (RNODE)."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._penalty import AbstractIntegralPenalty
from ._step import real_dtype


def squared(tree: PyTree, normalize: str) -> Array:
    """Sum, or mean, of the squares of all components."""
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(jnp.abs(x) ** 2) for x in leaves)
    count = sum(x.size for x in leaves) if normalize == "mean" else 1
    return jnp.asarray(total) / jnp.asarray(count, real_dtype(tree))


def check_normalize(normalize: str) -> None:
    """Raise if it isn't a way to put components together."""
    if normalize not in ("sum", "mean"):
        raise ValueError(f'`normalize` must be "sum" or "mean"; got {normalize!r}.')


class KineticEnergy(AbstractIntegralPenalty):
    r"""The kinetic energy along the path.

    $$ \int_{t_0}^{t_1} \lVert f(t, y) \rVert^2\, \mathrm dt . $$

    **Arguments:**

    - `normalize`: `"sum"` or `"mean"` over the components of the state. A state that
      holds a batch is taken as a whole.
    - `half`: whether to take half of it, as the authors' code does with the mean.

    **Raises:** `ValueError` for another `normalize`; in the solve, if the equation has
    no `diffrax.ODETerm`.

    **Cost:** none but a sum of squares an evaluation; the field is evaluated once.

    **Gradients:** with every adjoint.

    **Precision:** the integral is solved for along with the state, by steps that are
    chosen by the state's error alone.

    **Reference:** C. Finlay, J.-H. Jacobsen, L. Nurbekyan, A. Oberman, "How to train
    your neural ODE: the world of Jacobian and kinetic regularization", ICML 2020.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: 2 * jnp.ones_like(y)),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(3),
    ...     penalties={"energy": px.regularizers.KineticEnergy()},
    ... )
    >>> print(f"{record.penalties['energy']:.3f}")
    12.000

    ```
    """

    normalize: str = eqx.field(static=True)
    half: bool = eqx.field(static=True)

    def __init__(self, *, normalize: str = "sum", half: bool = False):
        check_normalize(normalize)
        self.normalize, self.half = normalize, half

    def rate(self, field: Any, t: Array, y: PyTree, direction: PyTree) -> Array:
        value = squared(field(t, y), self.normalize)
        return value * jnp.asarray(0.5 if self.half else 1.0, value.dtype)


class JacobianNorm(AbstractIntegralPenalty):
    r"""The squared Frobenius norm of the field's Jacobian along the path.

    $$ \int_{t_0}^{t_1} \lVert \epsilon^\top \partial_y f(t, y) \rVert^2\, \mathrm dt,
       \qquad \mathbb E\, \lVert \epsilon^\top J \rVert^2 = \lVert J \rVert_F^2 , $$

    with one random direction $\epsilon$ for the whole solve.

    **Arguments:**

    - `mode`: `"vjp"` for $\epsilon^\top J$, or `"jvp"` for $J \epsilon$, which has the
      same mean and may be cheaper.
    - `noise`: `"rademacher"`, of the smaller variance, or `"normal"`.
    - `normalize`: `"sum"` or `"mean"` over the components of the state.

    **Raises:** `ValueError` for other values.

    **Cost:** one product with the Jacobian an evaluation.

    **Gradients:** with every adjoint.

    **Precision:** as for [`pathax.regularizers.KineticEnergy`][].

    **Reference:** C. Finlay et al., ICML 2020.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: jnp.array([1.0, 2.0]) * y),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(2),
    ...     penalties={"jacobian": px.regularizers.JacobianNorm()},
    ...     key=jax.random.key(0),
    ... )
    >>> print(f"{record.penalties['jacobian']:.3f}")
    5.000

    ```
    """

    mode: str = eqx.field(static=True)
    noise: str = eqx.field(static=True)
    normalize: str = eqx.field(static=True)
    needs_direction: ClassVar[bool] = True

    def __init__(
        self,
        *,
        mode: str = "vjp",
        noise: str = "rademacher",
        normalize: str = "sum",
    ):
        if mode not in ("vjp", "jvp"):
            raise ValueError(f'`mode` must be "vjp" or "jvp"; got {mode!r}.')
        if noise not in ("rademacher", "normal"):
            raise ValueError(
                f'`noise` must be "rademacher" or "normal"; got {noise!r}.'
            )
        check_normalize(normalize)
        self.mode, self.noise, self.normalize = mode, noise, normalize

    def direction(self, key: Any, y: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(y)
        keys = jax.random.split(key, len(leaves))
        draw = getattr(jax.random, self.noise)
        return tree.unflatten(
            [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        )

    def rate(self, field: Any, t: Array, y: PyTree, direction: PyTree) -> Array:
        at = lambda y: field(t, y)
        if self.mode == "jvp":
            _, product = jax.jvp(at, (y,), (direction,))
        else:
            _, pull = jax.vjp(at, y)
            (product,) = pull(direction)
        return squared(product, self.normalize)
