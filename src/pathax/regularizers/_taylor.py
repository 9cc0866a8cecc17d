"""A penalty on a high total derivative of the path (TayNODE)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._kinetic import check_normalize, squared
from ._penalty import AbstractIntegralPenalty


def total_derivative(
    field: Any, t: Any, y: PyTree, order: int, *, mode: str = "auto"
) -> PyTree:
    r"""A total derivative of the solution of an ordinary differential equation.

    $\mathrm d^K y / \mathrm dt^K$ at a point, where $\mathrm dy/\mathrm dt = f(t, y)$,
    from derivatives of $f$ alone.

    **Arguments:**

    - `field`: `field(t, y)`.
    - `t`, `y`: the point.
    - `order`: $K$, at least 1.
    - `mode`: `"taylor"` by Taylor arithmetic, of cost $O(K^2)$; `"nested"` by nested
      derivatives, of cost $O(2^K)$; `"auto"` takes the first and, if an operation of
      the field has no Taylor rule, the second.

    **Returns:** a tree like `y`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> field = lambda t, y: -2 * y
    >>> third = px.regularizers.total_derivative(field, 0.0, jnp.ones(2), 3)
    >>> third.tolist()
    [-8.0, -8.0]

    ```
    """
    if mode not in ("auto", "taylor", "nested"):
        raise ValueError(f'`mode` must be "auto", "taylor" or "nested"; got {mode!r}.')
    t = jnp.asarray(t, jnp.result_type(*jax.tree.leaves(y)))
    if mode != "nested":
        try:
            return _by_taylor(field, t, y, order)
        except NotImplementedError:  # JAX has no Taylor rule for some operation
            if mode == "taylor":
                raise
    return _by_nesting(field, t, y, order)


def _by_taylor(field: Any, t: Array, y: PyTree, order: int) -> PyTree:
    from jax.experimental.jet import jet  # takes a while to import

    # Time is one more component, which grows at rate 1.
    leaves, tree = jax.tree.flatten(y)

    def whole(t, *leaves):
        return (jnp.ones_like(t), *jax.tree.leaves(field(t, tree.unflatten(leaves))))

    point = (t, *leaves)
    derivatives = [whole(*point)]
    for _ in range(order - 1):
        series = tuple(list(parts) for parts in zip(*derivatives, strict=True))
        first, rest = jet(whole, point, series)
        columns = [[x, *more] for x, more in zip(first, rest, strict=True)]
        derivatives = list(zip(*columns, strict=True))
    return tree.unflatten(derivatives[order - 1][1:])


def _by_nesting(field: Any, t: Array, y: PyTree, order: int) -> PyTree:
    def along(function):
        def derivative(t, y):
            tangent = (jnp.ones_like(t), field(t, y))
            return jax.jvp(function, (t, y), tangent)[1]

        return derivative

    function = field
    for _ in range(order - 1):
        function = along(function)
    return function(t, y)


class TaylorDerivative(AbstractIntegralPenalty):
    r"""The squared norm of a total derivative of the path, along the path.

    $$ \int_{t_0}^{t_1} \Bigl\lVert \frac{\mathrm d^K y}{\mathrm dt^K} \Bigr\rVert^2
       \mathrm dt . $$

    **Arguments:**

    - `order`: $K$, at least 2 (1 is [`pathax.regularizers.KineticEnergy`][]).
    - `normalize`: `"sum"` or `"mean"` over the components of the state.
    - `mode`: as for [`pathax.regularizers.total_derivative`][].

    **Raises:** `ValueError` for another order or `normalize`.

    **Cost:** $O(K^2)$ evaluations for each one of the solver, in training alone;
    $O(2^K)$ where an operation of the field has no Taylor rule.

    **Gradients:** with every adjoint.

    **Precision:** as for [`pathax.regularizers.KineticEnergy`][].

    **Reference:** J. Kelly, J. Bettencourt, M. J. Johnson, D. Duvenaud, "Learning
    Differential Equations that are Easy to Solve", NeurIPS 2020.

    **Example:**

    ```python
    >>> import diffrax as dfx
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> sol, record = px.regularizers.solve(
    ...     dfx.ODETerm(lambda t, y, args: jnp.ones_like(y) * t**2),
    ...     dfx.Tsit5(),
    ...     0.0,
    ...     1.0,
    ...     0.1,
    ...     jnp.ones(1),
    ...     penalties={"third": px.regularizers.TaylorDerivative(3)},
    ... )
    >>> print(f"{record.penalties['third']:.3f}")
    4.000

    ```
    """

    order: int = eqx.field(static=True)
    normalize: str = eqx.field(static=True)
    mode: str = eqx.field(static=True)

    def __init__(self, order: int = 3, *, normalize: str = "mean", mode: str = "auto"):
        if not isinstance(order, int) or order < 2:
            raise ValueError(
                f"`order` must be an integer, at least 2; got {order!r}. For the "
                "first, write `KineticEnergy()`."
            )
        check_normalize(normalize)
        self.order, self.normalize, self.mode = order, normalize, mode

    def rate(self, field: Any, t: Array, y: PyTree, direction: PyTree) -> Array:
        found = total_derivative(field, t, y, self.order, mode=self.mode)
        return squared(found, self.normalize)
