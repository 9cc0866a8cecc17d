"""Sophia: its limits and orders, and equality with Optax and with the authors' form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import curvature, optimizers


def _loss(p):
    scale = jnp.asarray([3.0, 0.5, 0.01], p["a"].dtype)
    flat = jnp.sum(scale * jnp.sin(p["a"]) ** 2) + jnp.sum(p["a"]) ** 4 / 10
    return flat + jnp.sum(p["b"] ** 2)


def _params(dtype):
    return {"a": jnp.asarray([1.0, -0.7, 0.4], dtype), "b": jnp.ones((2, 2), dtype)}


def _train(tx, params, steps, **extra):
    """Parameters after each step, and the last state."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(_loss)(params)
        updates, state = tx.update(grads, state, params, obj_fn=_loss, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    scan = lambda: jax.lax.scan(step, (params, tx.init(params)), None, steps)
    (_, state), trajectory = jax.jit(scan)()
    return trajectory, state


def test_steps_of_optax():
    """Twenty steps, two estimates and more, bit for bit; our own defaults differ."""
    params = _params(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        theirs, their_state = _train(
            optax.contrib.sophia(0.1, weight_decay=1e-4), params, 20
        )
    ours, state = _train(
        optimizers.sophia_h(0.1, weight_decay=1e-4, compat="optax"), params, 20
    )
    for name in params:
        np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(state[0].h[name], their_state[0].nu[name])
    other, _ = _train(optimizers.sophia_h(0.1, weight_decay=1e-4), params, 20)
    assert np.max(np.abs(other["a"] - theirs["a"])) > 1e-3


def _first(tx, g, diag):
    return jax.jit(lambda: tx.update(g, tx.init(g), g, hessian_diag=diag))()


def test_small_steps_are_preconditioned_momentum(precision, rng):
    """Three steps with one estimate, large enough to clip nothing."""
    g = rng.normal(size=(3, 4))
    d = 5 + rng.random(4)
    params = jnp.zeros(4, precision.dtype)
    tx = optimizers.scale_by_sophia(0.9, 0.0, gamma=2.0)

    def run(g):
        state, updates = tx.init(params), []
        for row in g:
            out, state = tx.update(
                row, state, params, hessian_diag=jnp.asarray(d, precision.dtype)
            )
            updates.append(out)
        return jnp.stack(updates), state

    updates, state = jax.jit(run)(jnp.asarray(g, precision.dtype))
    m = np.zeros(4)
    for row, found in zip(g, updates, strict=True):
        m = 0.9 * m + 0.1 * row
        limit = precision.tolerance(50)
        np.testing.assert_allclose(found, m / (2 * d), rtol=limit, atol=limit)
    assert float(state.win_rate) == 1.0
    assert (int(state.count), int(state.refreshes)) == (3, 1)


@pytest.mark.parametrize("diag", [0.0, -3.0])
def test_without_positive_curvature_steps_are_signs(diag, precision):
    g = jnp.asarray([2.0, -1e-6, 0.0], precision.dtype)
    updates, state = _first(
        optimizers.scale_by_sophia(), g, jnp.full(3, diag, precision.dtype)
    )
    np.testing.assert_array_equal(updates, [1, -1, 0])
    assert float(state.win_rate) == pytest.approx(1 / 3)


def test_orders():
    """The first step knows the first estimate, or only the second step does."""
    g, d = jnp.asarray([1.0]), jnp.asarray([1000.0])
    first, _ = _first(optimizers.scale_by_sophia(0.0, 0.0, gamma=1.0), g, d)
    np.testing.assert_allclose(first, [1e-3])
    tx = optimizers.scale_by_sophia(0.0, 0.0, gamma=1.0, order="step_first")
    updates, state = _first(tx, g, d)
    np.testing.assert_array_equal(updates, [1.0])
    np.testing.assert_array_equal(state.h, [1000.0])
    updates, _ = tx.update(g, state, g, hessian_diag=d)
    np.testing.assert_allclose(updates, [1e-3])


def test_bias_correction_and_no_clipping():
    g, d = jnp.asarray([4.0]), jnp.asarray([1.0])
    options = {"b1": 0.9, "b2": 0.0, "gamma": 1.0, "clip_threshold": None}
    plain, state = _first(optimizers.scale_by_sophia(**options), g, d)
    np.testing.assert_allclose(plain, [0.4], rtol=1e-6)
    assert float(state.win_rate) == 1.0
    tx = optimizers.scale_by_sophia(**options, bias_correction=True)
    np.testing.assert_allclose(_first(tx, g, d)[0], [4.0], rtol=1e-6)


def test_win_rate_counts_coordinates():
    tx = optimizers.scale_by_sophia(0.0, 0.0, gamma=1.0)
    g = {"a": jnp.asarray([0.5, 2.0]), "z": jnp.asarray([0.1 + 3j, 5 + 5j])}
    ones = {"a": jnp.ones(2), "z": jnp.asarray([1 + 1j, 1 + 1j])}
    updates, state = _first(tx, g, ones)
    assert float(state.win_rate) == pytest.approx(2 / 6)
    np.testing.assert_allclose(updates["z"], [0.1 + 1j, 1 + 1j], rtol=1e-6)


# Sophia-G ---------------------------------------------------------------------------


def _fixed_labels(labels):
    """A likelihood whose draws are known, so that gradients can be written down."""
    named = optax.softmax_cross_entropy_with_integer_labels
    return curvature.Likelihood(lambda key, f: labels, named)


def test_the_form_of_the_authors(rng):
    """`gamma h` is `rho bs` times a running mean of squared gradients of the batch."""
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(3, 2, 4)))
        labels = jnp.asarray(rng.integers(0, 5, size=(3, 2)))
        w = jnp.asarray(rng.normal(size=(4, 5)))
        predict = lambda w: x @ w
        tx = optimizers.scale_by_sophia(
            gamma=0.05,
            update_interval=2,
            estimator=optimizers.bartlett_estimator(likelihood=_fixed_labels(labels)),
        )
        mean_loss = lambda w: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(predict(w), labels)
        )

        def run(w):
            state, ema, gaps = tx.init(w), jnp.zeros_like(w), []
            for t in range(4):
                g = jax.grad(mean_loss)(w)
                ema = 0.99 * ema + 0.01 * g**2 if t % 2 == 0 else ema
                updates, state = tx.update(g, state, w, predict_fn=predict)
                gaps.append(jnp.max(jnp.abs(0.05 * state.h / (0.05 * 6 * ema) - 1)))
                w = w - 0.1 * updates
            return jnp.stack(gaps)

        assert np.max(jax.jit(run)(w)) < 1e-12


