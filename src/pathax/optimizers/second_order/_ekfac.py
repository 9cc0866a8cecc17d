"""EKFAC: the best diagonal in the bases of KFAC."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from ...curvature import kron
from .._extras import is_due, when
from .._inject import static_args
from ._kfac import with_momentum
from ._kronecker import (
    check_settings,
    eigenbasis,
    identities,
    kl_limited,
    rotate,
    rotate_back,
    running_factors,
    unbiased,
    zero_factors,
)
from ._layer_blocks import Block, Blocks, check_shape, read_stats
from ._moments import (
    Scalar,
    check_choice,
    correction,
    mean_update,
    one_more,
    scalar,
)


_NAME = "scale_by_ekfac"


class EKFACState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_ekfac`][].

    Factors, bases and diagonals are tuples with one entry a layer.

    **Attributes:**

    - `count`: steps taken.
    - `refreshes`: how often the factors were refreshed.
    - `left`: running sums of the factors of outputs, which weigh `1 - decay^refreshes`.
    - `right`: those of inputs.
    - `basis_left`: eigenvectors of the factors of outputs.
    - `basis_right`: those of inputs.
    - `diagonal`: second moments of gradients in these bases, shape (out, in).
    """

    count: Array
    refreshes: Array
    left: tuple
    right: tuple
    basis_left: tuple
    basis_right: tuple
    diagonal: tuple


# Diagonals --------------------------------------------------------------------------


def _given_moment(block: Block, stat: kron.LayerStats) -> Array:
    if stat.moment is None:
        raise ValueError(
            'EKFAC with moment="examples" needs second moments in its bases; write '
            'pathax.curvature.kron.value_and_grad(loss, stats="factors", '
            "bases=(state.basis_left, state.basis_right)), where state is the "
            'EKFACState, or take moment="batch"'
        )
    moment = jnp.asarray(stat.moment).astype(block.dtype)
    check_shape(block, moment, block.shape, "gradient")
    return moment


def _renew(
    blocks: Blocks,
    matrices: Sequence[Any],
    stats: Sequence[kron.LayerStats],
    state: EKFACState,
    new_basis: bool | Array,
    moment: str,
    decay: Any,
) -> EKFACState:
    """New factors; then new bases, or else a new term of the diagonal."""
    left, right = running_factors(blocks, stats, state.left, state.right, decay)
    state = state._replace(left=left, right=right, refreshes=one_more(state.refreshes))

    def rebase(state: EKFACState) -> EKFACState:
        sides = (unbiased(f, decay, state.refreshes) for f in (left, right))
        found = [blocks.map(lambda _, f: eigenbasis(f), side) for side in sides]
        bases = [tuple(f and f[1] for f in side) for side in found]
        state = state._replace(basis_left=bases[0], basis_right=bases[1])
        if moment == "batch":
            return state
        product = lambda _, s, a: s[0][..., :, None] * a[0][..., None, :]
        return state._replace(diagonal=tuple(blocks.map(product, *found)))

    def follow(state: EKFACState) -> EKFACState:
        if moment == "batch":
            return state
        new = tuple(blocks.map(_given_moment, stats))
        return state._replace(diagonal=mean_update(new, state.diagonal, decay))

    state = when(new_basis, rebase, follow, state)
    if moment == "batch":
        square = lambda _, w, s, a: rotate(s, w, a) ** 2
        new = blocks.map(square, matrices, state.basis_left, state.basis_right)
        diagonal = mean_update(tuple(new), state.diagonal, decay)
        state = state._replace(diagonal=diagonal)
    return state


# Transformation ---------------------------------------------------------------------

_STATIC = ("layers", "moment")


