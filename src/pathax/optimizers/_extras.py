"""What the transformations ask for beyond the gradient, and when they ask for it.

Each extra has one name in all of them. A transformation ignores those it does not know;
one that it needs and does not get is an error that says what to write.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array


# What to write for each extra, in a step where `loss(params, batch)` is the objective.
_HOW_TO: dict[str, str] = {
    "obj_fn": "obj_fn=lambda p: loss(p, batch)",
    "value": "value=value, from value, grads = jax.value_and_grad(loss)(params, batch)",
    "grad": "grad=grads, from value, grads = jax.value_and_grad(loss)(params, batch)",
    "value_fn": "value_fn=lambda p: loss(p, batch)",
    "predict_fn": "predict_fn=lambda p: jax.vmap(build(p))(x), the network's outputs",
    "residual_fn": "residual_fn=lambda p: residuals(p, batch), a vector per batch",
    "kron": "kron=stats, from (value, stats), grads = "
    "pathax.curvature.kron.value_and_grad(loss)(params, batch)",
    "rows": "rows=pathax.curvature.empirical_fisher_rows(example_loss, params, batch)",
    "curvature": "curvature=C, a (P, P) array, a lineax operator or v -> C v",
    "key": "key=key, a fresh key for each step",
}


class MissingExtraError(ValueError):
    """A transformation needs an argument that `update` was not given.

    `name` is the argument's name.
    """

    def __init__(self, name: str, transform: str, instead: str = ""):
        self.name = name
        line = f"updates, state = tx.update(grads, state, params, {name}=...)"
        super().__init__(
            f"{transform} needs `{name}`, which `update` was not given; write {line} "
            f"with {_HOW_TO[name]}{instead and ', or ' + instead}. "
            "`pathax.optimizers.extras(tx, loss)` builds all extras that a "
            "transformation needs."
        )


def require(
    extra: Mapping[str, Any], name: str, transform: str, instead: str = ""
) -> Any:
    """The extra of that name; an error that says how to make it if it is absent."""
    value = extra.get(name)
    if value is None:
        raise MissingExtraError(name, transform, instead)
    return value


def objective(
    extra: Mapping[str, Any], transform: str, instead: str = ""
) -> Callable[[Any], Array]:
    """The objective as a function of the parameters: `obj_fn`, else `value_fn`."""
    found = extra.get("obj_fn")
    if found is None:
        found = extra.get("value_fn")
    if found is None:
        raise MissingExtraError("obj_fn", transform, instead)
    return found


def require_params(params: Any, transform: str) -> Any:
    """The parameters, which Optax lets a caller leave out."""
    if params is None:
        raise ValueError(
            f"{transform} needs the parameters; write "
            "updates, state = tx.update(grads, state, params)"
        )
    return params


# Cadence ----------------------------------------------------------------------------


def is_due(
    count: Array, interval: int | Array, extra: Mapping[str, Any]
) -> bool | Array:
    """Whether curvature is refreshed at this step, `count` steps having been taken.

    The extra `update_curvature` overrides the interval. A Python bool decides when the
    step is traced, so that a refresh shares its work with the gradient.
    """
    forced = extra.get("update_curvature")
    if forced is not None:
        return forced
    if isinstance(interval, int) and interval == 1:
        return True
    return count % interval == 0


def when(
    due: bool | Array,
    refresh: Callable[[Any], Any],
    keep: Callable[[Any], Any],
    operand: Any,
) -> Any:
    """`refresh(operand)` if due, else `keep(operand)`; the other one costs nothing."""
    if isinstance(due, bool):
        return refresh(operand) if due else keep(operand)
    return jax.lax.cond(due, refresh, keep, operand)
