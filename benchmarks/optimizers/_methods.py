"""The optimizers that are compared, each with what is tuned: a rate, from one grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._tasks import Task


RATES = tuple(float(r) for r in 10.0 ** jnp.linspace(-4, 0.5, 10))


@dataclass(frozen=True)
class Method:
    """One optimizer.

    - `make(rate, task)`: the transformation.
    - `rates`: learning rates to try; one, for methods that have none.
    - `fused`: the Hessian's diagonal comes with the gradient.
    - `fits(task)`: whether it can run on a task.
    """

    name: str
    make: Callable[[Any, Task], optax.GradientTransformation]
    rates: tuple[float, ...] = RATES
    fused: bool = False
    fits: Callable[[Task], bool] = lambda task: True


def _px() -> Any:
    import pathax as px

    return px.optimizers


def _small_and_smooth(task: Task) -> bool:
    return task.deterministic


def _newton(rate: Any, task: Task) -> optax.GradientTransformation:
    if task.curvature is not None:
        return _px().gradient_normalized_newton()
    if task.residual is not None:
        return _px().gradient_normalized_newton(curvature="ggn")
    return _px().gradient_normalized_newton(curvature="hessian", solver="eigh")


def _has_layers(task: Task) -> bool:
    return task.name in ("digits", "pinn", "spiral", "characters")


def _muon(rate: Any, task: Task) -> optax.GradientTransformation:
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    spec = lambda params: jax.tree.map(
        lambda p: numbers if p.ndim == 2 else None, params
    )
    return _px().muon(rate, muon_weight_dimension_numbers=spec)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", lambda r, t: optax.sgd(r, momentum=0.9, nesterov=True)),
        Method("adamw", lambda r, t: optax.adamw(r, weight_decay=0.0)),
        Method(
            "lbfgs", lambda r, t: _px().lbfgs(), rates=(1.0,), fits=_small_and_smooth
        ),
        Method("muon", _muon, fits=_has_layers),
        Method("soap", lambda r, t: _px().soap(r, weight_decay=0.0)),
        Method("shampoo", lambda r, t: _px().shampoo(r)),
        Method("adahessian", lambda r, t: _px().adahessian(r), fused=True),
        Method("adahessian k=5", lambda r, t: _px().adahessian(r, update_interval=5)),
        Method("sophia-h", lambda r, t: _px().sophia_h(r, weight_decay=0.0)),
        Method(
            "sophia-g",
            lambda r, t: _px().sophia_g(r, weight_decay=0.0, likelihood=t.likelihood),
            fits=lambda t: t.predict is not None,
        ),
        Method("mfac w=16", lambda r, t: _px().mfac(r, 16, 0.1)),
        Method("mfac w=64", lambda r, t: _px().mfac(r, 64, 0.1)),
        Method(
            "mkor",
            lambda r, t: optax.chain(_px().scale_by_mkor(), optax.sgd(r, momentum=0.9)),
            fits=_has_layers,
        ),
        Method(
            "mkor-h",
            lambda r, t: optax.chain(
                _px().scale_by_mkor_h(), optax.sgd(r, momentum=0.9)
            ),
            fits=_has_layers,
        ),
        Method("kfac", lambda r, t: _px().kfac(r), fits=_has_layers),
        Method("ekfac", lambda r, t: _px().ekfac(r), fits=_has_layers),
        Method("natural galore", lambda r, t: _px().natural_galore(r, 8, scale=1.0)),
        Method("newton", _newton, rates=(1.0,), fits=_small_and_smooth),
    )
}


def training_step(method: Method, task: Task) -> Callable:
    """`step(params, state, key, rate) -> (params, state, loss)`, to be compiled."""
    import pathax as px

    def step(params, state, key, rate):
        tx = optax.with_extra_args_support(method.make(rate, task))
        batch_key, own = jax.random.split(key)
        batch = task.sample(batch_key)
        if method.fused:
            value, grads, diag = px.curvature.value_grad_and_hutchinson(
                lambda p: task.loss(p, batch), params, own
            )
            extra = {"hessian_diag": diag}
            grads = jax.tree.map(jnp.conj, grads)
        else:
            prepare = px.optimizers.extras(
                tx, task.loss, predict=task.predict, residual=task.residual
            )
            value, grads, extra = prepare(params, batch, key=own)
        if method.name == "newton" and task.curvature is not None:
            extra["curvature"] = task.curvature(params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    return step


def init_state(method: Method, task: Task, params: Any) -> Any:
    """The optimizer's first state."""
    return method.make(0.1, task).init(params)
