"""Statistics of layers, from the backward pass that computes the gradient."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._binding import is_masked
from .._likelihoods import Likelihood, check_outputs, find_likelihood, mean_weights
from .._tree import wide_dtype
from ._instrument import geometry, is_tapped, layer_ndim
from ._layers import LayerSpec, choose, find_layers
from ._taps import FACTORS, MEAN, STACKED, Geometry, pack_bases, unpack


class LayerStats(NamedTuple):
    """What a backward pass tells about a layer, in single precision at least.

    The loss is a mean of `T` terms, and the layer is used `N` times: once for each
    example, position, time step or token. `a` are the inputs of the uses, with a
    trailing one if the layer has a bias, and `g` the derivatives of the loss, with
    their factor `1 / T`, in the outputs. Unless `terms` says otherwise `T` is `N`.

    **Attributes:**

    - `a_mean`: `sum a / N`, shape `(in,)`.
    - `g_mean`: `(T / N) sum g`, shape `(out,)`; with `T = N` the gradient in the bias.
      `None` for optimizers to take that.
    - `a_factor`: `sum a a^T / N`, shape `(in, in)`, or `None`.
    - `g_factor`: `T sum g g^T`, shape `(out, out)`, or `None`. With `T = N` the mean of
      products of the derivatives of single terms. The Kronecker product of both
      factors stands for the Fisher matrix of the layer.
    - `moment`: `T sum (Q_S^T g)^2 ((Q_A^T a)^2)^T`, squares by element, shape
      `(out, in)`: the Fisher matrix's diagonal in given bases if every term uses the
      layer once; `None` without bases.
    - `count`: `N`.

    Convolutions have patches as inputs, ordered (in, *kernel). With several groups
    there is an axis of groups in front; and axes that stack layers come before it.
    """

    a_mean: Array
    g_mean: Array | None = None
    a_factor: Array | None = None
    g_factor: Array | None = None
    moment: Array | None = None
    count: Array | None = None


_KINDS = ("mean", "factors")


class _Plan(NamedTuple):
    """How the tap of one layer is laid out."""

    geometry: Geometry
    lead: tuple[int, ...]
    bias: bool
    dtype: Any
    factors: bool
    rotated: int | None
    basis: Array | None

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        return self.geometry.parts(self.factors, self.rotated)

    def zeros(self, stacked: bool) -> Array:
        """The tap. Its axes of length one tell the layer what to gather."""
        mode = (FACTORS if self.factors else MEAN) + (STACKED if stacked else 0)
        size = self.geometry.size(self.factors, self.rotated)
        return jnp.zeros((*self.lead, *(1,) * mode, size), self.dtype)


def _plan(spec: LayerSpec, layer: Any, basis: tuple[Any, Any], factors: bool) -> _Plan:
    weight = layer.weight
    if is_masked(weight):
        raise ValueError(f"the weight at {spec.weight_path} is masked")
    sizes = geometry(layer)
    lead = tuple(weight.shape[: weight.ndim - layer_ndim(layer)])
    dtype = wide_dtype(weight.dtype)
    plan = _Plan(sizes, lead, layer.bias is not None, dtype, factors, None, None)
    if basis[0] is None:  # a layer that the optimizer leaves alone
        return plan
    left, right = (jnp.asarray(part).astype(dtype) for part in basis)
    inputs, outputs = right.shape[-1], left.shape[-1]
    if outputs != sizes.g_size or inputs - sizes.a_size not in (0, 1):
        raise ValueError(
            f"the bases of the layer {spec.weight_path} must have {sizes.g_size} and "
            f"{sizes.a_size + plan.bias} rows; got shapes {left.shape} and "
            f"{right.shape}"
        )
    return plan._replace(rotated=inputs, basis=pack_bases(left, right, lead))


def _plans(
    params: PyTree,
    layers: Sequence[LayerSpec] | None,
    stats: str,
    bases: Any,
) -> list[tuple[int, _Plan]]:
    """Each wanted layer's position among the layers of `params`, and its plan."""
    if stats not in _KINDS:
        raise ValueError(f"`stats` must be one of {_KINDS}; got {stats!r}")
    if bases is not None and stats != "factors":
        raise ValueError('`bases` go with stats="factors"')
    found = find_layers(params)
    if not found:
        raise ValueError(
            "no layer of these parameters has a tap; write model = "
            "pathax.curvature.kron.instrument(model) before "
            "params, static = equinox.partition(model, equinox.is_inexact_array)"
        )
    positions = choose([spec for spec, _ in found], layers)
    pairs: list = [(None, None)] * len(positions)
    if bases is not None:
        pairs = list(zip(*bases, strict=True))
    if len(pairs) != len(positions):
        raise ValueError(
            "`bases` must be a pair of tuples, left and right, with an entry for each "
            f"of the {len(positions)} layers; got {len(pairs)} entries"
        )
    return [
        (at, _plan(*found[at], basis, stats == "factors"))
        for at, basis in zip(positions, pairs, strict=True)
    ]


