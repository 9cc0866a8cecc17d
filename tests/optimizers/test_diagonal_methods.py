"""What AdaHessian and Sophia owe Optax: types, wrappers, transformations, devices."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from pathax import curvature, optimizers


X = jnp.asarray(np.linspace(-1, 1, 24).reshape(8, 3), jnp.float32)


def _predict(p, x=X):
    z = p["z"]
    return jnp.tanh(x @ p["w"]) + (p["b"] + jnp.real(z * z))[None, :]


def _loss(p, x=X):
    return jnp.mean(_predict(p, x) ** 2)


def _params(dtype=jnp.float32):
    return {
        "w": jnp.asarray(np.linspace(-0.8, 0.9, 6).reshape(3, 2), dtype),
        "b": jnp.asarray([0.3, -0.2], dtype),
        "z": jnp.asarray([0.5 + 0.2j, -1.0 + 0.7j], jnp.complex64),
        "absent": None,
        "empty": jnp.zeros((2, 0), dtype),
    }


METHODS = {
    "adahessian": lambda **kw: optimizers.adahessian(0.1, update_interval=2, **kw),
    "sophia_h": lambda **kw: optimizers.sophia_h(0.1, update_interval=2, **kw),
    "sophia_g": lambda **kw: optimizers.sophia_g(
        0.1, update_interval=2, likelihood="gaussian", **kw
    ),
}


def _extras(loss=_loss, predict=_predict):
    return {"obj_fn": loss, "predict_fn": predict, "unknown": 3}


def _step(tx, params, state):
    grads = jax.tree.map(jnp.conj, jax.grad(_loss)(params))
    updates, state = tx.update(grads, state, params, **_extras())
    return optax.apply_updates(params, updates), state


def _kinds(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


def test_one_trace_and_lasting_types(make, no_retrace):
    """Three steps compile once; the state keeps its types and survives a pickle."""
    tx, params = make(), _params()
    start = jax.jit(tx.init)(params)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, shapes)
    states, calls = [start], []
    compiled = jax.jit(lambda p, s: _step(tx, p, s))
    for _ in range(2):
        calls.append((params, states[-1]))
        params, state = compiled(params, states[-1])
        assert _kinds(state) == _kinds(start)
        states.append(pickle.loads(pickle.dumps(state)))
    calls.append((params, states[-1]))
    results = no_retrace(lambda p, s: _step(tx, p, s), *calls)
    np.testing.assert_array_equal(results[1][0]["w"], params["w"])
    assert params["absent"] is None
    assert params["empty"].shape == (2, 0)


def test_half_precision_in_and_out(make):
    """Updates in the gradient's dtype, curvature in single precision."""
    tx, params = make(), _params(jnp.bfloat16)
    del params["z"]
    x = X.astype(jnp.bfloat16)
    predict = lambda p: jnp.tanh(x @ p["w"]) + p["b"][None, :]
    extras = _extras(lambda p: jnp.mean(predict(p) ** 2), predict)

    def first(params):
        return tx.update(params, tx.init(params), params, **extras)

    updates, state = jax.jit(first)(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {x.dtype}
    second = state[0].nu if hasattr(state[0], "nu") else state[0].h
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(second))
    assert bool(jnp.any(updates["w"] != 0))


@pytest.mark.parametrize("name", ["adahessian", "sophia_g"])
def test_scan_and_vmap(name):
    """A scan gives the loop's steps; a batch of runs, the runs."""
    tx = METHODS[name]()

    def run(scale, steps):
        params = jax.tree.map(lambda p: p * scale.astype(p.dtype), _params())
        start = params, tx.init(params)
        body = lambda carry, _: (_step(tx, *carry), None)
        return jax.lax.scan(body, start, None, steps)[0][0]["w"]

    scales = jnp.asarray([1.0, 0.5])
    batch = jax.jit(jax.vmap(lambda s: run(s, 3)))(scales)
    step = jax.jit(lambda p, s: _step(tx, p, s))
    for scale, found in zip(scales, batch, strict=True):
        params = jax.tree.map(lambda p, s=scale: p * s.astype(p.dtype), _params())
        state = tx.init(params)
        for _ in range(3):
            params, state = step(params, state)
        np.testing.assert_allclose(found, params["w"], rtol=1e-4, atol=1e-6)


def test_complex_leaves_are_two_real_ones(make):
    """The same steps as with real and imaginary parts for parameters."""
    parts = {"re": jnp.asarray([0.5, -1.0]), "im": jnp.asarray([0.2, 0.7])}
    join = lambda p: jax.lax.complex(p["re"], p["im"])
    whole = join(parts)
    predict = lambda z: jnp.stack([jnp.real(z**2), 3 * jnp.imag(z)])
    diag = lambda z: jax.lax.complex(1 + jnp.real(z) ** 2, 2 + jnp.imag(z) ** 2)
    tx = make()

    def both():
        loss = lambda z: jnp.sum(predict(z) ** 2)
        g = jnp.conj(jax.grad(loss)(whole))
        d = diag(whole)
        updates, _ = tx.update(g, tx.init(whole), whole, hessian_diag=d)
        split = jax.grad(lambda p: loss(join(p)))(parts)
        given = {"re": jnp.real(d), "im": jnp.imag(d)}
        apart, _ = tx.update(split, tx.init(parts), parts, hessian_diag=given)
        return updates, join(apart)

    together, apart = jax.jit(both)()
    np.testing.assert_allclose(together, apart, rtol=1e-6)


