"""MKOR: inverse factors against dense inverses, their bounds, the switch of MKOR-H."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import curvature, optimizers
from pathax.optimizers.second_order._mkor_rule import Blend, rank_one, stabilizer


kron = curvature.kron
OFF = 1e30  # a threshold that no entry reaches


def quick(fn):
    """Compiled fast rather than well."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def dense_layer(dtype, inputs=3, outputs=4):
    """Parameters of one layer without Equinox, and where they are."""
    params = {"w": jnp.ones((outputs, inputs), dtype), "b": jnp.ones(outputs, dtype)}
    return params, (kron.LayerSpec("w", "b"),)


def run_factors(tx, params, a, g):
    """Inverse factors after updates with these statistics, one after another."""

    def step(state, pair):
        stats = (kron.LayerStats(*pair),)
        return tx.update(params, state, kron=stats)[1], None

    run = lambda a, g: jax.lax.scan(step, tx.init(params), (a, g))[0]
    return quick(run)(a, g)


def running(second, decay, u):
    for row in np.asarray(u, np.float64):
        second = decay * second + (1 - decay) * np.outer(row, row)
    return second


# Factors ----------------------------------------------------------------------------


def tracking_error(variant, dtype, rng, updates=200):
    params, layers = dense_layer(dtype)
    a = jnp.asarray(rng.normal(size=(updates, 4)), dtype)
    g = jnp.asarray(rng.normal(size=(updates, 4)), dtype)
    tx = optimizers.scale_by_mkor(
        layers, update_interval=1, threshold=OFF, variant=variant
    )
    state = run_factors(tx, params, a, g)
    pairs = ((state.inv_left[0], g), (state.inv_right[0], a))
    return max(
        np.abs(
            np.asarray(m, np.float64) @ running(np.eye(4), 0.95, u) - np.eye(4)
        ).max()
        for m, u in pairs
    )


def test_factors_are_the_inverses_of_running_moments(precision, rng):
    error = tracking_error("exact", precision.dtype, rng)
    assert error <= precision.tolerance(4e5)  # 1e-10 in double precision


@pytest.mark.parametrize("variant", ["paper", "leaky"])
def test_other_forms_of_the_update_are_not_inverses(variant, rng):
    with jax.enable_x64(True):
        assert tracking_error(variant, np.float64, rng, updates=50) > 0.1


def test_the_form_in_print_amplifies_what_it_should_damp():
    u, whole = jnp.array([1.0, 0.0]), Blend(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    m = {
        v: np.asarray(rank_one(jnp.eye(2), u, v, 0.95, 0.05, whole))
        for v in ("exact", "paper")
    }
    assert m["exact"][0, 0] == pytest.approx(1.0)  # of 0.95 + 0.05
    assert m["exact"][1, 1] == pytest.approx(1 / 0.95)
    assert m["paper"][0, 0] > 1
    assert m["paper"][1, 1] < 1


def test_identical_examples_have_the_exact_second_moment(key, rng, precision):
    """Then the mean's outer product is the mean of outer products."""
    model = kron.instrument(eqx.nn.Linear(3, 2, key=key))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jnp.tile(jnp.asarray(rng.normal(size=3), precision.dtype), (5, 1))
    tx = optimizers.scale_by_mkor(update_interval=1, threshold=OFF)
    loss = lambda p: jnp.mean(jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2, -1))

    def step(params):
        f = kron.value_and_grad(loss, stats="factors")
        (_, stats), grads = f(params)
        return tx.update(grads, tx.init(params), kron=stats)[1], stats[0]

    state, stat = quick(step)(params)
    for inverse, factor in (
        (state.inv_left[0], stat.g_factor),
        (state.inv_right[0], stat.a_factor),
    ):
        wanted = np.linalg.inv(0.95 * np.eye(len(factor)) + 0.05 * np.asarray(factor))
        assert np.abs(inverse - wanted).max() <= precision.tolerance(100)


def test_leaky_factors_are_those_of_the_package(precision, rng):
    """`(T^-1 + u u^T)^-1` with `T = 0.95 M + 0.05 I`; eigenvalues stay below one."""
    params, layers = dense_layer(precision.dtype)
    a = jnp.asarray(rng.normal(size=(30, 4)), precision.dtype)
    tx = optimizers.scale_by_mkor(layers, update_interval=1, variant="leaky")
    state = run_factors(tx, params, a, a)
    m = np.eye(4)
    for u in np.asarray(a, np.float64):
        m = np.linalg.inv(np.linalg.inv(0.95 * m + 0.05 * np.eye(4)) + np.outer(u, u))
    assert np.abs(state.inv_left[0] - m).max() <= precision.tolerance(1000)
    assert np.linalg.eigvalsh(state.inv_left[0]).max() <= 1


