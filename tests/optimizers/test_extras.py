"""Extras for any transformation: what is passed on, what is computed, and when."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px
from pathax.optimizers import MissingExtraError, extras, needs


o = px.optimizers

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)
PARAMS = {"b": jnp.array([0.5, -1.0]), "w": jnp.ones((3, 2))}


def predict(params, x, y):
    del y
    return jnp.tanh(x @ params["w"] + params["b"][None, :])


def loss(params, x, y):
    return jnp.mean((predict(params, x, y) - y) ** 2)


def _layered():
    """Parameters of an instrumented network, its loss and its outputs."""
    model = px.curvature.kron.instrument(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    outputs = lambda p, x, y: jax.vmap(eqx.combine(p, static))(x)
    return params, (lambda p, x, y: jnp.mean((outputs(p, x, y) - y) ** 2)), outputs


def _close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


# What is always there ---------------------------------------------------------------


def test_value_and_gradient_are_those_of_jax():
    value, grads, extra = extras(optax.sgd(0.1), loss)(PARAMS, X, Y)
    _close((value, grads), jax.value_and_grad(loss)(PARAMS, X, Y))
    _close((extra["value"], extra["grad"]), (value, grads))
    assert extra["obj_fn"](PARAMS) == extra["value_fn"](PARAMS) == value
    assert set(extra) == {"obj_fn", "value_fn", "value", "grad"}


def test_auxiliary_output_stays_beside_the_value():
    pair = lambda *args: (loss(*args), "aux")
    (value, aux), grads, extra = extras(optax.sgd(0.1), pair, has_aux=True)(
        PARAMS, X, Y
    )
    assert aux == "aux"
    _close((value, grads), jax.value_and_grad(loss)(PARAMS, X, Y))
    assert extra["value"] == extra["obj_fn"](PARAMS) == value


def test_functions_take_masked_trees():
    residual = lambda p, x, y: (predict(p, x, y) - y).reshape(-1)
    prepare = extras(optax.sgd(0.1), loss, predict=predict, residual=residual)
    _, _, extra = prepare(PARAMS, X, Y)
    masked = {**PARAMS, "b": optax.MaskedNode()}
    for name in ("obj_fn", "value_fn", "predict_fn", "residual_fn"):
        _close(extra[name](masked), extra[name](PARAMS))


def test_keys_are_passed_on_if_given():
    prepare = extras(optax.sgd(0.1), loss)
    assert "key" not in prepare(PARAMS, X, Y)[2]
    key = jax.random.key(0)
    assert prepare(PARAMS, X, Y, key=key)[2]["key"] is key


def test_complex_gradients_point_uphill():
    f = lambda z: jnp.sum(jnp.abs(z - (1 + 2j)) ** 2)
    z = jnp.array([0.5 - 0.5j])
    _, grads, extra = extras(optax.sgd(0.1), f)(z)
    assert f(z - 0.1 * grads) < f(z)
    # Negative control: what JAX returns is the conjugate.
    np.testing.assert_array_equal(extra["grad"], jax.grad(f)(z))
    assert f(z - 0.3 * extra["grad"]) > f(z)


def test_unused_extras_cost_nothing():
    """The compiled step of SGD is the one without extras."""
    tx = optax.sgd(0.1)
    prepare = extras(tx, loss, predict=predict)

    def with_extras(params):
        _, grads, extra = prepare(params, X, Y)
        return tx.update(grads, tx.init(params), params, **extra)[0]

    def without(params):
        grads = jax.grad(loss)(params, X, Y)
        return tx.update(grads, tx.init(params), params)[0]

    flops = lambda f: jax.jit(f).lower(PARAMS).compile().cost_analysis()["flops"]
    assert flops(with_extras) == flops(without)


def test_line_searches_take_all_extras():
    """Optax's own refuse what the objective does not name."""
    tx = o.lbfgs()
    prepare = extras(tx, loss, predict=predict)
    plain = lambda p: loss(p, X, Y)

    @jax.jit
    def both(params):
        value, grads, extra = prepare(params, X, Y, key=jax.random.key(0))
        updates, _ = tx.update(grads, tx.init(params), params, **extra)
        known = {"value": value, "grad": grads, "value_fn": plain}
        by_hand, _ = tx.update(grads, tx.init(params), params, **known)
        return updates, by_hand

    _close(*both(PARAMS))
    search = o.scale_by_backtracking_linesearch(5)
    known = {"value": plain(PARAMS), "grad": PARAMS, "value_fn": plain}
    with pytest.raises(TypeError, match="not consumed"):
        search.update(PARAMS, search.init(PARAMS), PARAMS, predict_fn=plain, **known)


# Statistics of layers ---------------------------------------------------------------


def _stats(tx, **options):
    params, loss, _ = _layered()
    prepare = extras(tx, loss, **options)
    return jax.eval_shape(lambda p: prepare(p, X, Y)[2].get("kron"), params)


_ONLY_WEIGHTS = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)

