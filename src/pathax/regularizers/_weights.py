"""Weights of penalties that set themselves."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree


class DualAscent(eqx.Module):
    r"""A weight that drives the number of evaluations to a target.

    The weight $\lambda$ is the multiplier of the constraint that a solve takes no more
    evaluations $n$ than a target $n^*$, moved by

    $$ \log \lambda \leftarrow \log \lambda
       + \eta\, (\log \bar n - \log n^*), $$

    where $\bar n$ is a running mean of $n$. [`pathax.training.fit`][] drives it as one
    of its `weights`: the loss returns the number under the name `metric` in its
    dictionary of metrics. In a loop of your own call `init`, `value` and `update`.

    **Arguments:**

    - `target`: $n^*$.
    - `initial`: the weight to begin with.
    - `rate`: $\eta$ a step.
    - `decay`: of the running mean.
    - `smallest`, `largest`: where the weight stays between.
    - `metric`: the name of the number among the metrics of the loss.

    **Raises:** `ValueError` for numbers that aren't positive.

    **Cost:** none.

    **Gradients:** none; a weight is a constant for derivatives.

    **Precision:** float32.

    **Reference:** dual ascent on a logarithmic scale; for this use, proposed here.

    **Example:**

    ```python
    >>> import pathax as px
    >>> weight = px.regularizers.DualAscent(100.0, initial=0.01)
    >>> state = weight.init()
    >>> state = weight.update(state, {"evaluations": 200.0})
    >>> bool(weight.value(state) > 0.01)
    True

    ```
    """

    target: float = eqx.field(static=True)
    initial: float = eqx.field(static=True, default=1e-3)
    rate: float = eqx.field(static=True, default=0.02)
    decay: float = eqx.field(static=True, default=0.9)
    smallest: float = eqx.field(static=True, default=1e-8)
    largest: float = eqx.field(static=True, default=1e4)
    metric: str = eqx.field(static=True, default="evaluations")

    def __check_init__(self):
        positive = (self.target, self.initial, self.rate, self.smallest)
        if min(positive) <= 0 or self.largest < self.smallest:
            raise ValueError(
                "`target`, `initial`, `rate` and `smallest` must be positive, and "
                f"`largest` not below `smallest`; got {self}."
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must be in [0, 1); got {self.decay}.")

    def init(self) -> dict[str, Array]:
        """The state before the first step."""
        log_weight = jnp.log(jnp.asarray(self.initial, jnp.float32))
        return {"log_weight": log_weight, "mean": jnp.zeros((), jnp.float32)}

    def value(self, state: PyTree) -> Array:
        """The weight."""
        return jnp.exp(state["log_weight"])

    def update(self, state: PyTree, metrics: PyTree) -> dict[str, Array]:
        """The state after a step with these metrics."""
        if self.metric not in metrics:
            raise ValueError(
                f"`DualAscent` needs {self.metric!r} among the metrics: let the loss "
                f"return `(value, {{{self.metric!r}: ...}})` and give `has_aux=True`; "
                f"got {sorted(metrics)}."
            )
        number = jnp.asarray(metrics[self.metric]).astype(jnp.float32)
        old = state["mean"]
        mean = jnp.where(old > 0, self.decay * old + (1 - self.decay) * number, number)
        gap = jnp.log(mean) - jnp.log(jnp.asarray(self.target, jnp.float32))
        moved = state["log_weight"] + self.rate * gap
        low, high = (
            jnp.log(jnp.asarray(x, jnp.float32)) for x in (self.smallest, self.largest)
        )
        return {"log_weight": jnp.clip(moved, low, high), "mean": mean}


def gradient_ratio(task: PyTree, penalty: PyTree, ratio: float = 0.1) -> Array:
    r"""The weight at which a penalty's gradient is a given part of the task's.

    $\lambda = \rho\, \lVert \nabla L \rVert / \lVert \nabla R \rVert$, and 0 where the
    penalty has no gradient.

    **Arguments:**

    - `task`: gradient of the loss without penalty.
    - `penalty`: gradient of the penalty.
    - `ratio`: $\rho$.

    **Returns:** the weight, a constant for derivatives.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> weight = px.regularizers.gradient_ratio(jnp.ones(4), 2 * jnp.ones(4), 0.1)
    >>> print(f"{weight:.3f}")
    0.050

    ```
    """
    top, bottom = optax.tree.norm(task), optax.tree.norm(penalty)
    there = bottom > 0
    weight: Any = jnp.asarray(ratio, top.dtype) * top / jnp.where(there, bottom, 1)
    return jax.lax.stop_gradient(jnp.where(there, weight, jnp.zeros_like(weight)))
