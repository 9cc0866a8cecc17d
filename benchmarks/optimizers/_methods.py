"""The optimizers that are compared, and how each is tuned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import pathax as px

from ._tasks import Task


o = px.optimizers

DECADES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# (rate, own parameter, task) -> transformation; the numbers may be traced.
Make = Callable[[Any, Any, Task], Any]


@dataclass(frozen=True)
class Method:
    """One optimizer.

    **Attributes:**

    - `make`: the transformation, or any object if there is a `step`.
    - `kind`: "bare", "first" order, "diagonal", "window", "layers", "tensors",
      "newton", or "peer".
    - `own`: name of the parameter that is tuned beside the rate.
    - `values`: its default, and others to try.
    - `rates`: a decade apart; none for methods without a rate.
    - `static`: the parameter can't be traced; a program is compiled for each value.
    - `fused`: the Hessian's diagonal comes with the gradient.
    - `diagonal(loss, params, batch, grads, key)`: the diagonal, when it is due, instead
      of the optimizer's own estimate.
    - `keeps`: its state holds the next value and gradient.
    - `whole`: it takes all data as one batch, where the others draw batches.
    - `needs`: traits that a task must have.
    - `races`: whether it takes part in races; else its steps alone are timed.
    - `packages`: what it comes from, beside Optax.
    - `init(tx, params)`, `step(tx, task, params, state, batch, key)`: for what is no
      transformation.
    """

    name: str
    make: Make
    kind: str
    own: str = ""
    values: tuple[float, ...] = (0.0,)
    rates: tuple[float, ...] = DECADES
    static: bool = False
    fused: bool = False
    diagonal: Callable[..., Any] | None = None
    keeps: bool = False
    whole: bool = False
    needs: frozenset[str] = frozenset()
    races: bool = True
    packages: tuple[str, ...] = ()
    init: Callable[[Any, Any], Any] = lambda tx, params: tx.init(params)
    step: Callable[..., tuple] | None = None


def _newton(mode: str) -> Make:
    """With a search for the trust radius in each step, or a fixed one, the rate."""

    def make(gamma: Any, _: Any, task: Task) -> optax.GradientTransformation:
        options: dict[str, Any] = {"gamma0": gamma, "mode": mode}
        if task.residual is None:  # convex
            options["solver"] = "cholesky"
        elif task.curvature is None:
            options["curvature"] = "ggn"
        return o.gradient_normalized_newton(**options)

    return make


def _lanczos(gamma: Any, _: Any, task: Task) -> optax.GradientTransformation:
    return o.gradient_normalized_newton(
        curvature="ggn",
        likelihood=task.likelihood,
        gamma0=gamma,
        solver="lanczos",
        krylov_size=20,
    )


def _muon(rate: Any, beta: Any, _: Task) -> optax.GradientTransformation:
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    spec = lambda params: jax.tree.map(
        lambda p: numbers if p.ndim == 2 else None, params
    )
    return o.muon(rate, beta=beta, muon_weight_dimension_numbers=spec)


def _galore(rate: Any, b2: Any, _: Task) -> optax.GradientTransformation:
    """Optax's, which takes no trees with `None` in them: it gets lists of leaves."""
    tx = o.galore(rate, 8, base_optimizer=optax.scale_by_adam(b2=b2))

    def update(updates, state, params=None):
        leaves, structure = jax.tree.flatten(updates)
        found, state = tx.update(leaves, state, jax.tree.leaves(params))
        return jax.tree.unflatten(structure, found), state

    init = lambda params: tx.init(jax.tree.leaves(params))
    return optax.GradientTransformation(init, update)


def _sophia_g(rate: Any, gamma: Any, task: Task) -> optax.GradientTransformation:
    options = {"weight_decay": 0.0, "likelihood": task.likelihood}
    return o.sophia_g(rate, gamma=gamma, **options)


def _mfac(window: int) -> Make:
    return lambda r, damping, t: o.mfac(r, window, damping)


def _mkor(interval: int) -> Make:
    return lambda r, gamma, t: o.mkor(r, gamma=gamma, update_interval=interval)


def _forward_diagonal(loss, params, batch, grads, key):
    """From differences: one gradient, where an exact product takes three of them."""
    hutchinson = px.curvature.hutchinson_diagonal
    options = {"hvp_mode": "forward_diff", "grads": grads}
    return hutchinson(lambda p: loss(p, batch), params, key, **options)