@pytest.mark.parametrize(("zeta", "limit"), [(0.9, 2.0), (0.94, 6.0), (0.96, np.inf)])
def test_growth_where_no_statistic_reaches(zeta, limit):
    """Bounded if and only if `zeta < gamma`."""

    def step(m, _):
        blend = stabilizer(m, 0.0, zeta)
        return rank_one(m, jnp.zeros(1), "exact", 0.95, 0.05, blend), None

    m = jax.lax.scan(step, jnp.eye(1), None, length=3000)[0].item()
    assert m == pytest.approx(limit, rel=1e-3) if math.isfinite(limit) else m > 1e6


def test_pairs_without_a_bound_are_refused():
    with pytest.raises(ValueError, match="`zeta` must be less than `gamma`"):
        optimizers.mkor(0.1, gamma=0.9, zeta=0.9)


def test_stabilized_factors_stay_positive_and_bounded(precision, rng):
    """In one direction statistics are large, in two there are none."""
    params, layers = dense_layer(precision.dtype)
    u = rng.normal(size=(300, 4)) * np.array([50.0, 1.0, 0.0, 0.0])
    u = jnp.asarray(u, precision.dtype)
    tx = optimizers.scale_by_mkor(layers, update_interval=1)
    before = run_factors(tx, params, u[:-1], u[:-1])
    state = run_factors(tx, params, u, u)
    for m in (state.inv_left[0], state.inv_right[0]):
        assert jnp.array_equal(m, m.T)
        assert np.linalg.eigvalsh(np.asarray(m, np.float64)).min() > 0
        assert np.abs(m).max() <= 2 / 0.95 + 1e-6
    largest = np.abs(before.inv_left[0]).max().astype(np.float32)
    assert np.asarray(state.max_abs) == pytest.approx(largest, rel=1e-6)


def test_statistics_are_clipped(rng):
    params, layers = dense_layer(np.float32)
    tx = optimizers.scale_by_mkor(layers, update_interval=1, clip_stats=2.0)
    u = jnp.asarray(rng.normal(size=(1, 4)) * 100, jnp.float32)
    found = run_factors(tx, params, u, u)
    wanted = run_factors(tx, params, *[jnp.clip(u, -2, 2)] * 2)
    assert jnp.array_equal(found.inv_left[0], wanted.inv_left[0])


# Steps ------------------------------------------------------------------------------


