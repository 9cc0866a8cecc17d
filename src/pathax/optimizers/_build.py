"""Extra arguments for any transformation, built from one loss."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..curvature import Likelihood, bind, kron
from ._extras import MissingExtraError
from .second_order import EKFACState


def _direction(grads: PyTree) -> PyTree:
    """Steepest ascent: for complex leaves, the conjugate of what `jax.grad` returns."""
    return jax.tree.map(jnp.conj, grads)


def _objective(fn: Callable[[PyTree], Array]) -> Callable[..., Array]:
    """The loss, with room for the extras.

    Optax's line searches hand to `value_fn` every extra that its signature names, and
    refuse the others.
    """

    def value_fn(
        params: PyTree,
        obj_fn: Any = None,
        predict_fn: Any = None,
        residual_fn: Any = None,
        hessian_diag: Any = None,
        kron: Any = None,
        rows: Any = None,
        curvature: Any = None,
        key: Any = None,
        update_curvature: Any = None,
    ) -> Array:
        del obj_fn, predict_fn, residual_fn, hessian_diag
        del kron, rows, curvature, key, update_curvature
        return fn(params)

    return value_fn


def extras(
    tx: optax.GradientTransformation | optax.MultiSteps,
    loss: Callable[..., Any],
    *,
    predict: Callable[..., PyTree] | None = None,
    residual: Callable[..., Array] | None = None,
    likelihood: str | Likelihood | None = None,
    layers: Sequence[kron.LayerSpec] | None = None,
    terms: int | Array | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree, dict[str, Any]]]:
    """What a transformation wants beyond the gradient, so that all train alike.

    Returns a function to call in the compiled step, in place of `jax.value_and_grad`.
    What costs nothing unless it is used is always passed on: the value, the gradient,
    and functions of the parameters with the batch closed over (which take masked trees
    too, see [`pathax.curvature.bind`][]). Statistics of layers, `kron`, are computed
    only if the transformation asks for them, and second moments only if it needs these;
    that is found out when the step is compiled, by abstract runs of `tx.update`.

    **Arguments:**

    - `tx`: any Optax transformation, alone or in any chain or wrapper.
    - `loss`: `loss(params, *args)`, a real scalar; the mean over a batch.
    - `predict`: `predict(params, *args)`, the network's outputs, for transformations
      that sample labels or take Gauss-Newton products.
    - `residual`: `residual(params, *args)`, a vector, for least-squares losses.
    - `likelihood`: with it (and `predict`), second moments of layers are those for
      labels that the model draws, see [`pathax.curvature.kron.fisher_stats`][], and
      computed in steps that refresh curvature only; `prepare` then needs `key`.
      Without, they are those of the data's labels, from the backward pass of the loss.
    - `layers`, `terms`: see [`pathax.curvature.kron.value_and_grad`][].
    - `has_aux`: whether the loss returns a pair of the scalar and anything else.

    **Returns:** `prepare(params, *args, key=None, state=None)`, which returns `(value,
    grads, extra)`: the value (a pair with `has_aux`), the gradients to hand to
    `tx.update` (for complex leaves the conjugate of `jax.grad`, the direction of
    steepest ascent), and a dictionary of extras for `tx.update(grads, state, params,
    **extra)`. `key` is passed on to transformations that draw random numbers, which
    otherwise use the key in their state. `state` is that of the transformation; only
    [`pathax.optimizers.ekfac`][] with `moment="examples"` needs it here, to have
    statistics in its bases.

    **Raises:** `ValueError` if the transformation needs statistics of layers and the
    parameters are not those of a model passed through
    `pathax.curvature.kron.instrument`. What else is missing raises
    [`pathax.optimizers.MissingExtraError`][] in `tx.update`.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> loss = lambda w, x, y: jnp.mean((x @ w - y) ** 2)
    >>> tx = px.optimizers.adahessian(0.1)  # or any other
    >>> prepare = px.optimizers.extras(tx, loss)
    >>> @jax.jit
    ... def step(w, state, x, y):
    ...     value, grads, extra = prepare(w, x, y)
    ...     updates, state = tx.update(grads, state, w, **extra)
    ...     return optax.apply_updates(w, updates), state, value
    >>> w, x, y = jnp.zeros(2), jnp.eye(2), jnp.ones(2)
    >>> _, _, value = step(w, tx.init(w), x, y)
    >>> float(value)
    1.0

    ```
    """

    def prepare(
        params: PyTree, *args: Any, key: Array | None = None, state: PyTree = None
    ) -> tuple[Any, PyTree, dict[str, Any]]:
        free = _functions(params, args, loss, predict, residual, has_aux)
        if key is not None:
            free["key"] = key
        stats = _wanted_stats(tx, params, free, layers)
        options = {"stats": stats, "layers": layers, "bases": _bases(state)}
        if stats == "factors" and likelihood is not None:
            free["kron"] = _drawn(params, free, likelihood, options)
        if stats is None or "kron" in free:
            out, raw = jax.value_and_grad(loss, has_aux=has_aux)(params, *args)
        else:
            derive = kron.value_and_grad(loss, has_aux=has_aux, terms=terms, **options)
            (out, free["kron"]), raw = derive(params, *args)
        free["value"] = out[0] if has_aux else out
        free["grad"] = raw
        return out, _direction(raw), free

    return prepare


def _bases(state: PyTree) -> tuple[tuple, tuple] | None:
    """The bases that EKFAC wants statistics in, if the state is its."""
    is_state = lambda node: isinstance(node, EKFACState)
    found = [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
    return (found[0].basis_left, found[0].basis_right) if found else None


def _drawn(
    params: PyTree,
    free: Mapping[str, Any],
    likelihood: str | Likelihood,
    options: dict[str, Any],
) -> Callable[[], tuple[kron.LayerStats, ...]]:
    """Statistics for labels that the model draws, when they are called for."""
    missing = [name for name in ("predict_fn", "key") if name not in free]
    if missing:
        raise ValueError(
            "labels are drawn from the network's outputs, so `likelihood` goes with "
            f"extras(tx, loss, predict=...) and prepare(..., key=key); {missing[0]} is "
            "missing"
        )
    predict, key = free["predict_fn"], jax.random.fold_in(free["key"], 1)
    return lambda: kron.fisher_stats(
        predict, params, key, likelihood=likelihood, **options
    )


def _functions(
    params: PyTree,
    args: tuple,
    loss: Callable,
    predict: Callable | None,
    residual: Callable | None,
    has_aux: bool,
) -> dict[str, Any]:
    """The extras that are functions of the parameters."""

    def scalar(p: PyTree) -> Array:
        out = loss(p, *args)
        return out[0] if has_aux else out

    objective = _objective(bind(scalar, params))
    found: dict[str, Any] = {"obj_fn": objective, "value_fn": objective}
    for name, fn in (("predict_fn", predict), ("residual_fn", residual)):
        if fn is not None:
            found[name] = bind(lambda p, fn=fn: fn(p, *args), params)
    return found


# Dry runs ---------------------------------------------------------------------------


def _with_extras(tx: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(tx, optax.MultiSteps):  # no transformation, but passes extras on
        update: Any = tx.update
        return optax.GradientTransformationExtraArgs(tx.init, update)
    return optax.with_extra_args_support(tx)


def _try(tx: Any, params: PyTree, given: Mapping[str, Any]) -> None:
    """One abstract update, which raises what the real one would."""
    tx = _with_extras(tx)

    def run(params: PyTree) -> Any:
        # Not the loss itself: tracing it would take as long as the step takes.
        arrays = {"value": _half_squares(params), "grad": params} | dict(given)
        return tx.update(params, tx.init(params), params, **arrays)

    jax.eval_shape(run, params)


def _stats_like(
    params: PyTree, stats: str, layers: Any = None
) -> tuple[kron.LayerStats, ...]:
    """Statistics of the right shapes, of a loss that uses no layer."""
    derive = kron.value_and_grad(_half_squares, stats=stats, layers=layers)
    return derive(params)[0][1]


def _wanted_stats(
    tx: Any, params: PyTree, free: Mapping[str, Any], layers: Any
) -> str | None:
    """Which statistics of layers a transformation asks for: the cheapest that do."""
    try:
        _try(tx, params, free)
        return None
    except MissingExtraError as error:
        if error.name != "kron":
            return None
    except Exception:  # the step itself will raise it, and say where
        return None
    like = jax.eval_shape(lambda p: _stats_like(p, "mean", layers), params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    try:
        _try(tx, params, {**free, "kron": zeros})
        return "mean"
    except Exception:  # for lack of second moments, or something that comes up again
        return "factors"


def _half_squares(params: PyTree) -> Array:
    real = [jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(params)]
    return sum((x.astype(jnp.float32) for x in real), jnp.zeros(())) / 2


# What stands in for each extra where there is no loss.
_STAND_INS: dict[str, Callable[[PyTree], Any]] = {
    "obj_fn": lambda params: _objective(_half_squares),
    "value_fn": lambda params: _objective(_half_squares),
    "value": _half_squares,
    "grad": lambda params: params,
    "predict_fn": lambda params: lambda p: jnp.ones((2, 2)) * _half_squares(p),
    "residual_fn": lambda params: lambda p: jnp.ones(2) * _half_squares(p),
    "rows": lambda params: jax.tree.map(lambda x: jnp.stack([x, x]), params),
    "curvature": lambda params: lambda v: v,
    "key": lambda params: jax.random.key(0),
    "kron": lambda params: _stats_like(params, "factors"),
}


def _asked_for(error: Exception) -> list[str]:
    """Names of extras that an error says are missing, in our words or Python's."""
    if isinstance(error, MissingExtraError):
        return [error.name]
    text = str(error)
    if isinstance(error, TypeError) and "required keyword-only" in text:
        return re.findall(r"'(\w+)'", text)
    if isinstance(error, ValueError) and (
        found := re.match("(\\w+) must be prov", text)
    ):
        return [found[1]]
    return []


def needs(
    tx: optax.GradientTransformation | optax.MultiSteps, params: PyTree, **given: Any
) -> frozenset[str]:
    """Names of the extras that a transformation can't do without.

    Found by abstract updates, so it costs no arithmetic and sees through any chain or
    wrapper. An extra that was missed is replaced by a stand-in and the update tried
    again; where a stand-in does not do, for instance for outputs of a shape of their
    own, the search ends with what was found.

    **Arguments:**

    - `tx`: any Optax transformation.
    - `params`: parameters, or `jax.ShapeDtypeStruct`s of them.
    - `given`: extras that are there anyway, and are used as they are.

    **Returns:** a frozenset of names.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> tx = optax.chain(optax.clip(1.0), px.optimizers.adahessian(0.1))
    >>> px.optimizers.needs(tx, jnp.zeros(3))
    frozenset({'obj_fn'})
    >>> px.optimizers.needs(optax.adam(0.1), jnp.zeros(3))
    frozenset()

    ```
    """
    found: set[str] = set()
    while True:
        names = _missing(tx, params, found, given)
        if not names or names <= found:
            return frozenset(found)
        found |= names


def _missing(
    tx: Any, params: PyTree, found: set[str], given: Mapping[str, Any]
) -> set[str]:
    """What one abstract update asks for, given all that was found before."""

    def run(params: PyTree) -> Any:
        stand_ins = {
            name: _STAND_INS[name](params) for name in found if name in _STAND_INS
        }
        return tx.update(params, tx.init(params), params, **(stand_ins | dict(given)))

    tx = _with_extras(tx)
    try:
        jax.eval_shape(run, params)
    except Exception as error:
        names = _asked_for(error)
        if not names and not found:
            raise
        return set(names)
    return set()
