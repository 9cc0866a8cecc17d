"""Natural GaLore: Adam in a low-rank subspace, with a Fisher matrix of gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._extras import is_due, when
from .._inject import static_args
from ._adahessian import with_decay_and_rate
from ._moments import adam, cast_like, check_choice, check_range, one_more, wide
from ._window_fisher import emptied, scale_by_window_fisher


class NaturalGaLoreState(NamedTuple):
    """The state of [`pathax.optimizers.scale_by_natural_galore`][].

    **Attributes:**

    - `count`: steps taken.
    - `projector`: for each projected leaf a pair of matrices with orthonormal columns
      for its two sides, `None` for a side that is not projected.
    - `fisher`: the window of projected gradients, a
      [`pathax.optimizers.WindowFisherState`][].
    - `adam`: the state of `optax.scale_by_adam`.
    """

    count: Array
    projector: PyTree
    fisher: Any
    adam: Any


class _Plan(NamedTuple):
    """How a leaf is projected: as a matrix, with so many directions on each side."""

    shape: tuple[int, int]
    left: int | None
    right: int | None


def _plan(leaf: Array, rank: int, side: str, two_sided: bool) -> _Plan:
    m, n = leaf.shape[0], leaf.size // leaf.shape[0]
    if two_sided:
        return _Plan((m, n), min(rank, m), min(rank, n))
    # Of a square matrix GaLore takes the right side, and Optax the left.
    on_left = (m < n) == (side == "small")
    if on_left:
        return _Plan((m, n), min(rank, m), None)
    return _Plan((m, n), None, min(rank, n))


class _Options(NamedTuple):
    """Which leaves are projected, and how."""

    rank: int
    side: str
    two_sided: bool
    min_ndim: int
    modules: tuple[str, ...] | None

    def plans(self, tree: PyTree) -> list[_Plan | None]:
        """One a leaf; `None` for a leaf that is not projected."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return [self._plan(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]

    def _plan(self, name: str, leaf: Array) -> _Plan | None:
        if leaf.ndim < max(2, self.min_ndim) or leaf.size == 0:
            return None
        if self.modules is not None and not any(m in name for m in self.modules):
            return None
        return _plan(leaf, self.rank, self.side, self.two_sided)


def _basis(vectors: Array) -> Array:
    """Columns with a fixed phase: that of the largest entry is one."""
    place = jnp.argmax(jnp.abs(vectors), axis=0)
    lead = jnp.take_along_axis(vectors, place[None], axis=0)
    size = jnp.abs(lead)
    one = jnp.ones_like(lead)
    safe = jnp.where(size > 0, size, 1).astype(lead.dtype)
    phase = jnp.where(size > 0, lead / safe, one)
    return vectors * jnp.conj(phase)


def _projector(matrix: Array, plan: _Plan) -> tuple[Array | None, Array | None]:
    """The leading singular vectors."""
    u, _, vh = jnp.linalg.svd(wide(matrix), full_matrices=False)
    full_u, full_v = _completed(u, plan.left), _completed(vh.conj().T, plan.right)
    left = None if plan.left is None else _basis(full_u)
    right = None if plan.right is None else _basis(full_v)
    return left, right


def _completed(vectors: Array, rank: int | None) -> Array:
    """So many orthonormal columns; more than there are singular vectors by QR."""
    if rank is None or rank <= vectors.shape[1]:
        return vectors[:, :rank]
    padded = jnp.concatenate([vectors, jnp.eye(len(vectors), dtype=vectors.dtype)], 1)
    return jnp.linalg.qr(padded)[0][:, :rank]


def _project(matrix: Array, projector: tuple) -> Array:
    left, right = projector
    if left is not None:
        matrix = jnp.matmul(left.conj().T, matrix, precision="highest")
    if right is not None:
        matrix = jnp.matmul(matrix, right, precision="highest")
    return matrix


def _back(matrix: Array, projector: tuple) -> Array:
    left, right = projector
    if left is not None:
        matrix = jnp.matmul(left, matrix, precision="highest")
    if right is not None:
        matrix = jnp.matmul(matrix, right.conj().T, precision="highest")
    return matrix


def _projectors(leaves: list, plans: list, old: list) -> list:
    """New pairs of matrices, for leaves that are projected."""
    return [
        pair if plan is None else _projector(leaf.reshape(plan.shape), plan)
        for leaf, plan, pair in zip(leaves, plans, old, strict=True)
    ]


def _projected(leaves: list, plans: list, pairs: list) -> list:
    """Leaves in the subspace; others with one axis, so that Fisher passes them by."""
    return [
        wide(leaf).reshape(-1)
        if plan is None
        else _project(wide(leaf).reshape(plan.shape), pair)
        for leaf, plan, pair in zip(leaves, plans, pairs, strict=True)
    ]


