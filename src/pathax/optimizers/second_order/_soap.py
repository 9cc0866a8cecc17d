"""SOAP: Adam in the eigenbases of Shampoo's second moments."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._extras import is_due, when
from .._inject import static_args
from ._axes import (
    Fold,
    Matrices,
    each_axis,
    fold,
    join,
    multiply,
    second_moment,
    split,
    start,
)
from ._moments import check_range, correction, one_more, scalar, zeros_wide


_HIGHEST = jax.lax.Precision.HIGHEST


class SOAPState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_soap`][].

    **Attributes:**

    - `count`: steps taken.
    - `mu`: running mean of gradients, in the eigenbases.
    - `nu`: running mean of squared gradients, in the eigenbases. In a complex leaf, of
      the real and of the imaginary coordinates.
    - `left`: second moment of gradients along a leaf's first axis; one by one where
      that axis has no basis.
    - `right`: that of its second axis, or a tuple of those of all later ones.
    - `basis_left`, `basis_right`: their eigenvectors, as columns.
    """

    count: Array
    mu: PyTree
    nu: PyTree
    left: PyTree
    right: PyTree
    basis_left: PyTree
    basis_right: PyTree


class _Leaf(NamedTuple):
    """What is kept of one leaf, as tensors."""

    mu: Array
    nu: Array
    moments: Matrices
    bases: Matrices


@dataclass(frozen=True)
class _Rule:
    """Hyperparameters, given or traced."""

    b1: Any
    b2: Any
    eps: Any
    decay: Any
    skip_first: bool
    bias_correction: bool


def _mean(new: Array, old: Array, decay: Any) -> Array:
    return scalar(1 - decay, new) * new + scalar(decay, old) * old


def _moments(g: Array, fold: Fold) -> Matrices:
    return tuple(
        second_moment(g, i) if i in fold.axes else None for i in range(len(fold.shape))
    )


def _eigenvectors(matrix: Array) -> Array:
    """Eigenvectors, the largest eigenvalue first."""
    return jnp.linalg.eigh(matrix)[1][:, ::-1]


def _begin(leaf: _Leaf, g: Array, fold: Fold, rule: _Rule) -> _Leaf:
    """Second moments of the first gradient, their eigenbases, the rest in these."""
    weigh = lambda m: scalar(1 - rule.decay, m) * m
    moments = each_axis(weigh, _moments(g, fold))
    bases = each_axis(_eigenvectors, moments)
    rotate = lambda x: multiply(x, bases, transpose=True)
    if rule.skip_first:
        return leaf._replace(moments=moments, bases=bases)
    return _Leaf(
        rotate(leaf.mu), scalar(1 - rule.b2, g) * rotate(g) ** 2, moments, bases
    )


def _observe(leaf: _Leaf, g: Array, fold: Fold, rule: _Rule) -> _Leaf:
    mean = lambda new, old: _mean(new, old, rule.decay)
    return leaf._replace(moments=each_axis(mean, _moments(g, fold), leaf.moments))


def _refresh(leaf: _Leaf) -> _Leaf:
    """One power step and QR; the moments follow."""
    nu, bases = leaf.nu, list(leaf.bases)
    for axis, (matrix, basis) in enumerate(zip(leaf.moments, bases, strict=True)):
        if matrix is None or basis is None:
            continue
        image = jnp.matmul(matrix, basis, precision=_HIGHEST)
        order = jnp.argsort(-jnp.sum(basis * image, axis=0))
        bases[axis] = jnp.linalg.qr(image[:, order])[0]
        nu = jnp.take(nu, order, axis=axis)
    mu = multiply(leaf.mu, leaf.bases)
    mu = multiply(mu, tuple(bases), transpose=True)
    return leaf._replace(mu=mu, nu=nu, bases=tuple(bases))


def _step(
    leaf: _Leaf, g: Array, fold: Fold, rule: _Rule, time: Array
) -> tuple[_Leaf, Array]:
    """Adam's step number `time` in the eigenbases; number 0 is none."""
    del fold
    rotated = multiply(g, leaf.bases, transpose=True)
    mu = _mean(rotated, leaf.mu, rule.b1)
    nu = _mean(rotated**2, leaf.nu, rule.b2)
    m, v = mu, nu
    if rule.bias_correction:
        number = jnp.maximum(time, 1)
        m = m / scalar(correction(rule.b1, number), m)
        v = v / scalar(correction(rule.b2, number), v)
    root = jnp.sqrt(v)
    direction = multiply(m / (root + scalar(rule.eps, root)), leaf.bases)
    keep = lambda x, old: jnp.where(time > 0, x, old)
    leaf = leaf._replace(mu=keep(mu, leaf.mu), nu=keep(nu, leaf.nu))
    return leaf, keep(direction, 0)


