"""Shampoo: a root of second moments along every axis of a tensor."""

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
    square_sums,
    start,
)
from ._moments import check_choice, check_range, correction, one_more, scalar


_HIGHEST = jax.lax.Precision.HIGHEST


class ShampooState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_shampoo`][].

    **Attributes:**

    - `count`: steps taken.
    - `left`: second moment of gradients along a leaf's first axis; a vector, its
      diagonal, where the axis is too long; one by one where its
      length is one.
    - `right`: that of its second axis, or a tuple of those of all later ones.
    - `root_left`, `root_right`: inverse roots of the matrices at the last refresh.
    - `grafting`: the state of the transformation that gives updates their length.
    """

    count: Array
    left: PyTree
    right: PyTree
    root_left: PyTree
    root_right: PyTree
    grafting: Any


# Roots ------------------------------------------------------------------------------


def _root_eigh(matrix: Array, eps: Array, power: float) -> Array:
    """`(M + eps I)^power` of a positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    # Rounding makes the smallest eigenvalues negative; eps may be smaller than that.
    scaled = (jnp.maximum(values, 0) + eps) ** power
    return jnp.matmul(vectors * scaled[None, :], vectors.T, precision=_HIGHEST)


def _root_newton(matrix: Array, eps: Array, power: float) -> Array:
    """The same by Newton's iteration, in float32."""
    single = matrix.astype(jnp.float32)
    shifted = single + eps.astype(jnp.float32) * jnp.eye(len(matrix), dtype="float32")
    root, error = optax.matrix_inverse_pth_root(
        shifted, round(-1 / power), ridge_epsilon=0.0
    )
    # At condition numbers of 1e3, the iteration gives up on one matrix in twenty, with
    # an error near one.
    return jax.lax.cond(
        jnp.asarray(error) < 1e-3,
        lambda: jnp.asarray(root, matrix.dtype),
        lambda: _root_eigh(matrix, eps, power),
    )


_ROOTS: dict[str, Callable] = {"eigh": _root_eigh, "newton": _root_newton}


def _check_root(root: str, exponent: float | None, order: int) -> float:
    """The power that every axis' second moment is raised to."""
    power = -1 / (2 * order) if exponent is None else -exponent
    if root == "newton" and round(-1 / power, 6) not in (1, 2, 4, 8):
        raise ValueError(
            'root="newton" takes roots of order 1, 2, 4 and 8; this leaf needs '
            f'{-1 / power:g}. Write root="eigh", or merge_dims=True'
        )
    return power


# Axes -------------------------------------------------------------------------------


def _is_diagonal(fold: Fold, axis: int) -> bool:
    """Whether an axis has a vector: it is too long, or the leaf is one number."""
    only = axis == 0 and max(fold.shape) <= 1
    return only or (fold.shape[axis] > 1 and axis not in fold.axes)


def _moment(fold: Fold, axis: int) -> Array | None:
    d = fold.shape[axis]
    if axis in fold.axes:
        return jnp.zeros((d, d), fold.dtype)
    return jnp.zeros(d, fold.dtype) if _is_diagonal(fold, axis) else None


def _identity(fold: Fold, axis: int) -> Array | None:
    return jnp.eye(fold.shape[axis], dtype=fold.dtype) if axis in fold.axes else None


def _moments(g: Array, fold: Fold) -> Matrices:
    def one(axis: int) -> Array | None:
        if axis in fold.axes:
            return second_moment(g, axis)
        return square_sums(g, axis) if _is_diagonal(fold, axis) else None

    return tuple(one(axis) for axis in range(len(fold.shape)))


def _graft(direction: Array, length: Array) -> Array:
    norm = jnp.linalg.norm(direction.reshape(-1))
    ratio = jnp.linalg.norm(length.reshape(-1)) / jnp.where(norm > 0, norm, 1)
    return direction * jnp.where(norm > 0, ratio, 0)


@dataclass(frozen=True)
class _Rule:
    """What becomes of gradients: second moments, then their roots."""

    decay: float | None
    eps: Any
    root: str
    exponent: float | None
    bias_correction: bool

    def observe(self, moments: Matrices, g: Array, fold: Fold) -> Matrices:
        def one(new: Array, old: Array) -> Array:
            if self.decay is None:
                return old + new
            return scalar(self.decay, old) * old + scalar(1 - self.decay, new) * new

        return each_axis(one, _moments(g, fold), moments)

    def _root(self, moment: Array, fold: Fold, count: Array) -> Array:
        power = _check_root(self.root, self.exponent, fold.order)
        if self.decay is not None and self.bias_correction:
            moment = moment / scalar(correction(self.decay, count), moment)
        shift = scalar(self.eps, moment)
        if moment.ndim == 1:
            return (moment + shift) ** power
        return _ROOTS[self.root](moment, shift, power)

    def roots(self, moments: Matrices, fold: Fold, count: Array) -> Matrices:
        """Inverse roots of the matrices."""
        return tuple(
            self._root(m, fold, count) if m is not None and m.ndim == 2 else None
            for m in moments
        )

    def apply(
        self, g: Array, moments: Matrices, roots: Matrices, fold: Fold, count: Array
    ) -> Array:
        """The product with all roots; those of diagonals are new at every step."""
        fresh = tuple(
            self._root(m, fold, count) if m is not None and m.ndim == 1 else root
            for m, root in zip(moments, roots, strict=True)
        )
        return multiply(g, fresh)


# Transformations --------------------------------------------------------------------


@static_args(
    "decay",
    "root",
    "exponent",
    "max_dim",
    "merge_dims",
    "full_vectors",
    "grafting",
    "bias_correction",
)
def scale_by_shampoo(
    decay: float | None = None,
    eps: float | Array = 1e-6,
    *,
    update_interval: int | Array = 10,
    root: str = "eigh",
    exponent: float | None = None,
    max_dim: int = 1024,
    merge_dims: bool = False,
    warmup: int | Array = 10,
    full_vectors: bool = False,
    grafting: optax.GradientTransformation | None = None,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Multiply gradients by inverse roots of their second moments, axis by axis.

    For a tensor `G` with `k` axes, and `G_i` the matrix whose rows are its slices along
    axis `i`,

        L_i <- L_i + G_i G_i^T    (or a running mean),
        update = G x_1 (L_1 + eps I)^(-1/2k) ... x_k (L_k + eps I)^(-1/2k);

    for a matrix, `L^(-1/4) G R^(-1/4)`; for a vector, AdaGrad. Axes of length one don't
    count. Vectors, and axes longer than `max_dim`, keep the diagonal of `L_i` alone.

    An update is bounded as long as its own gradient is in the roots. Old roots blow up
    directions that no gradient had when they were computed, by up to `eps^(-1/2k)` an
    axis: thus roots are new at every step of a warm-up, and those of diagonals always.
    Where gradients have few rows that differ for long, `grafting` bounds the updates.

    **Arguments:**

    - `decay`: `None` sums second moments up, as in the paper; a number takes their
      running mean.
    - `eps`: added to the second moments; unit of the gradient squared.
    - `update_interval`: steps from one computation of the roots to the next. Second
      moments see every gradient.
    - `warmup`: for so many steps, roots are computed at each. The extra
      `update_curvature` overrides both.
    - `root`: `"eigh"`, in the leaf's precision, or `"newton"`, the iteration of
      `optax.matrix_inverse_pth_root` in float32, for matrices that are too large for an
      eigendecomposition on an accelerator; of leaves with 1, 2 or 4 axes. Where the
      iteration does not converge, eigendecomposition steps in.
    - `exponent`: instead of `1 / (2 k)`, for instance 1/2.
    - `max_dim`: the longest axis with a full matrix.
    - `merge_dims`: merge neighboring axes as long as their product is at most
      `max_dim`.
    - `full_vectors`: a full matrix for vectors too, as in the paper.
    - `grafting`: a transformation whose updates give the length of ours, leaf by leaf,
      for instance `optax.scale_by_adam()`; learning rates then are those of Adam.
    - `bias_correction`: divide a running mean by `1 - decay^t`.

    **Returns:** a transformation; it needs nothing but gradients, and passes extras on
    to `grafting`. Its update is positive: chain it with
    `optax.scale_by_learning_rate`.

    **Raises:** `ValueError` for a root that the iteration can't compute.

    **Cost.** For an `m x n` matrix, `2 m n (m + n)` flops each for second moments and
    products a step, `O(m^3 + n^3)` a refresh. State: `2 (m^2 + n^2)` numbers in float32
    (float64 for such leaves), four times a square matrix.

    **Reference:** Gupta, Koren, Singer, "Shampoo: Preconditioned Stochastic Tensor
    Optimization", arXiv:1802.09568, Algorithms 1 and 2.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.scale_by_shampoo()
    >>> params = jnp.eye(2)
    >>> updates, _ = tx.update(4 * params, tx.init(params), params)
    >>> bool(jnp.allclose(updates, params, atol=1e-5))
    True

    ```
    """
    check_choice("root", root, tuple(_ROOTS))
    if decay is not None:
        check_range("decay", decay, 0, 1, closed=(True, False))
    plan: Callable[[Any], Fold] = lambda leaf: fold(
        leaf, max_dim, merge_dims, 1 if full_vectors else 2
    )
    inner = optax.with_extra_args_support(grafting or optax.identity())

    rule = _Rule(decay, eps, root, exponent, bias_correction)

    def init(params: PyTree) -> ShampooState:
        left, right = start(params, plan, _moment)
        root_left, root_right = start(params, plan, _identity)
        return ShampooState(
            count=jnp.zeros((), jnp.int32),
            left=left,
            right=right,
            root_left=root_left,
            root_right=root_right,
            grafting=inner.init(params),
        )

    def update(updates, state, params=None, **extra):
        grads, treedef = jax.tree.flatten(updates)
        folds = [plan(g) for g in grads]
        tensors = [f.tensor(x) for f, x in zip(folds, grads, strict=True)]
        old = join(treedef, state.left, state.right, folds)
        moments = list(map(rule.observe, old, tensors, folds))
        count = one_more(state.count)
        due = is_due(state.count, update_interval, extra)
        if "update_curvature" not in extra:
            due = due | (state.count < warmup)
        roots = when(
            due,
            lambda x: [
                rule.roots(m, f, count) for m, f in zip(x[0], folds, strict=True)
            ],
            lambda x: x[1],
            (moments, join(treedef, state.root_left, state.root_right, folds)),
        )
        directions = [
            rule.apply(*parts, count)
            for parts in zip(tensors, moments, roots, folds, strict=True)
        ]
        lengths, graft_state = inner.update(updates, state.grafting, params, **extra)
        if grafting is not None:
            lengths = map(Fold.tensor, folds, treedef.flatten_up_to(lengths))
            directions = map(_graft, directions, lengths)
        new = [
            f.back(d).astype(x.dtype)
            for f, d, x in zip(folds, directions, grads, strict=True)
        ]
        left, right = split(treedef, moments)
        root_left, root_right = split(treedef, roots)
        return treedef.unflatten(new), ShampooState(
            count, left, right, root_left, root_right, graft_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


@static_args(
    "decay",
    "root",
    "exponent",
    "max_dim",
    "merge_dims",
    "full_vectors",
    "grafting",
    "bias_correction",
    "momentum",
    "mask",
)
def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    decay: float | None = None,
    eps: float | Array = 1e-6,
    *,
    momentum: float | None = 0.9,
    weight_decay: float | Array = 0.0,
    mask: Any = None,
    update_interval: int | Array = 10,
    root: str = "eigh",
    exponent: float | None = None,
    max_dim: int = 1024,
    merge_dims: bool = False,
    warmup: int | Array = 10,
    full_vectors: bool = False,
    grafting: optax.GradientTransformation | None = None,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with momentum; see [`pathax.optimizers.scale_by_shampoo`][].

    **Arguments:**

    - `learning_rate`: a number or an Optax schedule.
    - `momentum`: decay of `optax.trace` over the updates, or `None`.
    - `weight_decay`: times the parameters, is added before the learning rate.
    - `mask`: a tree of booleans, or a function from parameters to one: where weight
      decay acts.
    - All others: see [`pathax.optimizers.scale_by_shampoo`][].

    **Returns:** a transformation; `update` needs `params`.

    **Reference:** Gupta, Koren, Singer, arXiv:1802.09568.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.shampoo(0.1)
    >>> params = jnp.eye(2)
    >>> updates, _ = tx.update(4 * params, tx.init(params), params)
    >>> bool(jnp.allclose(updates, -0.1 * params, atol=1e-5))
    True

    ```
    """
    return optax.chain(
        scale_by_shampoo(
            decay,
            eps,
            update_interval=update_interval,
            root=root,
            exponent=exponent,
            max_dim=max_dim,
            merge_dims=merge_dims,
            warmup=warmup,
            full_vectors=full_vectors,
            grafting=grafting,
            bias_correction=bias_correction,
        ),
        optax.identity() if momentum is None else optax.trace(momentum),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