def _expanded(
    small: list, leaves: list, plans: list, pairs: list, scale: float | Array
) -> list:
    """Back from the subspace, scaled where there is one."""

    def one(x: Array, leaf: Array, plan: _Plan | None, pair: tuple) -> Array:
        if plan is not None:
            x = _back(x, pair)
            x = jnp.asarray(scale).astype(x.dtype) * x
        return x.reshape(leaf.shape)

    return [one(*parts) for parts in zip(small, leaves, plans, pairs, strict=True)]


_STATIC = (
    "rank",
    "history",
    "side",
    "two_sided",
    "fisher_scale",
    "min_ndim",
    "modules",
    "reset_history_on_refresh",
    "rotate_moments",
    "window_dtype",
)


@static_args(*_STATIC)
def scale_by_natural_galore(
    rank: int = 128,
    *,
    update_interval: int | Array = 200,
    scale: float | Array = 0.25,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-6,
    history: int = 20,
    damping: float | Array = 1e-3,
    side: str = "small",
    two_sided: bool = False,
    fisher_scale: str = "sum",
    min_ndim: int = 2,
    modules: str | tuple[str, ...] | None = None,
    reset_history_on_refresh: bool = True,
    rotate_moments: bool = False,
    window_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on low-rank projections of gradients, preconditioned by their Fisher matrix.

    `R = U^T G` with `U` the leading singular vectors of an earlier gradient, refreshed
    every `update_interval` steps; `x = (damping I + X X^T)^-1 vec(R)` with the last
    `history` of these as columns of `X`; the update is `scale U Adam(x)`. An array with
    more axes is a matrix with its first axis as rows. Other leaves get Adam.

    **Arguments:**

    - `rank`: directions that are kept; no more than there are.
    - `update_interval`: steps between projectors.
    - `scale`: of the update of projected leaves.
    - `b1`, `b2`, `eps`: of Adam, which adds `eps` to the root after its bias is
      corrected; the author's code adds it before.
    - `history`, `damping`, `fisher_scale`, `window_dtype`: of the Fisher matrix, see
      [`pathax.optimizers.scale_by_window_fisher`][].
    - `side`: which side is projected: `"small"`, the shorter one (the right one of a
      square matrix), as in GaLore, or `"large"`, the other one, as in Optax's.
    - `two_sided`: project both, as the authors' code does.
    - `min_ndim`: leaves with fewer axes (two at least) are not projected.
    - `modules`: project only leaves whose path, such as `.layers[0].attention.weight`,
      contains this text or one of these; `None` for all. The author projects the
      linear layers of attention and of perceptrons, and no embeddings.
    - `reset_history_on_refresh`: forget gradients in the coordinates of an old
      projector. The authors' code keeps them, which mixes coordinates.
    - `rotate_moments`: express Adam's first moment in the new coordinates, and the
      second by squares of the rotation; else both are kept as they are, as in GaLore.

    **Returns:** an `optax.GradientTransformationExtraArgs` that needs gradients alone.

    **Raises:** `ValueError` for arguments out of range.

    **Cost:** state `rank m + history |R| + 2 |R|` for a matrix with short side `m`,
    where `|R|` is the size of the projection. One SVD a refresh.

    **Reference:** Das, "Natural GaLore", arXiv:2410.16029; Zhao et al., "GaLore",
    arXiv:2403.03507.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.scale_by_natural_galore(rank=1, scale=1.0)
    >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates.round(3)  # the leading direction alone
    Array([[1., 0.],
           [0., 0.]], dtype=float32)

    ```
    """
    check_range("rank", rank, 1)
    check_range("update_interval", update_interval, 1)
    check_choice("side", side, ("small", "large"))
    modules = (modules,) if isinstance(modules, str) else modules
    fisher = scale_by_window_fisher(
        history,
        damping,
        fisher_scale=fisher_scale,
        min_ndim=2,
        window_dtype=window_dtype,
    )
    moments = adam(b1, b2, eps)
    options = _Options(rank, side, two_sided, min_ndim, modules)

    def init(params: PyTree) -> NaturalGaLoreState:
        leaves, treedef = jax.tree.flatten(params)
        plans = options.plans(params)
        pairs = [_empty(x, plan) for x, plan in zip(leaves, plans, strict=True)]
        small = treedef.unflatten(_projected(leaves, plans, pairs))
        return NaturalGaLoreState(
            count=jnp.zeros((), jnp.int32),
            projector=treedef.unflatten(pairs),
            fisher=fisher.init(small),
            adam=moments.init(small),
        )

    def update(updates, state, params=None, **extra):
        del params
        leaves, treedef = jax.tree.flatten(updates)
        found = options.plans(updates)

        def refresh(operand):
            old, fisher_state, adam_state = operand
            pairs = _projectors(leaves, found, old)
            if reset_history_on_refresh:
                fisher_state = emptied(fisher_state, jnp.asarray(True))
            if rotate_moments:
                adam_state = _rotated(adam_state, treedef, old, pairs)
            return pairs, fisher_state, adam_state

        due = is_due(state.count, update_interval, extra)
        operand = (treedef.flatten_up_to(state.projector), state.fisher, state.adam)
        pairs, fisher_state, adam_state = when(due, refresh, lambda x: x, operand)
        small = treedef.unflatten(_projected(leaves, found, pairs))
        small, fisher_state = fisher.update(small, fisher_state)
        small, adam_state = moments.update(small, adam_state)
        out = _expanded(treedef.flatten_up_to(small), leaves, found, pairs, scale)
        state = NaturalGaLoreState(
            one_more(state.count), treedef.unflatten(pairs), fisher_state, adam_state
        )
        return cast_like(treedef.unflatten(out), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _empty(leaf: Array, plan: _Plan | None) -> tuple[Array | None, Array | None]:
    if plan is None:
        return None, None
    dtype = wide(leaf).dtype
    zeros = lambda n, r: None if r is None else jnp.zeros((n, r), dtype)
    return zeros(plan.shape[0], plan.left), zeros(plan.shape[1], plan.right)


def _rotated(
    state: optax.ScaleByAdamState, treedef: Any, old: list, new: list
) -> optax.ScaleByAdamState:
    """Moments in the coordinates of new projectors; nothing of what they leave out."""

    def change(moment: Array, before: tuple, after: tuple, squared: bool) -> Array:
        left, right = (
            None if a is None else jnp.matmul(b.conj().T, a, precision="highest")
            for a, b in zip(before, after, strict=True)
        )
        if squared:
            left, right = (
                None if x is None else jnp.abs(x) ** 2 for x in (left, right)
            )
        if left is not None:
            moment = jnp.matmul(left.astype(moment.dtype), moment, precision="highest")
        if right is not None:
            turned = right.astype(moment.dtype).conj().T
            moment = jnp.matmul(moment, turned, precision="highest")
        return moment

    def all_of(tree: PyTree, squared: bool) -> PyTree:
        moments = treedef.flatten_up_to(tree)
        pairs = zip(moments, old, new, strict=True)
        return treedef.unflatten(
            [m if b == (None, None) else change(m, b, a, squared) for m, b, a in pairs]
        )

    return state._replace(mu=all_of(state.mu, False), nu=all_of(state.nu, True))


@static_args(*_STATIC, "mask")
def natural_galore(
    learning_rate: float | Array | Callable[[Array], Any],
    rank: int = 128,
    *,
    update_interval: int | Array = 200,
    scale: float | Array = 0.25,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-6,
    weight_decay: float | Array = 0.0,
    mask: Any = None,
    history: int = 20,
    damping: float | Array = 1e-3,
    side: str = "small",
    two_sided: bool = False,
    fisher_scale: str = "sum",
    min_ndim: int = 2,
    modules: str | tuple[str, ...] | None = None,
    reset_history_on_refresh: bool = True,
    rotate_moments: bool = False,
    window_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Natural GaLore with decoupled weight decay.

    **Arguments:**

    - `learning_rate`: a number or a schedule; the authors take 0.01.
    - `weight_decay`: strength of decoupled decay.
    - `mask`: which parameters decay, as for `optax.add_decayed_weights`.
    - the others: see [`pathax.optimizers.scale_by_natural_galore`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`.

    **Reference:** Das, "Natural GaLore", arXiv:2410.16029.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> tx = px.optimizers.natural_galore(0.01, rank=1)
    >>> params = jnp.ones((3, 4))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates.shape
    (3, 4)

    ```
    """
    scaled = scale_by_natural_galore(
        rank,
        update_interval=update_interval,
        scale=scale,
        b1=b1,
        b2=b2,
        eps=eps,
        history=history,
        damping=damping,
        side=side,
        two_sided=two_sided,
        fisher_scale=fisher_scale,
        min_ndim=min_ndim,
        modules=modules,
        reset_history_on_refresh=reset_history_on_refresh,
        rotate_moments=rotate_moments,
        window_dtype=window_dtype,
    )
    return with_decay_and_rate(scaled, learning_rate, weight_decay, mask)