def test_drawn_labels_need_no_second_derivative(key):
    """A model that can be differentiated only once, in reverse mode."""

    @jax.custom_vjp
    def model(w):
        return jnp.stack([w, -w])

    @jax.custom_vjp
    def backward(ct):
        return ct[0] - ct[1]

    def refuse(*args):
        raise AssertionError("differentiated twice")

    backward.defvjp(refuse, refuse)
    model.defvjp(lambda w: (model(w), None), lambda _, ct: (backward(ct),))
    w = jnp.ones(3)
    tx = optimizers.sophia_g(0.1, likelihood="bernoulli", key=key)
    updates, _ = tx.update(w, tx.init(w), w, predict_fn=model)
    assert np.all(np.isfinite(updates))


def test_estimates_run_at_every_kth_step():
    calls = []

    def predict(w):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.stack([w, -w])

    w = jnp.ones(3)
    tx = optimizers.sophia_g(0.1, update_interval=3)
    step = lambda s, _: (tx.update(w, s, w, predict_fn=predict)[1], None)
    jax.block_until_ready(jax.jit(lambda: jax.lax.scan(step, tx.init(w), None, 7))())
    jax.effects_barrier()
    assert len(calls) == 3


def test_what_is_missing_is_named():
    w = jnp.ones(3)
    tx = optimizers.sophia_g(0.1)
    with pytest.raises(ValueError, match=r"`predict_fn`.*hessian_diag="):
        tx.update(w, tx.init(w), w)
    tx = optimizers.sophia_h(0.1)
    with pytest.raises(ValueError, match=r"`obj_fn`.*hessian_diag="):
        tx.update(w, tx.init(w), w)


BAD = [
    ({"order": "last"}, "'refresh_first', 'step_first'"),
    ({"compat": "torch"}, "`compat`"),
    ({"estimator": "fisher"}, "'hutchinson', 'gnb'"),
    ({"gamma": 0.0}, r"`gamma` must be in \(0, inf\)"),
    ({"clip_threshold": -1.0}, "`clip_threshold`"),
    ({"b1": 1.0}, "`b1`"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.scale_by_sophia(**options)
