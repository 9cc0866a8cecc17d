"""Every optimizer of the library, and the small problem that all of them are given.

A new optimizer joins by one entry of `MEMBERS`; a test finds those that are missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px


o = px.optimizers

STEPS = 100  # of the runs that must reach the optimum
BATCH = 8

# Many small programs are compiled, once each: it is compilation that must be fast.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def falling(peak: float) -> optax.Schedule:
    """A learning rate that falls to zero over the runs; Optax's mix types."""
    return lambda count: peak * (1 - jnp.asarray(count, jnp.float32) / STEPS)


@dataclass(frozen=True, eq=False)
class Member:
    """One optimizer and what it can't do.

    `covers` are the public names that it stands for. `quadratic` and `valley` are the
    fractions of the first loss that it must reach. The flags after `ours` say what is
    left out, each for a reason that the entry gives.
    """

    name: str
    factory: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    covers: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    quadratic: float = 2e-2
    valley: float = 0.15
    ours: bool = True
    strict: bool = True  # bears strict promotion of types
    layers: bool = False  # parameters of an instrumented model
    complex: bool = True
    half: bool = True
    none_leaves: bool = True
    maps_params: bool = True
    mirrors: bool = True  # every tree in its state has the structure of the parameters
    injects: bool = True
    static: tuple[str, ...] = ()  # what `inject` must be told of Optax's factories
    stable_types: bool = True
    ignores_unknown: bool = True
    masks: bool = True
    orbax: bool = True

    def make(self) -> optax.GradientTransformationExtraArgs:
        return self.factory(**self.options)


def _line_search(learning_rate: Any) -> Any:
    search = o.scale_by_backtracking_linesearch(10)
    return optax.chain(optax.sgd(learning_rate), search)


MEMBERS: tuple[Member, ...] = (
    # Newton and Gauss-Newton
    Member(
        "gradient_normalized_newton",
        o.gradient_normalized_newton,
        {"curvature": "ggn"},
        covers=("gradient_normalized_newton",),
        needs=frozenset({"obj_fn", "predict_fn"}),
        quadratic=1e-10,
        valley=1e-3,
    ),
    Member(
        "gradient_normalized_newton-lanczos",
        o.gradient_normalized_newton,
        {"curvature": "hessian", "solver": "lanczos", "krylov_size": 4},
        needs=frozenset({"obj_fn"}),
        quadratic=1e-10,
        valley=1e-3,
    ),
    # Diagonals
    Member(
        "adahessian",
        o.adahessian,
        # The larger `eps` is for the valley, where the Hessian is not positive.
        {"learning_rate": falling(0.3), "eps": 0.3},
        covers=("adahessian", "scale_by_adahessian", "hutchinson_estimator"),
        needs=frozenset({"obj_fn"}),
    ),
    Member(
        "sophia_h",
        o.sophia_h,
        {"learning_rate": falling(0.2), "update_interval": 2},
        covers=("sophia_h", "scale_by_sophia"),
        needs=frozenset({"obj_fn"}),
    ),
    Member(
        "sophia_g",
        o.sophia_g,
        {
            "learning_rate": falling(0.2),
            "update_interval": 2,
            "likelihood": "gaussian",
        },
        covers=("sophia_g", "bartlett_estimator"),
        needs=frozenset({"predict_fn"}),
    ),
    # Factors of tensors
    Member(
        "soap",
        o.soap,
        {"learning_rate": falling(0.2), "update_interval": 3},
        covers=("soap", "scale_by_soap"),
    ),
    Member(
        "shampoo",
        o.shampoo,
        {"learning_rate": falling(0.5)},
        covers=("shampoo", "scale_by_shampoo"),
    ),
    # Factors of layers
    Member(
        "mkor",
        o.mkor,
        {"learning_rate": falling(0.05), "update_interval": 2},
        covers=("mkor", "scale_by_mkor"),
        needs=frozenset({"kron"}),
        layers=True,
        maps_params=False,  # its state has an entry a layer
    ),
    Member(
        "mkor_h",
        o.mkor_h,
        {"learning_rate": falling(0.05), "update_interval": 2, "check_every": 5},
        covers=("mkor_h", "scale_by_mkor_h"),
        needs=frozenset({"kron", "value"}),
        layers=True,
        maps_params=False,  # its state has an entry a layer
    ),
    Member(
        "kfac",
        o.kfac,
        {"learning_rate": falling(0.1), "inverse_interval": 3},
        covers=("kfac", "scale_by_kfac"),
        needs=frozenset({"kron"}),
        layers=True,
        maps_params=False,  # its state has an entry a layer
    ),
    Member(
        "ekfac",
        o.ekfac,
        {"learning_rate": falling(0.1), "inverse_interval": 3},
        covers=("ekfac", "scale_by_ekfac"),
        needs=frozenset({"kron"}),
        layers=True,
        maps_params=False,  # its state has an entry a layer
    ),
    # Windows of gradients
    Member(
        "mfac",
        o.mfac,
        {"learning_rate": falling(0.2), "window": 4, "damping": 0.1},
        covers=("mfac", "scale_by_mfac"),
    ),
    Member(
        "natural_galore",
        o.natural_galore,
        {"learning_rate": falling(0.3), "rank": 1, "update_interval": 3, "history": 4},
        covers=("natural_galore", "scale_by_natural_galore", "scale_by_window_fisher"),
        mirrors=False,  # a leaf has two projectors
    ),
    # Optax's own
    Member(
        "lbfgs",
        o.lbfgs,
        covers=("lbfgs", "scale_by_zoom_linesearch"),
        needs=frozenset({"value", "grad", "value_fn"}),
        quadratic=1e-10,
        valley=1e-3,
        ours=False,
        strict=False,
        half=False,  # mixes types
        maps_params=False,  # asks for the type of the first leaf
        injects=False,
        stable_types=False,  # weak types of its first state don't stay
        ignores_unknown=False,
        masks=False,  # wants the gradient of what it does not see
    ),
    Member(
        "backtracking",
        _line_search,
        {"learning_rate": 1.0},
        covers=("scale_by_backtracking_linesearch",),
        needs=frozenset({"value", "grad", "value_fn"}),
        ours=False,
        strict=False,
        half=False,  # mixes types
        maps_params=False,  # asks for the type of the first leaf
        injects=False,
        stable_types=False,  # weak types of its first state don't stay
        ignores_unknown=False,
        masks=False,  # wants the gradient of what it does not see
    ),
    Member(
        "adamw",
        optax.adamw,
        {"learning_rate": falling(0.2), "weight_decay": 0.0},
        ours=False,
        strict=False,
    ),
    Member(
        "muon",
        o.muon,
        {"learning_rate": falling(0.2)},
        covers=("muon",),
        ours=False,
        strict=False,
        maps_params=False,  # its partition hides some
    ),
    Member(
        "galore",
        o.galore,
        {"learning_rate": falling(0.2), "rank": 2, "update_proj_gap": 5},
        covers=("galore",),
        ours=False,
        strict=False,
        complex=False,
        none_leaves=False,
        static=("rank",),
        orbax=False,  # has empty arrays in its state
    ),
    Member(
        "optax_sophia",
        o.optax_sophia,
        {"learning_rate": falling(0.1), "update_interval": 2},
        covers=("optax_sophia",),
        needs=frozenset({"obj_fn"}),
        ours=False,
        strict=False,
        complex=False,
    ),
)