# Taps -------------------------------------------------------------------------------


def _insert(params: PyTree, filled: dict[int, tuple[Array, Array | None]]) -> PyTree:
    """The parameters with taps in the layers at these positions."""
    order = itertools.count()
    listed = {id(layer) for _, layer in find_layers(params)}

    def fill(node: Any) -> Any:
        if not is_tapped(node) or id(node) not in listed:
            return node
        tap, basis = filled.get(next(order), (None, None))
        if tap is None:
            return node
        return type(node)(node, tap, basis)

    return jax.tree.map(fill, params, is_leaf=is_tapped)


def _on_own_axis(fn: Callable[[Any], Any], taps: list[Array]) -> Any:
    """`fn(taps)` under a map of length one over the taps, which their rule looks for.

    Nothing but taps is mapped, so nothing else changes.
    """
    static: list = []

    def run(taps: list[Array]) -> PyTree:
        dynamic, rest = eqx.partition(fn(taps), eqx.is_array)
        static.append(rest)
        return dynamic

    out = jax.vmap(run)([tap[None] for tap in taps])
    return eqx.combine(jax.tree.map(lambda x: x[0], out), static[-1])


def _differentiate(
    loss: Callable[[PyTree], tuple[Array, Any]],
    params: PyTree,
    plans: list[tuple[int, _Plan]],
    with_grads: bool,
) -> tuple[tuple[Array, Any], Any, list[Array]]:
    """The loss, its gradient in the parameters (if wanted) and in the taps."""

    def attempt(stacked: bool) -> Any:
        def of_taps(params: PyTree, taps: list[Array]) -> tuple[Array, Any]:
            def run(taps: list[Array]) -> tuple[Array, Any]:
                pairs = zip(plans, taps, strict=True)
                filled = {at: (tap, plan.basis) for (at, plan), tap in pairs}
                return loss(_insert(params, filled))

            return _on_own_axis(run, taps) if stacked else run(taps)

        zeros = [plan.zeros(stacked) for _, plan in plans]
        if with_grads:
            derive = jax.value_and_grad(of_taps, argnums=(0, 1), has_aux=True)
            out, (grads, sums) = derive(params, zeros)
        else:
            derive = jax.value_and_grad(of_taps, argnums=1, has_aux=True)
            (out, sums), grads = derive(params, zeros), None
        sums = zip(plans, sums, strict=True)
        return out, grads, [s.reshape(*plan.lead, -1) for (_, plan), s in sums]

    try:
        return attempt(stacked=True)
    except (NotImplementedError, TypeError, ValueError):
        # Something in the loss takes derivatives by itself, below the map of the taps
        # (most adjoints of Diffrax do). Sums then go use by use. An error of the loss
        # itself comes back below.
        pass
    return attempt(stacked=False)