def _part_diagonal(loss, params, batch, grads, key):
    """Of a part of the batch, as small as the one Sophia's paper takes (32 of 480)."""
    del grads
    part = jax.tree.map(lambda x: x[: max(1, len(x) // 15)], batch)
    return px.curvature.hutchinson_diagonal(lambda p: loss(p, part), params, key)


def _bare(derive: Callable) -> Callable:
    """A step along what is derived, without any optimizer."""

    def step(rate, task, params, state, batch, key):
        del key
        move = derive(jax.grad(lambda p: task.loss(p, batch)), params)
        return jax.tree.map(lambda p, m: p - rate * m, params, move), state

    return step


def _gradient_and_product(gradient: Callable, params: Any) -> Any:
    """Both from one pass, as any exact method must have them."""
    both = jax.jvp(gradient, (params,), (params,))
    return jax.tree.map(jnp.add, *both)


_LAYERS = frozenset({"layers"})
_EPS = ("eps", (1e-4, 1e-2, 1e-6))
_WINDOW = ("damping", (1e-1, 1e-3, 1.0))
_FACTORS = ("damping", (1e-3, 1e-5, 1e-1))
_FORGET = ("gamma", (0.95, 0.92, 0.99))
_MOMENT = ("b2", (0.999, 0.99, 0.9))
_RADIUS: dict[str, Any] = {
    "rates": (1e-2, 1e-1, 1.0, 10.0, 1e2, 1e3),
    "keeps": True,
    "needs": frozenset({"deterministic"}),
}

_ALL = (
    # What no method can be without: the least that those with a gradient, and with an
    # exact Hessian product too, can cost.
    *(
        Method(
            name,
            lambda r, own, t: r,
            "bare",
            races=False,
            init=lambda tx, params: (),
            step=_bare(derive),
        )
        for name, derive in (
            ("bare gradient", lambda gradient, params: gradient(params)),
            ("bare gradient and product", _gradient_and_product),
        )
    ),
    # First order, and baselines
    Method(
        "sgd",
        lambda r, m, t: optax.sgd(r, momentum=m, nesterov=True),
        "first",
        "momentum",
        (0.9, 0.0, 0.99),
    ),
    Method(
        "adamw",
        lambda r, b2, t: optax.adamw(r, b2=b2, weight_decay=0.0),
        "first",
        *_MOMENT,
    ),
    Method("muon", _muon, "first", "beta", (0.95, 0.9, 0.8), needs=_LAYERS),
    Method("galore", _galore, "first", *_MOMENT, needs=_LAYERS),
    *(
        Method(
            "lbfgs" if trait == "deterministic" else "lbfgs whole",
            lambda r, memory, t: o.lbfgs(memory_size=int(memory)),
            "newton",
            "memory_size",
            (10, 5, 20, 50),
            rates=(),
            static=True,
            keeps=True,
            whole=trait == "whole",
            needs=frozenset({trait}),
        )
        for trait in ("deterministic", "whole")
    ),
    # Diagonals
    Method(
        "adahessian k=1",
        lambda r, eps, t: o.adahessian(r, eps=eps),
        "diagonal",
        *_EPS,
        fused=True,
    ),
    Method(
        "adahessian k=5",
        lambda r, eps, t: o.adahessian(r, eps=eps, update_interval=5),
        "diagonal",
        *_EPS,
    ),
    *(
        Method(
            f"adahessian forward k={k}",
            lambda r, eps, t, k=k: o.adahessian(r, eps=eps, update_interval=k),
            "diagonal",
            *_EPS,
            diagonal=_forward_diagonal,
            races=False,
        )
        for k in (1, 5)
    ),
    Method(
        "sophia_h k=10",
        lambda r, gamma, t: o.sophia_h(r, gamma=gamma, weight_decay=0.0),
        "diagonal",
        "gamma",
        (0.01, 0.1, 1.0),
    ),
    *(
        Method(
            f"sophia_h {name} k=10",
            lambda r, gamma, t: o.sophia_h(r, gamma=gamma, weight_decay=0.0),
            "diagonal",
            "gamma",
            (0.01, 0.1, 1.0),
            diagonal=diagonal,
            races=False,
        )
        for name, diagonal in (("forward", _forward_diagonal), ("part", _part_diagonal))
    ),
    Method(
        "sophia_g k=10",
        _sophia_g,
        "diagonal",
        "gamma",
        (0.05, 0.005, 0.5),
        needs=frozenset({"outputs"}),
    ),
    # Windows of gradients
    Method("mfac w=16", _mfac(16), "window", *_WINDOW),
    Method("mfac w=64", _mfac(64), "window", *_WINDOW),
    Method(
        "natural_galore",
        lambda r, damping, t: o.natural_galore(r, 8, scale=1.0, damping=damping),
        "window",
        "damping",
        (1e-3, 1e-5, 1e-1),
        needs=_LAYERS,
    ),
    # Factors of layers
    Method("mkor k=1", _mkor(1), "layers", *_FORGET, needs=_LAYERS, races=False),
    Method("mkor k=10", _mkor(10), "layers", *_FORGET, needs=_LAYERS),
    Method("mkor k=100", _mkor(100), "layers", *_FORGET, needs=_LAYERS, races=False),
    Method(
        "mkor_h k=10",
        lambda r, gamma, t: o.mkor_h(r, gamma=gamma),
        "layers",
        *_FORGET,
        needs=_LAYERS,
    ),
    Method(
        "kfac",
        lambda r, damping, t: o.kfac(r, damping=damping),
        "layers",
        *_FACTORS,
        needs=_LAYERS,
    ),
    Method(
        "ekfac",
        lambda r, damping, t: o.ekfac(r, damping=damping),
        "layers",
        *_FACTORS,
        needs=_LAYERS,
    ),
    # Factors of tensors
    Method(
        "soap",
        lambda r, b2, t: o.soap(r, b2=b2, weight_decay=0.0),
        "tensors",
        "b2",
        (0.95, 0.9, 0.99),
    ),
    Method(
        "shampoo",
        lambda r, eps, t: o.shampoo(r, eps=eps),
        "tensors",
        "eps",
        (1e-6, 1e-8, 1e-4),
    ),
    # Newton
    Method("newton", _newton("search"), "newton", **_RADIUS),
    Method("newton fixed", _newton("fixed"), "newton", **_RADIUS),
    Method("newton lanczos", _lanczos, "newton", races=False),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

# Of the library's own, what uses curvature.
SECOND_ORDER = tuple(
    m.name
    for m in _ALL
    if m.kind not in ("bare", "first", "tensors") and not m.name.startswith("lbfgs")
)


def likelihood_outputs(task: Task) -> Callable | None:
    """What the loss is a likelihood of: residuals are outputs that should be zero."""
    if task.predict is not None or task.residual is None:
        return task.predict
    residual = task.residual
    return lambda params, batch: residual(params, batch)[:, None]


def training_step(method: Method, task: Task) -> Callable:
    """`step(params, state, batch, key, rate, own) -> (params, state)`, for `jit`."""
    predict = likelihood_outputs(task)

    def step(params, state, batch, key, rate, own):
        tx = method.make(rate, own, task)
        batch = task.whole if method.whole else batch
        if method.step is not None:
            return method.step(tx, task, params, state, batch, key)
        tx = optax.with_extra_args_support(tx)
        if method.fused or method.keeps:
            loss = lambda p: task.loss(p, batch)
            derive = _fused if method.fused else _kept
            grads, extra = derive(loss, params, state, key)
            if method.kind == "newton" and not method.name.startswith("lbfgs"):
                extra |= _curvature(task, params, batch)
        else:
            prepare = o.extras(tx, task.loss, predict=predict, residual=task.residual)
            _, grads, extra = prepare(params, batch, key=key, state=state)
            if method.diagonal is not None:
                given = params, batch, extra["grad"], key
                extra["hessian_diag"] = lambda: method.diagonal(task.loss, *given)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def _fused(loss: Callable, params: Any, state: Any, key: jax.Array) -> tuple[Any, dict]:
    """The gradient, and sizes of a diagonal from the same pass: what is averaged."""
    del state
    hutchinson = px.curvature.value_grad_and_hutchinson
    _, grads, diag = hutchinson(loss, params, key, absolute=True)
    return jax.tree.map(jnp.conj, grads), {"hessian_diag": diag}


def _kept(loss: Callable, params: Any, state: Any, key: jax.Array) -> tuple[Any, dict]:
    """The gradient that the last step's search left in the state."""
    del key
    value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
    return grads, {"value": value, "grad": grads, "value_fn": loss}


def _curvature(task: Task, params: Any, batch: Any) -> dict[str, Any]:
    if task.curvature is not None:
        return {"curvature": task.curvature(params)}
    assert task.residual is not None
    return {"residual_fn": lambda p: task.residual(p, batch)}


def first_state(method: Method, task: Task, params: Any, rate: Any, own: Any) -> Any:
    """The optimizer's first state."""
    return method.init(method.make(rate, own, task), params)