class Net(eqx.Module):
    """A layer of each kind, with a norm between."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv1d(2, 4, 2, groups=2, key=key)
        self.norm = eqx.nn.LayerNorm(4)
        self.linear = eqx.nn.Linear(4, 2, use_bias=False, key=key)

    def __call__(self, x):
        return self.linear(self.norm(jnp.tanh(self.conv(x)).mean(1)))


@pytest.fixture(scope="module")
def problem():
    """Parameters and a function that returns gradients and statistics."""
    model = kron.instrument(Net(jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jax.random.normal(jax.random.key(1), (6, 2, 5))
    loss = lambda p: jnp.mean((jax.vmap(eqx.combine(p, static))(x) - 1) ** 2)
    return params, kron.value_and_grad(loss, terms=6)


def train(tx, problem, steps, **extra):
    params, f = problem
    state = tx.init(params)

    @quick
    def step(params, state):
        (value, stats), grads = f(params)
        updates, state = tx.update(
            grads, state, params, kron=stats, value=value, **extra
        )
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_steps_are_the_dense_formula(problem):
    """Both sides of a group apart, norms of a layer together, the rest untouched."""
    params, f = problem
    (_, stats), grads = quick(f)(params)
    tx = optimizers.scale_by_mkor(update_interval=1)
    steps, state = quick(lambda g, s: tx.update(g, tx.init(params), kron=s))(
        grads, stats
    )

    def update(u):
        u = np.asarray(u, np.float64)
        return np.linalg.inv(0.95 * np.eye(len(u)) + 0.05 * np.outer(u, u))

    w = np.concatenate(
        [grads.conv.weight.reshape(2, 2, 2), grads.conv.bias.reshape(2, 2, 1)], axis=-1
    )
    left, right = (
        np.stack([update(u) for u in mean])
        for mean in (stats[0].g_mean, stats[0].a_mean)
    )
    d = left @ w @ right
    d *= np.linalg.norm(w) / np.linalg.norm(d)
    np.testing.assert_allclose(
        steps.conv.weight.reshape(2, 2, 2), d[..., :-1], rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(steps.conv.bias.ravel(), d[..., -1].ravel(), rtol=1e-4)
    d = update(stats[1].g_mean) @ grads.linear.weight @ update(stats[1].a_mean)
    d *= np.linalg.norm(grads.linear.weight) / np.linalg.norm(d)
    np.testing.assert_allclose(steps.linear.weight, d, rtol=1e-4, atol=1e-7)
    assert jnp.array_equal(steps.norm.weight, grads.norm.weight)
    assert not np.allclose(steps.linear.weight, grads.linear.weight, rtol=1e-2)
    assert state.inv_left[0].shape == (2, 2, 2)


@pytest.mark.parametrize("rescale", [True, "sum", False])
def test_norms_after_rescaling(rescale, precision, rng):
    params, layers = dense_layer(precision.dtype)
    grads = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    u = jnp.asarray(rng.normal(size=4), precision.dtype)
    tx = optimizers.scale_by_mkor(layers, rescale=rescale)
    step = lambda g: tx.update(g, tx.init(params), kron=(kron.LayerStats(u, u),))[0]
    steps = quick(step)(grads)

    def norm(tree):
        parts = [np.linalg.norm(x) for x in tree.values()]
        return sum(parts) if rescale == "sum" else np.hypot(*parts)

    same = abs(norm(steps) / norm(grads) - 1) <= precision.tolerance(20)
    assert same == (rescale is not False)


def test_zero_gradients_are_zero_steps():
    params, layers = dense_layer(np.float32)
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optimizers.scale_by_mkor(layers)
    u = jnp.zeros(4)
    steps, _ = tx.update(zeros, tx.init(params), kron=(kron.LayerStats(u, u),))
    assert not any(np.any(x) for x in jax.tree.leaves(steps))


def test_identity_factors_leave_the_base_optimizer(problem):
    found, _ = train(optimizers.mkor(0.1), problem, 3, update_curvature=False)
    wanted, _ = train(optax.sgd(0.1, momentum=0.9), problem, 3)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)


def test_bias_gradients_stand_for_mean_cotangents(key, rng):
    """They are the same for a mean over uses, so a tap is not needed for them."""
    model = kron.instrument(eqx.nn.MLP(2, 2, 3, 1, key=key))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    loss = lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    tx = optimizers.scale_by_mkor()

    def both(params):
        (_, stats), grads = kron.value_and_grad(loss)(params)
        less = [s._replace(g_mean=None) for s in stats]
        return [tx.update(grads, tx.init(params), kron=s)[0] for s in (stats, less)]

    pairs = zip(*map(jax.tree.leaves, quick(both)(params)), strict=True)
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)


def test_layouts_are_transposes_of_each_other(rng):
    """Also of a convolution, whose inputs are ordered (in, *kernel) in both."""
    w = rng.normal(size=(3, 2, 5)).astype(np.float32)  # out, in, kernel
    u, v = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (10, 3))
    stats = (kron.LayerStats(u, v),)
    there = jnp.asarray(w)
    back = jnp.asarray(w.transpose(2, 1, 0))
    found = []
    for leaf, layout in ((there, "out_in"), (back, "in_out")):
        spec = kron.LayerSpec("w", kind="conv", layout=layout)
        tx = optimizers.scale_by_mkor((spec,))
        params = {"w": leaf}
        found.append(tx.update(params, tx.init(params), kron=stats)[0]["w"])
    assert jnp.array_equal(found[0], found[1].transpose(2, 1, 0))
    assert not np.allclose(found[0], there)


# Cadence ----------------------------------------------------------------------------


def counted(tx, steps, value=lambda t: 1.0):
    """How often statistics were asked for, in how many steps, and the last state."""
    params, layers = dense_layer(np.float32)
    calls = []

    def stats():
        jax.debug.callback(lambda: calls.append(1))
        return (kron.LayerStats(jnp.ones(4), jnp.ones(4)),)

    tx = tx(layers)

    @jax.jit
    def step(state, value):
        return tx.update(params, state, kron=stats, value=value)[1]

    state = tx.init(params)
    states = []
    for t in range(steps):
        state = step(state, jnp.asarray(value(t), jnp.float32))
        jax.effects_barrier()
        states.append((len(calls), state))
    return states


@pytest.mark.parametrize(("warmup", "wanted"), [(0, 3), (3, 5)])
def test_statistics_are_asked_for_when_due(warmup, wanted):
    tx = lambda layers: optimizers.scale_by_mkor(
        layers, update_interval=4, warmup=warmup
    )
    states = counted(tx, 9)
    assert states[-1][0] == wanted  # steps 0, 4, 8, and 1, 2 of the warm-up
    between = [s.inv_left[0] for _, s in states[4:8]]
    assert all(jnp.array_equal(m, between[0]) for m in between)


def test_a_step_without_curvature_needs_no_statistics():
    params, layers = dense_layer(np.float32)
    tx = optimizers.scale_by_mkor(layers)
    steps, state = tx.update(params, tx.init(params), update_curvature=False)
    np.testing.assert_allclose(steps["w"], params["w"], rtol=1e-6)
    with pytest.raises(optimizers.MissingExtraError, match="kron"):
        tx.update(params, state)
    tx = optimizers.scale_by_mkor_h(layers)
    with pytest.raises(optimizers.MissingExtraError, match="value"):
        tx.update(params, tx.init(params), update_curvature=False)


def reference_switch(losses, every, decay=0.98, patience=3):
    """When MKOR-H switches, by its definition."""
    ema = checked = None
    best, bad = 0.0, 0
    for t, loss in enumerate(losses, start=1):
        ema = loss if ema is None else decay * ema + (1 - decay) * loss
        checked = ema if checked is None else checked
        if t % every == 0:
            rate = (checked - ema) / max(abs(checked), 1e-12)
            best, checked = max(0.999 * best, rate), ema
            bad = bad + 1 if rate < 0.1 * best else 0
            if bad >= patience:
                return t
    return None


def test_the_switch_of_mkor_h():
    """A loss that falls and then stays; afterwards nothing is computed any more."""
    losses = [math.exp(-t / 20) + 0.5 for t in range(200)]
    tx = lambda layers: optimizers.scale_by_mkor_h(
        layers, update_interval=1, check_every=2, ema_decay=0.5
    )
    states = counted(tx, 200, lambda t: losses[t])
    latched = [bool(state.first_order) for _, state in states]
    when = reference_switch(losses, every=2, decay=0.5)
    assert when is not None
    assert when < 150
    assert latched == [t >= when for t in range(1, 201)]
    calls = [n for n, _ in states]
    assert calls[-1] == when - 1  # the step that switches is of first order itself
    last = states[when - 2][1]
    assert jnp.array_equal(states[-1][1].inv_left[0], last.inv_left[0])


def test_after_the_switch_gradients_pass():
    params, layers = dense_layer(np.float32)
    tx = optimizers.scale_by_mkor_h(layers, update_interval=1)
    state = tx.init(params)._replace(first_order=jnp.asarray(True))
    stats = (kron.LayerStats(jnp.arange(4.0), jnp.arange(4.0)),)
    steps, _ = tx.update(params, state, kron=stats, value=1.0)
    assert jnp.array_equal(steps["w"], params["w"])
    state = tx.init(params)
    steps, _ = tx.update(params, state, kron=stats, value=1.0)
    assert not np.allclose(steps["b"], params["b"], rtol=1e-3)


def test_losses_that_are_not_finite_do_not_count():
    losses = [1.0, math.nan, 0.9, math.inf, 0.8, 0.7]
    tx = lambda layers: optimizers.scale_by_mkor_h(layers, check_every=1)
    (*_, (_, state)) = counted(tx, 6, lambda t: losses[t])
    assert np.isfinite(state.loss_ema)
    assert np.isfinite(state.best_rate)
    assert not state.first_order


# Composition ------------------------------------------------------------------------


def test_second_update_does_not_retrace(problem, no_retrace):
    params, f = problem
    (value, stats), grads = quick(f)(params)
    tx = optimizers.mkor_h(0.1)
    state = tx.init(params)
    step = lambda state: tx.update(grads, state, params, kron=stats, value=value)[1]
    (second,) = no_retrace(step, (state,))
    assert jax.tree.structure(second) == jax.tree.structure(state)
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
    assert all(jax.tree.leaves(jax.tree.map(same, second, state)))
    no_retrace(step, (state,), (second,))


def test_loop_is_scan(problem):
    params, f = problem
    tx = optimizers.mkor(0.1, update_interval=2, base=optax.trace(0.5))
    wanted, _ = train(tx, problem, 4)

    def step(carry, _):
        params, state = carry
        (_, stats), grads = f(params)
        updates, state = tx.update(grads, state, params, kron=stats)
        return (optax.apply_updates(params, updates), state), None

    run = lambda: jax.lax.scan(step, (params, tx.init(params)), None, 4)[0][0]
    pairs = zip(jax.tree.leaves(quick(run)()), jax.tree.leaves(wanted), strict=True)
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_masked_parts_are_left_alone(problem):
    """Statistics of all layers go with any part of the parameters: without the biases
    the inputs lose their trailing one."""
    params, f = problem
    (_, stats), grads = quick(f)(params)
    matrices = jax.tree.map(lambda p: p.ndim >= 2 and p.shape[-1] > 1, params)
    # Optax calls what can be called, and so can a network.
    tx = optax.masked(optimizers.scale_by_mkor(), lambda _: matrices)
    step = lambda: tx.update(grads, tx.init(params), params, kron=stats)
    steps, state = quick(step)()
    assert jnp.array_equal(steps.conv.bias, grads.conv.bias)
    assert not np.allclose(steps.conv.weight, grads.conv.weight, rtol=1e-3)
    assert state.inner_state.inv_right[0].shape == (2, 2, 2)

    def labels(path, _):
        return "second" if "linear" in jax.tree_util.keystr(path) else "first"

    tx = optax.multi_transform(
        {"second": optimizers.scale_by_mkor(), "first": optax.identity()},
        lambda params: jax.tree_util.tree_map_with_path(labels, params),
    )
    steps, state = quick(
        lambda: tx.update(grads, tx.init(params), params, kron=stats)
    )()
    assert jnp.array_equal(steps.conv.weight, grads.conv.weight)
    assert not np.allclose(steps.linear.weight, grads.linear.weight, rtol=1e-3)
    assert state.inner_states["second"].inner_state.inv_left[0] is None


def test_hyperparameters_in_the_state():
    params, layers = dense_layer(np.float32)
    tx = optimizers.inject(optimizers.mkor)(0.1, layers=layers, update_interval=1)
    stats = (kron.LayerStats(jnp.ones(4), jnp.ones(4)),)
    state = tx.init(params)
    _, state = tx.update(params, state, params, kron=stats)
    assert state.hyperparams["gamma"] == pytest.approx(0.95)


def test_factors_in_half_precision(problem):
    params, state = train(optimizers.mkor(0.05, factor_dtype=jnp.bfloat16), problem, 12)
    assert state[0][0].inv_left[0].dtype == jnp.bfloat16
    full, _ = train(optimizers.mkor(0.05), problem, 12)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(full), strict=True)
    assert all(np.allclose(a, b, rtol=0.1, atol=0.02) for a, b in pairs)


def test_wrong_arguments_are_errors(problem):
    params, layers = dense_layer(np.float32)
    with pytest.raises(ValueError, match="found no layers"):
        optimizers.scale_by_mkor().init(params)
    with pytest.raises(ValueError, match="'v', which is not"):
        optimizers.scale_by_mkor((kron.LayerSpec("v"),)).init(params)
    with pytest.raises(ValueError, match="variant"):
        optimizers.scale_by_mkor(variant="best")
    tx = optimizers.scale_by_mkor(layers)
    state = tx.init(params)
    one = kron.LayerStats(jnp.ones(4), jnp.ones(4))
    for stats, match in (
        ((one, one), "2 entries"),
        ((one._replace(a_mean=jnp.ones(7)),), "inputs of layer w"),
        ((one._replace(g_mean=jnp.ones(3)),), "outputs of layer w"),
    ):
        with pytest.raises(ValueError, match=match):
            tx.update(params, state, kron=stats)
    weight = {"w": params["w"]}
    tx = optimizers.scale_by_mkor((kron.LayerSpec("w"),))
    with pytest.raises(ValueError, match="g_mean"):
        tx.update(weight, tx.init(weight), kron=(kron.LayerStats(jnp.ones(3)),))
    names = itertools.chain(optimizers.mkor.static_args, optimizers.mkor_h.static_args)
    assert {"layers", "variant", "base"} <= set(names)
