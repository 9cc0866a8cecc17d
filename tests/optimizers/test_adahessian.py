"""AdaHessian against a reference in NumPy, and what its options mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import curvature, optimizers


def _reference(
    grads, diags, *, b1, b2, eps, power, interval, average, bias="refreshes"
):
    """Updates for one leaf, in double precision."""
    m, v, refreshes, updates = 0.0, 0.0, 0, []
    for t, (g, d) in enumerate(zip(grads, diags, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        if (t - 1) % interval == 0:
            v = b2 * v + (1 - b2) * average(d) ** 2
            refreshes += 1
        tau = refreshes if bias == "refreshes" else t
        root = np.sqrt(v / (1 - b2**tau)) ** power
        updates.append(m / (1 - b1**t) / (root + eps))
    return np.stack(updates)


def _run(tx, params, grads, diags):
    """Updates of all steps for given gradients and diagonals, in one compiled scan."""

    def step(state, inputs):
        g, d = inputs
        updates, state = tx.update(g, state, params, hessian_diag=d)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, tx.init(params), (grads, diags)))()


def _abs_rows(d):
    return np.mean(np.abs(d), axis=1, keepdims=True)


def _signed_rows(d):
    return np.mean(d, axis=1, keepdims=True)


OPTIONS = [
    ("auto", "abs", _abs_rows),
    ("auto", "signed", _signed_rows),
    (None, "signed", lambda d: d),
    (3, "abs", lambda d: np.repeat(_abs_rows(d), 3, axis=1)),
]


@pytest.mark.parametrize(("blocks", "average", "mean"), OPTIONS)
def test_steps_of_the_reference(blocks, average, mean, precision):
    """Seven steps with a refresh at every third; and not with the wrong bias."""
    options = {"b1": 0.9, "b2": 0.999, "eps": 1e-3, "interval": 3, "average": mean}
    rng = np.random.default_rng(0)  # no average near zero, where digits are lost
    grads, diags = rng.normal(size=(2, 7, 2, 3))
    tx = optimizers.scale_by_adahessian(
        0.9,
        0.999,
        1e-3,
        0.5,
        3,
        block_average=blocks,
        average=average,
    )
    params = jnp.ones((2, 3), precision.dtype)
    cast = lambda x: jnp.asarray(x, precision.dtype)
    state, updates = _run(tx, params, cast(grads), cast(diags))
    expected = _reference(grads, diags, power=0.5, **options)
    np.testing.assert_allclose(updates, expected, rtol=precision.tolerance(200))
    wrong = _reference(grads, diags, power=0.5, bias="steps", **options)
    assert np.max(np.abs(updates - wrong) / np.abs(expected)) > 0.1
    assert (int(state.count), int(state.refreshes)) == (7, 3)
    assert state.nu.shape == ((2, 1) if blocks == "auto" else (2, 3))


def test_constant_curvature_is_known_from_the_first_step(rng):
    """Bias correction in float32 is exact to rounding for a decay close to one."""
    tx = optimizers.scale_by_adahessian(0.0, 0.9999, 0.0, update_interval=2)
    grads = jnp.asarray(rng.normal(size=(9, 3)), jnp.float32)
    diags = jnp.full((9, 3), 4.0)
    _, updates = _run(tx, jnp.ones(3), grads, diags)
    np.testing.assert_allclose(updates, grads / 4, rtol=1e-6)


def test_diagonal_quadratic_in_one_step(precision):
    scale = jnp.asarray([0.1, -1.0, 20.0], precision.dtype)
    target = jnp.asarray([3.0, 1.0, -2.0], precision.dtype)
    loss = lambda p: jnp.sum(jnp.abs(scale) * (p - target) ** 2)
    tx = optimizers.adahessian(1.0, b1=0.0, b2=0.0, eps=0.0)

    def step(params):
        grads = jax.grad(loss)(params)
        updates, _ = tx.update(grads, tx.init(params), params, obj_fn=loss)
        return optax.apply_updates(params, updates)

    found = jax.jit(step)(jnp.ones(3, precision.dtype))
    np.testing.assert_allclose(found, target, rtol=precision.tolerance(10))


def _one_step_squares(average, hessian, keys, blocks=None):
    """`s^2` of the first estimate, for each key."""
    loss = lambda p: p @ hessian @ p / 2
    params = jnp.ones(len(hessian), hessian.dtype)
    tx = optimizers.scale_by_adahessian(b2=0.0, average=average, block_average=blocks)

    def one(key):
        state = tx.init(params)
        return tx.update(params, state, params, obj_fn=loss, key=key)[1].nu

    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def test_mean_square_is_the_norm_of_a_row(rng, key):
    """Not the squared diagonal; the same for both averages where blocks are single."""
    h = rng.normal(size=(4, 4)) + 3 * np.eye(4)
    h = h + h.T
    keys = jax.random.split(key, 5000)
    hessian = jnp.asarray(h, jnp.float32)
    absolute = _one_step_squares("abs", hessian, keys)
    signed = _one_step_squares("signed", hessian, keys)
    np.testing.assert_allclose(signed, absolute, rtol=1e-5)
    error = 5 * absolute.std(axis=0) / np.sqrt(len(keys))
    mean = absolute.mean(axis=0)
    assert np.all(np.abs(mean - np.sum(h**2, axis=1)) < error)
    assert np.any(np.abs(mean - np.diag(h) ** 2) > error)


def test_averages_differ_in_blocks():
    """Signed averages cancel, absolute ones do not."""
    d = jnp.asarray([[2.0, -2.0]])
    for average, expected in (("signed", 0.0), ("abs", 4.0)):
        tx = optimizers.scale_by_adahessian(b2=0.0, average=average)
        state = jax.jit(lambda: tx.update(d, tx.init(d), d, hessian_diag=d)[1])()  # noqa: B023
        assert float(state.nu[0, 0]) == expected


def test_layouts_give_transposed_updates(rng):
    g = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    d = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    def first(g, d, layout):
        tx = optimizers.scale_by_adahessian(layout=layout)
        return tx.update(g, tx.init(g), g, hessian_diag=d)[0]

    def all_three():
        turned = (first(g.T, d.T, layout).T for layout in ("in_out", "out_in"))
        return first(g, d, "out_in"), *turned

    out_in, in_out, wrong = jax.jit(all_three)()
    np.testing.assert_allclose(in_out, out_in, rtol=1e-6)
    assert np.max(np.abs(wrong - out_in)) > 1e-3


def test_axes_leaf_by_leaf(rng):
    g = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3)), "c": jnp.ones((2, 3))}
    blocks = {"a": (0, 1), "b": None, "c": 2}
    tx = optimizers.scale_by_adahessian(block_average=blocks)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(tx.init, g).nu)
    assert shapes == {"a": (1, 1), "b": (2, 3), "c": (2, 3)}
    d = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), g)
    state = jax.jit(lambda: tx.update(g, tx.init(g), g, hessian_diag=d)[1])()
    expected = 0.001 * np.mean(np.abs(d["a"])) ** 2
    np.testing.assert_allclose(state.nu["a"], [[expected]], rtol=1e-5)


# Where curvature comes from ---------------------------------------------------------


def _loss(p):
    return jnp.sum(jnp.cos(p["w"]) ** 2) + jnp.sum(p["w"]) ** 4


PARAMS = {"w": jnp.asarray([[0.3, -0.4], [1.0, 0.2]]), "absent": None}


def _first(tx, **extra):
    grads = jax.grad(_loss)(PARAMS)
    return tx.update(grads, tx.init(PARAMS), PARAMS, **extra)


def test_sources_of_curvature_agree(key):
    """The estimator, a tree, a function and the fused estimate, for one key."""
    tx = optimizers.scale_by_adahessian()

    def all_sources(key):
        diag = curvature.hutchinson_diagonal(_loss, PARAMS, key)
        fused = curvature.value_grad_and_hutchinson(_loss, PARAMS, key)[2]
        given = ({"obj_fn": _loss}, {"value_fn": _loss}, {"hessian_diag": diag})
        lazy = ({"hessian_diag": lambda: diag}, {"hessian_diag": fused})
        return [_first(tx, key=key, **extra)[0]["w"] for extra in (*given, *lazy)]

    first, *others = jax.jit(all_sources)(key)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)


def test_estimators_of_optax():
    theirs = optax.contrib.hutchinson_estimator_diag_hessian(jax.random.PRNGKey(7))
    tx = optimizers.scale_by_adahessian(hessian_diagonal_fn=theirs)

    def both():
        diag, _ = theirs.update(PARAMS, theirs.init(PARAMS), PARAMS, obj_fn=_loss)
        return *_first(tx, obj_fn=_loss), _first(tx, hessian_diag=diag)[0]

    updates, state, expected = jax.jit(both)()
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5)
    assert state.estimator.key.shape == (2,)


def test_keys_advance_and_can_be_given(key):
    """The state's key changes with each estimate, and not when a key is given."""
    tx = optimizers.scale_by_adahessian(key=5)
    both = lambda: (_first(tx, obj_fn=_loss)[1], _first(tx, obj_fn=_loss, key=key)[1])
    state, kept = jax.jit(both)()
    assert not np.array_equal(
        state.estimator.key, jax.random.key_data(jax.random.key(5))
    )
    np.testing.assert_array_equal(
        kept.estimator.key, jax.random.key_data(jax.random.key(5))
    )
    other = optimizers.scale_by_adahessian(key=jax.random.key(5, impl="rbg"))
    assert other.init(PARAMS).estimator.key.shape == (2,)