# The problem ------------------------------------------------------------------------


def _data(bend: float, seed: int = 0) -> dict[str, jax.Array]:
    """Inputs and labels that parameters drawn at random explain without error."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, 3))
    z = x @ rng.normal(size=(3, 2)) + rng.normal(size=2)
    y = np.stack([z[:, 0], (1 + 4 * bend) * (z[:, 1] - bend * z[:, 0] ** 2)], axis=1)
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), {"x": x, "y": y, "bend": bend}
    )


QUADRATIC, VALLEY = _data(0.0), _data(0.5)


def _bend(z: jax.Array, bend: jax.Array) -> jax.Array:
    """The identity for `bend = 0`; else Rosenbrock's curved valley, in outputs."""
    second = (1 + 4 * bend) * (z[:, 1] - bend * z[:, 0] ** 2)
    return jnp.stack([z[:, 0], second], axis=1)


class Problem:
    """A network of one linear layer, its loss, and one compiled step of a member."""

    def __init__(self, member: Member):
        self.member = member
        self.tx = member.make()
        self.params, self.static = _parameters(member)
        self.prepare = px.optimizers.extras(
            self.tx, self.loss, predict=self.predict, residual=self.residual
        )
        self.traces = 0
        self.compiled = jax.jit(self._counted)
        self.state = self.tx.init(self.params)

    def predict(self, params, batch):
        if self.member.layers:
            model = eqx.combine(params, self.static)
            z = jax.vmap(model)(batch["x"])
        else:
            z = batch["x"] @ params["w"] + params["b"][None, :]
        return _bend(z, batch["bend"])

    def residual(self, params, batch):
        return (self.predict(params, batch) - batch["y"]).reshape(-1)

    def loss(self, params, batch):
        return jnp.mean(self.residual(params, batch) ** 2) / 2

    def step(self, params, state, batch):
        """The training step that is the same for all."""
        value, grads, extra = self.prepare(params, batch, state=state)
        updates, state = self.tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    def _counted(self, *args):
        self.traces += 1
        return self.step(*args)

    def extras(self, params, batch, tx=None):
        """Gradients and extras, for an update by another transformation."""
        tx = self.tx if tx is None else tx
        prepare = px.optimizers.extras(
            tx, self.loss, predict=self.predict, residual=self.residual
        )
        _, grads, extra = prepare(params, batch, state=tx.init(params))
        return grads, extra


def _parameters(member: Member) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=(3, 2)) / 2, jnp.float32)
    b = jnp.zeros(2, jnp.float32)
    if not member.layers:
        empty = {"none": None} if member.none_leaves else {}
        return {"b": b, "w": w, **empty}, None
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: (m.weight, m.bias), model, (w.T, b))
    model = px.curvature.kron.instrument(model)
    return eqx.partition(model, eqx.is_inexact_array)
