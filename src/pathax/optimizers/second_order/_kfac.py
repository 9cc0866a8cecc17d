"""KFAC: a Kronecker product for the Fisher matrix of each layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ...curvature import kron
from .._extras import is_due, when
from .._inject import static_args
from ._adahessian import with_decay_and_rate
from ._kronecker import (
    check_settings,
    eigenbasis,
    identities,
    kl_limited,
    refresh_factors,
    rotate,
    rotate_back,
    unbiased,
    zero_factors,
)
from ._layer_blocks import Block, Blocks
from ._moments import Scalar, check_choice, one_more, scalar


class KFACState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_kfac`][].

    Factors and bases are tuples with one entry a layer. They are arrays like any other,
    so they may be placed on the devices of a mesh as one likes.

    **Attributes:**

    - `count`: steps taken.
    - `refreshes`: how often the factors were refreshed.
    - `left`: running sums of the factors of outputs, which weigh `1 - decay^refreshes`.
    - `right`: those of inputs.
    - `basis_left`: inverses of the damped factors of outputs; with `damping_rule` of
      `"exact"` their eigenvectors.
    - `basis_right`: those of inputs.
    - `eig`: with `"exact"` a pair of eigenvalues of both factors, else `None`.
    """

    count: Array
    refreshes: Array
    left: tuple
    right: tuple
    basis_left: tuple
    basis_right: tuple
    eig: tuple


# Inverses ---------------------------------------------------------------------------


def _inverse(factor: Array, damping: Array) -> Array:
    eye = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
    lower = jnp.linalg.cholesky(factor + damping * eye)
    half = jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    return half.swapaxes(-1, -2) @ half


def factored_inverses(left: Array, right: Array, damping: Any) -> tuple[Array, Array]:
    """Inverses of both factors, with the damping split by their mean eigenvalues."""
    means = [
        jnp.trace(f, axis1=-2, axis2=-1)[..., None, None] / f.shape[-1]
        for f in (left, right)
    ]
    usable = (means[0] > 0) & (means[1] > 0)
    ratio = jnp.where(usable, means[1], 1) / jnp.where(usable, means[0], 1)
    pi, root = jnp.sqrt(ratio), jnp.sqrt(scalar(damping, left))
    return _inverse(left, root / pi), _inverse(right, root * pi)


def _decompose(
    blocks: Blocks, left: list, right: list, rule: str, damping: Any
) -> tuple[tuple, tuple, tuple]:
    """Bases or inverses of both sides, and eigenvalues."""

    def factored(block: Block, s: Array, a: Array) -> Any:
        return (*factored_inverses(s, a, damping), None)

    def exact(block: Block, s: Array, a: Array) -> Any:
        (s_values, s_vectors), (a_values, a_vectors) = eigenbasis(s), eigenbasis(a)
        return s_vectors, a_vectors, (s_values, a_values)

    found = blocks.map(factored if rule == "factored" else exact, left, right)
    parts = (tuple(None if f is None else f[i] for f in found) for i in range(3))
    basis_left, basis_right, eig = parts
    return basis_left, basis_right, eig


def _initial_eig(blocks: Blocks, rule: str) -> tuple:
    def ones(block: Block) -> Any:
        if rule == "factored":
            return None
        return tuple(
            jnp.ones((*block.lead, block.shape[side]), block.dtype) for side in (-2, -1)
        )

    return tuple(blocks.map(ones))


def _solve(damping: Any) -> Callable[..., Array]:
    """From a gradient to a step, in the way that the state's fields tell."""

    def one(block: Block, w: Array, left: Array, right: Array, eig: Any) -> Array:
        if eig is None:
            return left @ w @ right
        values = eig[0][..., :, None] * eig[1][..., None, :]
        rotated = rotate(left, w, right) / (values + scalar(damping, values))
        return rotate_back(left, rotated, right)

    return one


# Transformation ---------------------------------------------------------------------

_STATIC = ("layers", "damping_rule")