# Wrappers ---------------------------------------------------------------------------


def test_masks_with_bind(make):
    """Steps of the unmasked part alone; without `bind` the error says to use it."""
    params, mask = _params(), {"w": True, "b": True, "z": False}
    mask |= {"absent": None, "empty": False}
    part = {"w": params["w"], "b": params["b"]}
    tx = make()
    masked = optax.masked(tx, mask)
    groups = jax.tree.map(lambda m: "on" if m else "off", mask)
    several = optax.multi_transform({"on": tx, "off": optax.set_to_zero()}, groups)

    def steps():
        grads = jax.grad(_loss)(params)
        bound = _extras(curvature.bind(_loss, params), curvature.bind(_predict, params))
        alone = _extras(
            lambda p: _loss({**params, **p}), lambda p: _predict({**params, **p})
        )
        sub = {name: grads[name] for name in part}
        out = [
            t.update(grads, t.init(params), params, **bound)[0]
            for t in (masked, several)
        ]
        return out, tx.update(sub, tx.init(part), part, **alone)[0], grads

    (in_mask, in_group), alone, grads = jax.jit(steps)()
    for name in part:
        np.testing.assert_allclose(in_mask[name], alone[name], rtol=1e-5)
        np.testing.assert_allclose(in_group[name], alone[name], rtol=1e-5)
    np.testing.assert_array_equal(in_mask["z"], grads["z"])
    np.testing.assert_array_equal(in_group["z"], 0)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the loss raises
        masked.update(grads, masked.init(params), params, **_extras())
    assert "curvature.bind" in "".join(caught.value.__notes__)


def test_masks_with_a_given_diagonal(make):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    mask = {"a": True, "b": False}
    tx = optax.masked(make(), mask, mask_compatible_extra_args=True)
    updates, _ = tx.update(params, tx.init(params), params, hessian_diag=params)
    assert bool(jnp.all(updates["a"] < 0))
    plain = optax.masked(make(), mask)
    with pytest.raises(ValueError, match="mask_compatible_extra_args=True"):
        plain.update(params, plain.init(params), params, hessian_diag=params)


FACTORIES = {
    "adahessian": (optimizers.adahessian, {}),
    "sophia_h": (optimizers.sophia_h, {}),
    "sophia_g": (optimizers.sophia_g, {"likelihood": "gaussian"}),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_injected_hyperparameters(name):
    """All numbers but the static ones are arrays, an interval too; results stay."""
    factory, options = FACTORIES[name]
    schedule = lambda count: 0.1 / (1.0 + jnp.asarray(count, jnp.float32))
    options = {**options, "update_interval": 2, "weight_decay": 0.01}
    injected = optimizers._inject.inject(factory)(schedule, **options)
    plain = factory(schedule, **options)

    def steps(tx):
        params = {"w": _params()["w"]}
        predict = lambda p: jnp.tanh(X @ p["w"])
        loss = lambda p: jnp.mean(predict(p) ** 2)

        def body(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            extras = _extras(loss, predict)
            updates, state = tx.update(grads, state, params, **extras)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), None, 3)[0]

    (found, state), (expected, _) = jax.jit(lambda: (steps(injected), steps(plain)))()
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)
    assert {"b2", "update_interval", "weight_decay"} <= state.hyperparams.keys()
    assert not {"num_samples", "key"} & state.hyperparams.keys()


def test_wrappers_of_optax(make):
    """Micro-steps, steps that are not finite, and maps over parameters in the state."""
    tx, params = make(), {"w": _params()["w"]}
    predict = lambda p: jnp.tanh(X @ p["w"])
    loss = lambda p: jnp.mean(predict(p) ** 2)
    wrapped = optax.MultiSteps(optax.apply_if_finite(tx, 2), 2)

    def steps():
        grads, extras = jax.grad(loss)(params), _extras(loss, predict)
        broken = jax.tree.map(lambda g: g * jnp.nan, grads)
        state, out = wrapped.init(params), []
        for g in (grads, grads, broken, broken):
            updates, state = wrapped.update(g, state, params, **extras)
            out.append(updates["w"])
        direct, _ = tx.update(grads, tx.init(params), params, **extras)
        return out, direct["w"]

    with jax.numpy_dtype_promotion("standard"):  # which MultiSteps needs
        (first, second, _, last), direct = jax.jit(steps)()
    np.testing.assert_array_equal(first, 0)
    np.testing.assert_allclose(second, direct, rtol=1e-5)
    np.testing.assert_array_equal(last, 0)
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda x: "spec", state)
    assert marked[0].mu["w"] == "spec"
    assert marked[0].count is state[0].count


@pytest.mark.parametrize("name", ["adahessian", "sophia_g"])
def test_a_batch_over_devices(name, devices):
    """Sharded data and replicated parameters give the steps of one device."""
    tx, params = METHODS[name](), _params()
    sharded = jax.device_put(X, NamedSharding(devices, P("devices")))

    def step(params, x):
        predict = lambda p: _predict(p, x)
        loss = lambda p: jnp.mean(predict(p) ** 2)
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(params))
        return tx.update(grads, tx.init(params), params, **_extras(loss, predict))

    one, _ = jax.jit(step)(params, X)
    many, _ = jax.jit(step)(params, sharded)
    for name in ("w", "b", "z"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-3, atol=1e-6)