def _finish(plan: _Plan, sums: Array, terms: Any) -> LayerStats:
    """The statistics from their sums."""
    found = unpack(sums, plan.parts)
    scale = lambda x, like: x.reshape(x.shape + (1,) * (like.ndim - x.ndim))
    count = found["count"]
    used = jnp.maximum(count, 1)  # a layer that is not used has zeros
    total = (
        used
        if terms is None
        else jnp.broadcast_to(jnp.asarray(terms).astype(count.dtype), count.shape)
    )
    ones = jnp.broadcast_to(
        scale(count, found["a"][..., :1]), found["a"][..., :1].shape
    )
    a_sum = jnp.concatenate([found["a"], ones], axis=-1) if plan.bias else found["a"]
    divide = lambda x: x / scale(used, x)
    stats = {
        "a_mean": divide(a_sum),
        "g_mean": found["g"] * scale(total / used, found["g"]),
    }
    if plan.factors:
        aa = found["aa"]
        if plan.bias:
            side = jnp.concatenate([aa, found["a"][..., None, :]], axis=-2)
            aa = jnp.concatenate([side, a_sum[..., None]], axis=-1)
        stats["a_factor"] = divide(aa)
        stats["g_factor"] = found["gg"] * scale(total, found["gg"])
    if plan.basis is not None:
        stats["moment"] = found["moment"] * scale(total, found["moment"])
    if plan.geometry.groups == 1:  # no axis of groups
        axis = len(plan.lead)
        stats = {name: jnp.squeeze(x, axis) for name, x in stats.items()}
    return LayerStats(**stats, count=count)


# Public -----------------------------------------------------------------------------


def value_and_grad(
    loss: Callable[..., Any],
    *,
    stats: str = "mean",
    has_aux: bool = False,
    terms: int | Array | None = None,
    bases: tuple[Sequence[Array], Sequence[Array]] | None = None,
    layers: Sequence[LayerSpec] | None = None,
) -> Callable[..., tuple[tuple[Any, tuple[LayerStats, ...]], PyTree]]:
    """`jax.value_and_grad` that also returns statistics of the layers.

    All from one backward pass; value and gradient are those of `jax.value_and_grad`.

    **Arguments:**

    - `loss`: `loss(params, *args)`, a real scalar. Inside, `params` are put back
      together with the rest of the model by `equinox.combine(params, static)`, as
      usual.
    - `stats`: `"mean"` for the means that MKOR needs, `"factors"` for the second
      moments of KFAC too.
    - `has_aux`: whether the loss returns a pair of the scalar and anything else.
    - `terms`: how many terms the mean in the loss has, if it is not the number of times
      that a layer is used: the number of examples, for convolutions under a mean over
      examples; 1 if the loss is a sum.
    - `bases`: bases for `moment`, a pair of tuples of arrays with one entry a layer:
      `(state.basis_left, state.basis_right)` of an
      [`pathax.optimizers.EKFACState`][]. The arrays stand in the tree of parameters
      that `loss` gets, so a penalty summed over *all* its leaves would count them in.
    - `layers`: those of [`pathax.curvature.kron.layers`][] to gather statistics of, all
      by default.

    **Returns:** a function of `params` and anything else, which returns
    `((value, stats), grads)`: `value` a pair with `has_aux`, `stats` a tuple of
    [`pathax.curvature.kron.LayerStats`][] in the order of `layers`. `params` is the
    tree of parameters of a model from [`pathax.curvature.kron.instrument`][].

    **Raises:** `ValueError` if there is no instrumented layer, or no such one.

    **Cost.** `"mean"` adds `O(B (in + out))` to the backward pass of a layer; of a
    convolution, a convolution with one output channel. `"factors"` adds products of
    `B (in^2 + out^2)` and for convolutions copies all patches, times two with `bases`.
    Sums over examples of a `jax.vmap` are one product; where something in the loss
    takes derivatives by itself, such as a Diffrax adjoint, they are added one use at a
    time.

    **Gradients.** The backward pass has rules of its own, so the function that is
    returned can be differentiated in reverse mode only. Inside the loss, derivatives in
    a network's inputs may be of either mode; a layer's uses in them are not counted.

    **Precision.** Sums are in float32 at least. Casting the parameters inside the loss
    casts the taps too, so statistics lose digits: cast the inputs instead. Products of
    `"factors"` follow `jax.default_matmul_precision`.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> def loss(params, x, y):
    ...     model = eqx.combine(params, static)
    ...     return jnp.mean((jax.vmap(model)(x) - y) ** 2)
    >>> x, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 1))
    >>> f = jax.jit(px.curvature.kron.value_and_grad(loss))
    >>> (value, stats), grads = f(params, x, y)
    >>> stats[0].a_mean
    Array([2., 3., 1.], dtype=float32)
    >>> bool(jnp.allclose(stats[0].g_mean, grads.bias))
    True

    ```
    """

    def evaluate(params: PyTree, *args: Any, **keywords: Any) -> Any:
        plans = _plans(params, layers, stats, bases)

        def pair(params: PyTree) -> tuple[Array, Any]:
            out = loss(params, *args, **keywords)
            return out if has_aux else (out, None)

        out, grads, sums = _differentiate(pair, params, plans, with_grads=True)
        found = tuple(
            _finish(plan, s, terms) for (_, plan), s in zip(plans, sums, strict=True)
        )
        return ((out if has_aux else out[0]), found), grads

    return evaluate