@static_args(*_STATIC)
def scale_by_ekfac(
    layers: Sequence[kron.LayerSpec] | None = None,
    damping: Scalar = 1e-3,
    decay: Scalar = 0.95,
    update_interval: int | Array = 1,
    inverse_interval: int | Array = 10,
    *,
    moment: str = "examples",
    kl_clip: Scalar | None = None,
    learning_rate: Scalar | Callable[[Array], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Precondition layers by a diagonal in the eigenbases of their Kronecker factors.

    With eigenvectors `Q_S` and `Q_A` of the factors of KFAC and a running mean `D` of
    second moments of the gradients `W_b` of single examples in these bases,

        D ~ E[(Q_S^T W_b Q_A)^2],    step = Q_S ((Q_S^T W Q_A) / (D + damping)) Q_A^T .

    `D` is the best diagonal in its bases; KFAC has the product `s_S s_A^T` of their
    eigenvalues. Everything else passes unchanged.

    **Arguments:**

    - `moment`: `"examples"` is the rule above. It takes the field `moment` of the
      statistics, for which [`pathax.curvature.kron.value_and_grad`][] needs this
      state's bases; at a new basis `D` starts again from the product of eigenvalues.
      `"batch"` takes the gradient `W` of the batch instead of those of examples, a
      quantity about `B` times smaller, as Adam does, and needs no bases.
    - `inverse_interval`: new bases at every so many steps, of those that refresh the
      factors.
    - the others: see [`pathax.optimizers.scale_by_kfac`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes `kron`
    and `update_curvature` as for [`pathax.optimizers.scale_by_kfac`][].

    **Raises:** as there, and `ValueError` if statistics have no `moment` where one is
    needed.

    **Cost:** four matrices a layer and one like its weight. At every step two rotations
    of `2 in out (in + out)`; `moment` costs as much as the factors.

    **Reference:** George et al., "Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis", arXiv:1806.03884, Algorithm 1. For a layer that is
    used several times an example, uses count as examples.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> model = eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> def loss(params, x, y):
    ...     return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)
    >>> tx = optax.chain(px.optimizers.scale_by_ekfac(damping=0.1), optax.sgd(0.1))
    >>> state = tx.init(params)
    >>> @jax.jit
    ... def step(params, state, x, y):
    ...     bases = (state[0].basis_left, state[0].basis_right)
    ...     f = px.curvature.kron.value_and_grad(loss, stats="factors", bases=bases)
    ...     (value, stats), grads = f(params, x, y)
    ...     updates, state = tx.update(grads, state, params, kron=stats)
    ...     return optax.apply_updates(params, updates), state, value
    >>> x, y = jnp.eye(2), jnp.array([[1.0], [-1.0]])
    >>> for _ in range(30):
    ...     params, state, value = step(params, state, x, y)
    >>> bool(value < 0.1)
    True

    ```
    """
    intervals = (update_interval, inverse_interval)
    check_settings(damping, decay, intervals, kl_clip, learning_rate)
    check_choice("moment", moment, ("examples", "batch"))

    def init(params):
        blocks = Blocks(params, layers, _NAME)
        start = jnp.zeros if moment == "batch" else jnp.ones
        return EKFACState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            *zero_factors(blocks),
            *identities(blocks),
            tuple(blocks.map(lambda block: start(block.shape, block.dtype))),
        )

    def update(updates, state, params=None, **extra):
        del params
        blocks = Blocks(updates, layers, _NAME)
        matrices = blocks.matrices()
        new_basis = is_due(state.count, inverse_interval, extra)

        def renew(state: EKFACState) -> EKFACState:
            stats = read_stats(extra, blocks, _NAME)
            return _renew(blocks, matrices, stats, state, new_basis, moment, decay)

        due = is_due(state.count, update_interval, extra)
        count = state.count
        state = when(due, renew, lambda state: state, state)
        weight = jnp.ones(())
        if moment == "batch":
            weight = correction(decay, jnp.maximum(state.refreshes, 1))

        def solve(_: Block, w: Array, s: Array, a: Array, d: Array) -> Array:
            curvature = d / scalar(weight, d) + scalar(damping, d)
            return rotate_back(s, rotate(s, w, a) / curvature, a)

        parts = (state.basis_left, state.basis_right, state.diagonal)
        steps = blocks.map(solve, matrices, *parts)
        steps = kl_limited(blocks, matrices, steps, kl_clip, learning_rate, count)
        return blocks.replaced(steps), state._replace(count=one_more(count))

    return optax.GradientTransformationExtraArgs(init, update)


@static_args(*_STATIC, "mask")
def ekfac(
    learning_rate: Scalar | Callable[[Array], Any],
    layers: Sequence[kron.LayerSpec] | None = None,
    damping: Scalar = 1e-3,
    decay: Scalar = 0.95,
    update_interval: int | Array = 1,
    inverse_interval: int | Array = 10,
    *,
    moment: str = "examples",
    kl_clip: Scalar | None = 1e-3,
    momentum: Scalar | None = 0.9,
    weight_decay: Scalar = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """EKFAC with a limit of the step and momentum.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `momentum`: of the preconditioned gradients, `optax.trace`; `None` for none.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - the others: see [`pathax.optimizers.scale_by_ekfac`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes
    statistics of the layers as `kron`. Its state holds the bases somewhere inside:
    `optax.tree_utils.tree_get(state, "basis_left")`.

    **Reference:** George et al., arXiv:1806.03884.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> loss = lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    >>> tx = px.optimizers.ekfac(0.1, moment="batch")
    >>> f = px.curvature.kron.value_and_grad(loss, stats="factors")
    >>> (value, stats), grads = f(params, jnp.eye(2))
    >>> updates, state = tx.update(grads, tx.init(params), params, kron=stats)
    >>> updates.weight.shape
    (1, 2)

    ```
    """
    scale = scale_by_ekfac(
        layers,
        damping,
        decay,
        update_interval,
        inverse_interval,
        moment=moment,
        kl_clip=kl_clip,
        learning_rate=learning_rate,
    )
    return with_momentum(scale, momentum, learning_rate, weight_decay, mask)
