"""What a task is, and networks whose layers report their statistics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax

import pathax as px


Params = Any
Batch = Any


@dataclass(frozen=True)
class Task:
    """One problem, with a target.

    **Attributes:**

    - `init(key)`: parameters.
    - `loss(params, batch)`: a mean over the batch.
    - `sample(key)`: a batch; always the same one where the task is deterministic.
    - `metric(params)`: what must come down to `target`.
    - `every`: steps between looks at the metric.
    - `limit`: steps after which a run gives up.
    - `predict(params, batch)`: outputs that the loss is a likelihood of.
    - `residual(params, batch)`: for least squares.
    - `labels(batch)`: of a classifier.
    - `curvature(params)`: in closed form, for Newton.
    - `whole`: all data as one batch, where `sample` draws some of it.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch], jax.Array]
    sample: Callable[[jax.Array], Batch]
    metric: Callable[[Params], jax.Array]
    target: float
    every: int = 1
    limit: int = 10_000
    predict: Callable[[Params, Batch], jax.Array] | None = None
    residual: Callable[[Params, Batch], jax.Array] | None = None
    labels: Callable[[Batch], jax.Array] | None = None
    curvature: Callable[[Params], Any] | None = None
    likelihood: str = "categorical"
    whole: Batch | None = None


def network(sizes: tuple[int, int, int], depth: int, activation: Callable, **options):
    """`init(key)` and `apply(params, inputs)` of a multilayer perceptron.

    `sizes` are those of inputs, outputs and hidden layers.
    """

    def make(key: jax.Array) -> Any:
        inputs, outputs, width = sizes
        model = eqx.nn.MLP(
            inputs, outputs, width, depth, activation, key=key, **options
        )
        return px.curvature.kron.instrument(model)

    return from_model(make)


def from_model(make: Callable[[jax.Array], Any]):
    """`init(key)`, and `apply(params, inputs)` that maps the model over inputs."""
    static = eqx.filter(make(jax.random.key(0)), eqx.is_inexact_array, inverse=True)

    def init(key: jax.Array) -> Params:
        return eqx.filter(make(key), eqx.is_inexact_array)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(x)

    return init, apply