def fisher_stats(
    predict: Callable[[PyTree], Array],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    likelihood: str | Likelihood = "categorical",
    stats: str = "factors",
    count: int | Array | None = None,
    mask: Array | None = None,
    bases: tuple[Sequence[Array], Sequence[Array]] | None = None,
    layers: Sequence[LayerSpec] | None = None,
) -> tuple[LayerStats, ...]:
    """Statistics of the layers for labels that the model draws itself.

    With labels of the training data `g_factor` belongs to the empirical Fisher matrix;
    with drawn ones to the true one, which is the Gauss-Newton matrix of the mean loss.

    **Arguments:**

    - `predict`: the network's outputs as a function of the parameters, the inputs
      closed over. Any leading axes (batch, sequence).
    - `params`: as for [`pathax.curvature.kron.value_and_grad`][].
    - `key`: a random key.
    - `likelihood`: `"categorical"`, `"bernoulli"`, `"gaussian"`, or a
      [`pathax.curvature.Likelihood`][].
    - `stats`, `bases`, `layers`: as for [`pathax.curvature.kron.value_and_grad`][].
    - `count`: how many terms the mean loss has, if it is not their number in the
      outputs.
    - `mask`: 1 for terms that count and 0 for those that don't (padding).

    **Returns:** a tuple of [`pathax.curvature.kron.LayerStats`][].

    **Cost.** A forward and a backward pass; weight gradients are not computed. Passed
    to an optimizer as `kron=lambda: fisher_stats(...)`, that is paid only by steps that
    refresh curvature.

    **Example:**

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> model = px.curvature.kron.instrument(model)
    >>> params, static = eqx.partition(model, eqx.is_inexact_array)
    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> predict = lambda p: jax.vmap(eqx.combine(p, static))(x)
    >>> (stats,) = px.curvature.kron.fisher_stats(predict, params, jax.random.key(1))
    >>> stats.g_factor.shape
    (3, 3)

    ```
    """
    model = find_likelihood(likelihood)
    plans = _plans(params, layers, stats, bases)

    def loss(params: PyTree) -> tuple[Array, Array]:
        outputs = check_outputs(predict(params))
        labels = model.sample(key, jax.lax.stop_gradient(outputs))
        weights, terms = mean_weights(model, outputs, count, mask)
        losses = model.loss(outputs, jax.lax.stop_gradient(labels))
        if weights is not None:
            losses = losses * weights.astype(losses.dtype)
        return jnp.sum(losses) / terms.astype(losses.dtype), terms

    (_, terms), _, sums = _differentiate(loss, params, plans, with_grads=False)
    return tuple(
        _finish(plan, s, terms) for (_, plan), s in zip(plans, sums, strict=True)
    )