def test_hessian_products_run_at_every_kth_step():
    """Counted where the loss is evaluated: a step between pays for none."""
    calls = []

    def loss(p):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(p**4)

    def count(steps, interval, **extra):
        calls.clear()
        tx = optimizers.scale_by_adahessian(update_interval=interval)
        p = jnp.ones(2)

        def step(state, _):
            return tx.update(p, state, p, obj_fn=loss, **extra)[1], None

        state = jax.jit(lambda: jax.lax.scan(step, tx.init(p), None, steps))()[0]
        jax.block_until_ready(state)
        jax.effects_barrier()
        return len(calls)

    each = count(1, 1)
    assert each > 0
    assert count(7, 3) == 3 * each
    assert count(6, 3) == 2 * each
    assert count(5, 1) == 5 * each
    assert count(5, 1, update_curvature=False) == 0
    assert count(5, 4, update_curvature=jnp.asarray(True)) == 5 * each


def test_functions_are_not_called_between():
    calls = []

    def diag():
        jax.debug.callback(lambda: calls.append(1))
        return jnp.ones(2)

    tx = optimizers.scale_by_adahessian(update_interval=4)
    p = jnp.ones(2)
    step = lambda s, _: (tx.update(p, s, p, hessian_diag=diag)[1], None)
    jax.block_until_ready(jax.jit(lambda: jax.lax.scan(step, tx.init(p), None, 9))())
    jax.effects_barrier()
    assert len(calls) == 3