# State ------------------------------------------------------------------------------


def _zeros(fold: Fold, axis: int) -> Array | None:
    d = fold.shape[axis]
    return jnp.zeros((d, d), fold.dtype) if axis in fold.axes else None


def _identity(fold: Fold, axis: int) -> Array | None:
    return jnp.eye(fold.shape[axis], dtype=fold.dtype) if axis in fold.axes else None


def _read(state: SOAPState, treedef: Any, folds: list[Fold]) -> list[_Leaf]:
    tensors = lambda tree: [
        f.tensor(x) for f, x in zip(folds, treedef.flatten_up_to(tree), strict=True)
    ]
    moments = join(treedef, state.left, state.right, folds)
    bases = join(treedef, state.basis_left, state.basis_right, folds)
    parts = zip(tensors(state.mu), tensors(state.nu), moments, bases, strict=True)
    return [_Leaf(*part) for part in parts]


def _write(
    leaves: list[_Leaf], treedef: Any, folds: list[Fold], count: Array
) -> SOAPState:
    tree = lambda tensors: treedef.unflatten(
        [f.back(x) for f, x in zip(folds, tensors, strict=True)]
    )
    left, right = split(treedef, [leaf.moments for leaf in leaves])
    basis_left, basis_right = split(treedef, [leaf.bases for leaf in leaves])
    mu, nu = tree([leaf.mu for leaf in leaves]), tree([leaf.nu for leaf in leaves])
    return SOAPState(count, mu, nu, left, right, basis_left, basis_right)


# Transformations --------------------------------------------------------------------


