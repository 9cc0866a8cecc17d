"""One training step, compiled: value, gradient, extras, update, and what went wrong."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..optimizers import extras


class TrainState(NamedTuple):
    """All that a run goes on from, besides its place in the data.

    **Attributes:**

    - `params`: the trained arrays of the model, its tree with `None` for the rest.
    - `opt_state`: the state of the optimizer.
    - `key`: of the run; that of a step is made from it and from the step's number.
    - `step`: steps taken.
    - `bad_steps`: how many of them gave a value or a gradient that is not finite; such
      a step changes no parameter.
    - `first_bad`: the number of the first of them, or -1.
    - `weights`: by name, the states of weights that set themselves.
    """

    params: PyTree
    opt_state: PyTree
    key: PRNGKeyArray
    step: Array
    bad_steps: Array
    first_bad: Array
    weights: dict[str, PyTree]


def init_state(
    model: PyTree,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    key: PRNGKeyArray,
    weights: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state before the first step.

    **Arguments:**

    - `model`: an Equinox module, or any tree; its floating-point and complex arrays
      are trained.
    - `optimizer`: an Optax transformation.
    - `key`: for whatever is random in the loss and in the optimizer.
    - `weights`: as for [`pathax.training.fit`][].

    **Returns:** a [`pathax.training.TrainState`][], whose arrays are copies.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> state = px.training.init_state(jnp.ones(2), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0

    ```
    """
    params = jax.tree.map(jnp.asarray, eqx.filter(model, eqx.is_inexact_array))
    zero = jnp.zeros((), jnp.int32)
    own = {k: w.init() for k, w in (weights or {}).items() if _moves(w)}
    never = jnp.full((), -1, jnp.int32)
    state = TrainState(params, optimizer.init(params), key, zero, zero, never, own)
    # Each leaf gets a buffer of its own, as the compiled step reuses them.
    return jax.tree.map(jnp.copy, state)


# A number, a schedule, or an object with `init`, `value` and `update`.
Weight = Any


def _moves(weight: Weight) -> bool:
    return hasattr(weight, "update") and hasattr(weight, "value")


def train_step(
    model: PyTree,
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    predict: Callable[..., PyTree] | None = None,
    residual: Callable[..., Array] | None = None,
    has_aux: bool = False,
    weights: Mapping[str, Weight] | None = None,
    accumulate: int = 1,
    compute_dtype: Any = None,
    nan: str = "raise",
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Array]]]:
    """A function from a state and a batch to the next state and what to report.

    Not compiled: put it under `jax.jit`, with `donate_argnums=0` to reuse the memory of
    the old state.

    **Arguments:**

    - `model`: gives what is not trained: functions, integers, structure.
    - `loss`, `optimizer`, `predict`, `residual`, `has_aux`, `weights`, `accumulate`,
      `compute_dtype`: as for [`pathax.training.fit`][].
    - `nan`: what a step does that isn't finite: with `"skip"` it alone changes nothing,
      else (`"raise"`, `"stop"`) neither do those after it, so that the state is that of
      the last good step when the caller looks.

    **Returns:** `step(state, batch) -> (state, metrics)`; the metrics are `loss`,
    `grad_norm` and, with `has_aux`, those of the loss.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import pathax as px
    >>> loss = lambda w, batch, key: jnp.mean((batch @ w) ** 2)
    >>> tx = optax.sgd(0.5)
    >>> w = jnp.ones(2)
    >>> state = px.training.init_state(w, tx, jax.random.key(0))
    >>> step = jax.jit(px.training.train_step(w, loss, tx), donate_argnums=0)
    >>> state, metrics = step(state, jnp.eye(2))
    >>> float(metrics["loss"]), state.params
    (1.0, Array([0.5, 0.5], dtype=float32))

    ```
    """
    _check(accumulate, compute_dtype, nan)
    weights = dict(weights or {})
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def whole(params: PyTree) -> PyTree:
        return eqx.combine(_cast(params, compute_dtype), static)

    def objective(params, batch, key, values):
        extra = (values,) if weights else ()
        out = loss(whole(params), _cast(batch, compute_dtype), key, *extra)
        value, aux = out if has_aux else (out, {})
        return _wide(value), jax.tree.map(_wide, aux)

    if accumulate > 1:
        objective = _accumulated(objective, accumulate)

    def of_model(function):
        if function is None:
            return None
        return lambda params, batch, key, values: function(
            whole(params), _cast(batch, compute_dtype), key
        )

    prepare = extras(
        optimizer,
        objective,
        predict=of_model(predict),
        residual=of_model(residual),
        has_aux=True,
    )
    # `MultiSteps` takes extras itself; Optax's wrapper would drop them.
    several = isinstance(optimizer, optax.MultiSteps)
    tx = optimizer if several else optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: PyTree):
        key = jax.random.fold_in(state.key, state.step)
        key, own = jax.random.split(key)
        values = {name: _at(name, weight, state) for name, weight in weights.items()}
        out = prepare(state.params, batch, key, values, key=own, state=state.opt_state)
        (value, aux), grads, extra = out
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        fine = jnp.isfinite(value) & _finite(grads) & _finite(updates)
        use = fine if nan == "skip" else fine & (state.bad_steps == 0)
        moved = {k: weights[k].update(old, aux) for k, old in state.weights.items()}
        params, opt_state, moved = _select(
            use,
            (params, opt_state, moved),
            (state.params, state.opt_state, state.weights),
        )
        none_yet = state.first_bad < 0
        new = TrainState(
            params,
            opt_state,
            state.key,
            state.step + 1,
            state.bad_steps + (~fine).astype(jnp.int32),
            jnp.where(none_yet & ~fine, state.step, state.first_bad),
            moved,
        )
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **aux}
        metrics |= {f"weight_{name}": values[name] for name in state.weights}
        return new, metrics

    return step