@static_args(*_STATIC)
def scale_by_kfac(
    layers: Sequence[kron.LayerSpec] | None = None,
    damping: Scalar = 1e-3,
    decay: Scalar = 0.95,
    update_interval: int | Array = 1,
    inverse_interval: int | Array = 10,
    *,
    damping_rule: str = "factored",
    kl_clip: Scalar | None = None,
    learning_rate: Scalar | Callable[[Array], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Precondition layers by the inverse of a Kronecker product.

    For a layer with the gradient `W` (of its bias as last column), inputs `a` (with a
    trailing one) and output cotangents `g`, with running means of `A = E[a a^T]` and
    `S = E[g g^T]`, the step is

        (S + sqrt(damping) / pi I)^-1 W (A + pi sqrt(damping) I)^-1,
        pi^2 = (tr A / dim A) / (tr S / dim S)

    or with exact damping, in eigenbases `A = Q_A diag(s_A) Q_A^T` and likewise `S`,

        Q_S ((Q_S^T W Q_A) / (s_S s_A^T + damping)) Q_A^T .

    Layers that are not listed, and all other parameters, pass unchanged. Their steps
    then have another scale; to give them an optimizer of their own write

        optax.multi_transform({"kron": kfac(...), "rest": optax.adam(...)}, labels)

    with `labels` a tree of those two names: statistics of layers that this part does
    not see are not looked at.

    **Arguments:**

    - `layers`: a tuple of [`pathax.curvature.kron.LayerSpec`][]; by default those of an
      instrumented model.
    - `damping`: added to the eigenvalues of the Fisher matrix, so it has its scale.
    - `decay`: of the running means, which are corrected for starting from zero.
    - `update_interval`: refresh the factors at every so many steps.
    - `inverse_interval`: and their inverses or bases, a multiple of it.
    - `damping_rule`: `"factored"` or `"exact"`, see above.
    - `kl_clip`: scale the step of all layers so that
      `learning_rate^2 sum <step, W> <= kl_clip`.
    - `learning_rate`: the rate that is applied later, a number or a schedule; for
      `kl_clip` alone.

    **Returns:** an `optax.GradientTransformationExtraArgs`. Its `update` takes `kron`,
    statistics from [`pathax.curvature.kron.value_and_grad`][] with `stats="factors"` or
    from [`pathax.curvature.kron.fisher_stats`][] (then `S` is that of the true Fisher
    matrix), or a function that returns them, which is called by steps that refresh
    alone; and `update_curvature`, which overrides both intervals. With the Python value
    `False` it needs no `kron`.

    **Raises:** `ValueError` if there are no layers, for statistics that are not theirs
    and for `kl_clip` without `learning_rate`; [`pathax.optimizers.MissingExtraError`][]
    without `kron`.

    **Cost:** four matrices a layer. At every step two products of `in out (in + out)`,
    twice that with `"exact"`; a refresh of inverses takes `O(in^3 + out^3)`.

    **Precision.** Factors are in float32 at least.

    **Reference:** Martens, Grosse, "Optimizing neural networks with Kronecker-factored
    approximate curvature", arXiv:1503.05671 (Section 6.3 for the damping); Pauloski et
    al., "KAISA", arXiv:2107.01739 for intervals and the limit.

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
    >>> tx = optax.chain(px.optimizers.scale_by_kfac(damping=0.1), optax.sgd(0.1))
    >>> state = tx.init(params)
    >>> @jax.jit
    ... def step(params, state, x, y):
    ...     f = px.curvature.kron.value_and_grad(loss, stats="factors")
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
    name = "scale_by_kfac"
    intervals = (update_interval, inverse_interval)
    check_settings(damping, decay, intervals, kl_clip, learning_rate)
    check_choice("damping_rule", damping_rule, ("factored", "exact"))

    def init(params):
        blocks = Blocks(params, layers, name)
        return KFACState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            *zero_factors(blocks),
            *identities(blocks),
            _initial_eig(blocks, damping_rule),
        )

    def update(updates, state, params=None, **extra):
        del params
        blocks = Blocks(updates, layers, name)
        matrices = blocks.matrices()
        due = is_due(state.count, inverse_interval, extra)
        count = state.count
        state = refresh_factors(name, blocks, state, extra, decay, update_interval)

        def renew(state: KFACState) -> KFACState:
            s, a = (
                unbiased(f, decay, state.refreshes) for f in (state.left, state.right)
            )
            left, right, eig = _decompose(blocks, s, a, damping_rule, damping)
            return state._replace(basis_left=left, basis_right=right, eig=eig)

        state = when(due, renew, lambda state: state, state)
        parts = (state.basis_left, state.basis_right, state.eig)
        steps = blocks.map(_solve(damping), matrices, *parts)
        steps = kl_limited(blocks, matrices, steps, kl_clip, learning_rate, count)
        return blocks.replaced(steps), state._replace(count=one_more(count))

    return optax.GradientTransformationExtraArgs(init, update)


@static_args(*_STATIC, "mask")
def kfac(
    learning_rate: Scalar | Callable[[Array], Any],
    layers: Sequence[kron.LayerSpec] | None = None,
    damping: Scalar = 1e-3,
    decay: Scalar = 0.95,
    update_interval: int | Array = 1,
    inverse_interval: int | Array = 10,
    *,
    damping_rule: str = "factored",
    kl_clip: Scalar | None = 1e-3,
    momentum: Scalar | None = 0.9,
    weight_decay: Scalar = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """KFAC with a limit of the step and momentum.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `momentum`: of the preconditioned gradients, `optax.trace`; `None` for none.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - the others: see [`pathax.optimizers.scale_by_kfac`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`, whose `update` takes
    statistics of the layers as `kron`.

    **Reference:** Martens, Grosse, arXiv:1503.05671.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> x = jnp.eye(2)
    >>> predict = lambda p: jax.vmap(eqx.combine(p, static))(x)
    >>> tx = px.optimizers.kfac(0.1)
    >>> grads = jax.grad(lambda p: jnp.mean(predict(p) ** 2) / 2)(params)
    >>> stats = px.curvature.kron.fisher_stats(
    ...     predict, params, jax.random.key(1), likelihood="gaussian"
    ... )
    >>> updates, state = tx.update(grads, tx.init(params), params, kron=stats)
    >>> updates.weight.shape
    (1, 2)

    ```
    """
    scale = scale_by_kfac(
        layers,
        damping,
        decay,
        update_interval,
        inverse_interval,
        damping_rule=damping_rule,
        kl_clip=kl_clip,
        learning_rate=learning_rate,
    )
    return with_momentum(scale, momentum, learning_rate, weight_decay, mask)


def with_momentum(
    scale: optax.GradientTransformation,
    momentum: Any,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transformation, then momentum if there is any, then decay and the rate."""
    if momentum is not None:
        scale = optax.chain(scale, optax.trace(decay=momentum))
    return with_decay_and_rate(scale, learning_rate, weight_decay, mask)