@static_args("max_dim", "merge_dims", "skip_first", "bias_correction")
def scale_by_soap(
    b1: float | Array = 0.95,
    b2: float | Array = 0.95,
    eps: float | Array = 1e-8,
    *,
    shampoo_decay: float | Array | None = None,
    update_interval: int | Array = 10,
    max_dim: int = 10_000,
    merge_dims: bool = False,
    skip_first: bool = True,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Adam in the eigenbases of Shampoo's second moments.

    For a matrix `G`, with running means `L` of `G G^T` and `R` of `G^T G` and their
    eigenvectors `Q_L`, `Q_R`,

        G' = Q_L^T G Q_R,    m, v = running means of G', G'^2,
        update = Q_L (m / (sqrt(v) + eps)) Q_R^T    (m, v bias-corrected).

    Every `update_interval` steps each basis takes one power step, `Q <- qr(L Q)`, its
    columns sorted by eigenvalue; `m` is rotated to the new bases, `v` sorted like the
    columns (it is not rotated: squares don't transform linearly). The gradient of a
    step enters `L` and `R` after the step. A tensor of more axes has one basis an axis.
    Leaves with fewer than two axes get plain Adam, as does an axis by itself that is
    longer than `max_dim`.

    **Arguments:**

    - `b1`, `b2`: decays of the running means of `G'` and `G'^2`.
    - `eps`: added to the root; unit of the gradient.
    - `shampoo_decay`: decay of `L` and `R`; `None` takes `b2`.
    - `update_interval`: steps from one refresh of the bases to the next. The extra
      `update_curvature` overrides it.
    - `max_dim`: the longest axis that gets a basis.
    - `merge_dims`: merge neighboring axes as long as their product is at most
      `max_dim`; a convolution kernel becomes a matrix.
    - `skip_first`: the first update is zero, as in the authors' code: the first
      gradient only makes the bases. Otherwise the first step is plain Adam's. (In its
      own bases a gradient is diagonal, and Adam would make full steps of the rounding
      errors beside the diagonal.)
    - `bias_correction`: divide `m` and `v` by `1 - b^t`.

    **Returns:** a transformation; it needs nothing but gradients, and ignores extras.
    Its update is positive: chain it with `optax.scale_by_learning_rate`.

    **Cost.** For an `m x n` matrix, four products of `m n (m + n)` flops and two more
    for `L` and `R` a step; a refresh is `O(m^3 + n^3)`. State: `2 (m^2 + n^2) + 2 m n`
    numbers in float32 (float64 for such leaves), six times a square matrix.

    **Reference:** Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam",
    arXiv:2409.11321, Algorithms 3 and 4; defaults from the authors' code.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.scale_by_soap(skip_first=False)
    >>> params = jnp.eye(2)
    >>> updates, _ = tx.update(3 * params, tx.init(params), params)
    >>> bool(jnp.allclose(updates, params, atol=1e-5))
    True

    ```
    """
    check_range("b1", b1, 0, 1, closed=(True, False))
    check_range("b2", b2, 0, 1, closed=(True, False))
    decay = b2 if shampoo_decay is None else shampoo_decay
    check_range("shampoo_decay", decay, 0, 1, closed=(True, False))
    plan: Callable[[Any], Fold] = lambda leaf: fold(leaf, max_dim, merge_dims, 2)
    rule = _Rule(b1, b2, eps, decay, skip_first, bias_correction)

    def init(params: PyTree) -> SOAPState:
        left, right = start(params, plan, _zeros)
        basis_left, basis_right = start(params, plan, _identity)
        return SOAPState(
            count=jnp.zeros((), jnp.int32),
            mu=zeros_wide(params),
            nu=zeros_wide(params),
            left=left,
            right=right,
            basis_left=basis_left,
            basis_right=basis_right,
        )

    def update(updates, state, params=None, **extra):
        del params
        grads, treedef = jax.tree.flatten(updates)
        folds = [plan(g) for g in grads]
        g = [f.tensor(x) for f, x in zip(folds, grads, strict=True)]
        leaves = _read(state, treedef, folds)
        each = lambda fn, leaves: [
            fn(*parts, rule) for parts in zip(leaves, g, folds, strict=True)
        ]

        first = state.count == 0
        # A skipped step is no step of Adam's.
        time = state.count if skip_first else state.count + 1
        steps = each(functools.partial(_step, time=time), leaves)
        leaves, directions = [s[0] for s in steps], [s[1] for s in steps]

        begin, observe = (functools.partial(each, fn) for fn in (_begin, _observe))
        leaves = when(first, begin, observe, leaves)
        due = is_due(time, update_interval, extra)
        due = due if isinstance(due, bool) else due & ~first
        refresh = lambda leaves: [_refresh(leaf) for leaf in leaves]
        leaves = when(due, refresh, lambda leaves: leaves, leaves)

        new = [
            f.back(d).astype(x.dtype)
            for f, d, x in zip(folds, directions, grads, strict=True)
        ]
        state = _write(leaves, treedef, folds, one_more(state.count))
        return treedef.unflatten(new), state

    return optax.GradientTransformationExtraArgs(init, update)


@static_args("max_dim", "merge_dims", "skip_first", "bias_correction", "mask")
def soap(
    learning_rate: optax.ScalarOrSchedule = 3e-3,
    b1: float | Array = 0.95,
    b2: float | Array = 0.95,
    eps: float | Array = 1e-8,
    *,
    weight_decay: float | Array = 0.01,
    mask: Any = None,
    shampoo_decay: float | Array | None = None,
    update_interval: int | Array = 10,
    max_dim: int = 10_000,
    merge_dims: bool = False,
    skip_first: bool = True,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SOAP with decoupled weight decay; see [`pathax.optimizers.scale_by_soap`][].

    **Arguments:**

    - `learning_rate`: a number or an Optax schedule.
    - `weight_decay`: times the parameters, is added to the update before the learning
      rate.
    - `mask`: a tree of booleans, or a function from parameters to one: where weight
      decay acts.
    - All others: see [`pathax.optimizers.scale_by_soap`][].

    **Returns:** a transformation; `update` needs `params`.

    **Reference:** Vyas et al., arXiv:2409.11321; the defaults are those of the authors'
    code. There, weight decay acts after the step, here on the parameters before it, as
    everywhere in Optax: a difference of second order in the learning rate.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.soap(0.1, skip_first=False, weight_decay=0.0)
    >>> params = jnp.eye(2)
    >>> updates, _ = tx.update(3 * params, tx.init(params), params)
    >>> bool(jnp.allclose(updates, -0.1 * params, atol=1e-5))
    True

    ```
    """
    return optax.chain(
        scale_by_soap(
            b1,
            b2,
            eps,
            shampoo_decay=shampoo_decay,
            update_interval=update_interval,
            max_dim=max_dim,
            merge_dims=merge_dims,
            skip_first=skip_first,
            bias_correction=bias_correction,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