WRAPPED = {
    "plain": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(0.1)),
    "masked": lambda tx: optax.masked(tx, _ONLY_WEIGHTS),
    "multi_transform": lambda tx: optax.multi_transform(
        {"True": tx, "False": optax.sgd(0.1)},
        lambda params: jax.tree.map(str, _ONLY_WEIGHTS(params)),
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 5),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_statistics_are_found_out_through_wrappers(wrap):
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps mixes types
        assert _stats(wrap(optax.sgd(0.1))) is None
        stats = _stats(wrap(o.scale_by_mkor()))
    assert [s.a_mean.shape for s in stats] == [(4,), (5,)]
    assert all(s.a_factor is None for s in stats)  # the cheap ones do


def test_second_moments_only_where_means_do_not_do():
    stats = _stats(o.inject(o.kfac)(learning_rate=0.1))
    assert [s.g_factor.shape for s in stats] == [(4, 4), (2, 2)]


def test_statistics_are_those_of_the_loss():
    params, loss, _ = _layered()
    value, grads, extra = extras(o.scale_by_mkor(), loss)(params, X, Y)
    (same, stats), raw = px.curvature.kron.value_and_grad(loss)(params, X, Y)
    _close((value, grads, extra["kron"]), (same, raw, stats))


def test_chosen_layers():
    params, _, _ = _layered()
    last = px.curvature.kron.layers(params)[1:]
    stats = _stats(o.scale_by_mkor(layers=last), layers=last)
    assert len(stats) == 1


def test_bases_of_ekfac_come_from_its_state():
    params, loss, _ = _layered()
    tx = o.ekfac(0.1)
    prepare = extras(tx, loss)

    def run(params, with_state):
        state = tx.init(params)
        _, grads, extra = prepare(params, X, Y, state=state if with_state else None)
        return tx.update(grads, state, params, **extra)[0]

    updates = jax.eval_shape(lambda p: run(p, True), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="bases"):
        jax.eval_shape(lambda p: run(p, False), params)


def test_drawn_labels_are_computed_when_called_for():
    """Statistics come as a function, from labels that the key decides."""
    params, loss, outputs = _layered()
    prepare = extras(o.kfac(0.1), loss, predict=outputs, likelihood="gaussian")
    _, _, extra = prepare(params, X, Y, key=jax.random.key(0))
    _, _, other = prepare(params, X, Y, key=jax.random.key(1))
    a, b = extra["kron"](), other["kron"]()
    _close(a[0].a_factor, b[0].a_factor)
    assert float(jnp.abs(a[1].g_factor - b[1].g_factor).max()) > 0
    with pytest.raises(ValueError, match="key is missing"):
        prepare(params, X, Y)
    with pytest.raises(ValueError, match="predict_fn is missing"):
        extras(o.kfac(0.1), loss, likelihood="gaussian")(
            params, X, Y, key=jax.random.key(0)
        )


def test_networks_without_taps_are_told_of():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    f = lambda p, x: jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2)
    layers = px.curvature.kron.layers(px.curvature.kron.instrument(model))
    with pytest.raises(ValueError, match=r"kron\.instrument"):
        extras(o.scale_by_mkor(layers=layers), f)(params, X)


# Needs ------------------------------------------------------------------------------


def test_needs_of_chains_add_up():
    params, _, _ = _layered()
    tx = optax.chain(o.scale_by_mkor_h(), o.scale_by_sophia(estimator="gnb"), o.lbfgs())
    found = {"kron", "value", "predict_fn", "grad", "value_fn"}
    with jax.numpy_dtype_promotion("standard"):
        assert needs(tx, params) == found
        assert needs(optax.adam(0.1), params) == frozenset()


def test_needs_take_shapes_and_what_is_there():
    tx = o.gradient_normalized_newton()
    shapes = jax.eval_shape(lambda: PARAMS)
    assert needs(tx, shapes) == {"obj_fn", "curvature"}
    assert needs(tx, shapes, obj_fn=lambda p: loss(p, X, Y)) == {"curvature"}


def test_errors_that_no_extra_explains_are_raised():
    def update(updates, state, params=None, **extra):
        raise RuntimeError("of the transformation itself")

    tx = optax.GradientTransformationExtraArgs(optax.EmptyState, update)
    tx = tx._replace(init=lambda params: optax.EmptyState())
    with pytest.raises(RuntimeError, match="itself"):
        needs(tx, PARAMS)


def test_what_the_caller_lacks_is_named_by_the_update():
    tx = o.sophia_g(0.1, likelihood="gaussian")
    _, grads, extra = extras(tx, loss)(PARAMS, X, Y)
    with pytest.raises(MissingExtraError, match="`predict_fn`"):
        tx.update(grads, tx.init(PARAMS), PARAMS, **extra)
    _, grads, extra = extras(tx, loss, predict=predict)(PARAMS, X, Y)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, **extra)
    assert updates["w"].shape == (3, 2)