def _check(accumulate: int, compute_dtype: Any, nan: str) -> None:
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(
            f"`accumulate` must be an integer, at least 1; got {accumulate!r}."
        )
    if nan not in ("raise", "skip", "stop"):
        raise ValueError(f'`nan` must be "raise", "skip" or "stop"; got {nan!r}.')
    if compute_dtype is None:
        return
    if jnp.dtype(compute_dtype) == jnp.float16:
        raise ValueError(
            "`compute_dtype=float16` needs a scaled loss, which is not offered; write "
            "`compute_dtype=jax.numpy.bfloat16`, whose range is that of float32."
        )
    if not jnp.issubdtype(compute_dtype, jnp.floating):
        raise ValueError(
            f"`compute_dtype` must be a floating-point dtype; got {compute_dtype!r}."
        )


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Real floating-point leaves in the dtype that is computed in."""
    if dtype is None:
        return tree

    def one(x: Any) -> Any:
        is_real = eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_real else x

    return jax.tree.map(one, tree)


def _wide(x: Any) -> Array:
    """What is reported and summed up, in float32 at least."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32:
        return x.astype(jnp.float32)
    return x


def _at(name: str, weight: Weight, state: TrainState) -> Array:
    if _moves(weight):
        value = weight.value(state.weights[name])
    else:
        value = weight(state.step) if callable(weight) else weight
    return jnp.asarray(value, jnp.result_type(float))


def _finite(tree: PyTree) -> Array:
    out = jnp.ones((), bool)
    for leaf in jax.tree.leaves(tree):
        out = out & jnp.all(jnp.isfinite(leaf))
    return out


def _select(use: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(use, x, y), new, old)


def _accumulated(objective: Callable, parts: int) -> Callable:
    """The mean over parts of a batch, one after another.

    The backward pass computes each part again instead of keeping what it needs, so
    memory is that of one part, for all derivatives that an optimizer may take.
    """

    def split(x: Array) -> Array:
        if x.shape[0] % parts:
            raise ValueError(
                f"`accumulate={parts}` needs batches whose size is a multiple of it; "
                f"got {x.shape[0]} examples."
            )
        # Part i takes every `parts`-th example: on a mesh each device keeps its own.
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def mean(params, batch, key, values):
        @jax.checkpoint
        def one(part, key):
            return objective(params, part, key, values)

        def add(total, inputs):
            return jax.tree.map(jnp.add, total, one(*inputs)), None

        inputs = jax.tree.map(split, batch), jax.random.split(key, parts)
        first = jax.tree.map(lambda x: x[0], inputs)
        shapes = jax.eval_shape(one, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, inputs)
        return jax.tree.map(lambda x: x / parts, total)

    return mean