def test_nothing_moves_before_the_first_estimate():
    tx = optimizers.scale_by_adahessian()
    updates, state = jax.jit(lambda: _first(tx, update_curvature=False))()
    np.testing.assert_array_equal(updates["w"], 0)
    assert int(state.refreshes) == 0


def test_what_is_missing_is_named():
    tx = optimizers.scale_by_adahessian()
    with pytest.raises(ValueError, match=r"`obj_fn`.*hessian_diag="):
        _first(tx)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS), obj_fn=_loss)
    with pytest.raises(ValueError, match="a tree like the gradient"):
        _first(tx, hessian_diag={"w": PARAMS["w"]})


BAD = [
    ({"b1": 1.0}, r"`b1` must be in \[0, 1\); got 1.0"),
    ({"b2": -0.1}, r"`b2` must be in \[0, 1\)"),
    ({"eps": -1e-8}, "`eps`"),
    ({"hessian_power": 0.0}, r"`hessian_power` must be in \(0, 1\]"),
    ({"update_interval": 0}, "`update_interval`"),
    ({"average": "mean"}, "'abs', 'signed'; got 'mean'"),
    ({"layout": "io"}, "`layout`"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.scale_by_adahessian(**options)


def test_decay_is_decoupled():
    """It acts on the parameters, whatever the curvature."""
    p = jnp.asarray([2.0, 4.0])
    tx = optimizers.adahessian(0.5, weight_decay=0.1, mask=lambda p: True)
    updates, _ = tx.update(jnp.zeros(2), tx.init(p), p, hessian_diag=jnp.ones(2))
    np.testing.assert_allclose(updates, -0.05 * p, rtol=1e-6)
