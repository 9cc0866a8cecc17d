"""KFAC and EKFAC against dense Kronecker products; cadence, limits, devices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from pathax import curvature, optimizers


kron = curvature.kron


def quick(fn):
    """Compiled fast rather than well."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def dense_layer(dtype, inputs=3, outputs=2):
    """Parameters of one layer without Equinox, and where they are."""
    params = {"w": jnp.ones((outputs, inputs), dtype), "b": jnp.ones(outputs, dtype)}
    return params, (kron.LayerSpec("w", "b"),)


def random_stats(rng, dtype, a=4, g=2):
    """Statistics with factors that are not multiples of the identity."""

    def factor(n):
        root = rng.normal(size=(n, 2 * n))
        return jnp.asarray(root @ root.T / n, dtype)

    moment = jnp.asarray(rng.uniform(0.5, 2, size=(g, a)), dtype)
    return kron.LayerStats(
        jnp.zeros(a, dtype), None, factor(a), factor(g), moment, jnp.ones((), dtype)
    )


def random_gradient(rng, params):
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )


def matrix(tree):
    return np.concatenate([tree["w"], tree["b"][:, None]], axis=1).astype(np.float64)


def solved(curvature_matrix, w):
    return np.linalg.solve(curvature_matrix, w.ravel()).reshape(w.shape)


# One step ---------------------------------------------------------------------------


def first_step(tx, params, grads, stat):
    step = lambda g, s: tx.update(g, tx.init(params), params, kron=(s,))
    return quick(step)(grads, stat)


def test_exact_damping_is_the_dense_solve(precision, rng):
    """`(S x A + damping I)^-1`, the damping on the whole product."""
    params, layers = dense_layer(precision.dtype)
    grads, stat = random_gradient(rng, params), random_stats(rng, precision.dtype)
    w = matrix(grads)
    product = np.kron(np.asarray(stat.g_factor), np.asarray(stat.a_factor))
    wanted = solved(product.astype(np.float64) + 0.3 * np.eye(8), w)
    scale = np.abs(wanted).max()
    errors = {}
    for rule in ("exact", "factored"):
        tx = optimizers.scale_by_kfac(layers, damping=0.3, damping_rule=rule)
        steps, _ = first_step(tx, params, grads, stat)
        errors[rule] = np.abs(matrix(steps) - wanted).max() / scale
    assert errors["exact"] <= precision.tolerance(500)
    assert errors["factored"] > 1e-2


def test_factored_damping_is_split_by_mean_eigenvalues(precision, rng):
    params, layers = dense_layer(precision.dtype)
    grads, stat = random_gradient(rng, params), random_stats(rng, precision.dtype)
    stat = stat._replace(a_factor=100 * stat.a_factor)
    tx = optimizers.scale_by_kfac(layers, damping=0.3)
    steps, _ = first_step(tx, params, grads, stat)
    s, a = (np.asarray(f, np.float64) for f in (stat.g_factor, stat.a_factor))
    pi = np.sqrt(np.trace(a) / 4 / (np.trace(s) / 2))
    left = np.linalg.inv(s + np.sqrt(0.3) / pi * np.eye(2))
    right = np.linalg.inv(a + np.sqrt(0.3) * pi * np.eye(4))
    wanted = left @ matrix(grads) @ right
    error = np.abs(matrix(steps) - wanted).max() / np.abs(wanted).max()
    assert error <= precision.tolerance(500)


def test_a_layer_that_is_never_used_is_damped_alone():
    """Factors of zero are no reason for a NaN."""
    params, layers = dense_layer(np.float32)
    zeros = kron.LayerStats(jnp.zeros(4), None, jnp.zeros((4, 4)), jnp.zeros((2, 2)))
    for rule in ("exact", "factored"):
        tx = optimizers.scale_by_kfac(layers, damping=0.5, damping_rule=rule)
        steps, _ = first_step(tx, params, params, zeros)
        np.testing.assert_allclose(steps["w"], 2.0, rtol=1e-6)


def test_factors_are_corrected_for_starting_from_zero(rng):
    """Equal statistics at any number of refreshes give the same step."""
    params, layers = dense_layer(np.float32)
    grads, stat = random_gradient(rng, params), random_stats(rng, np.float32)
    for make in (optimizers.scale_by_kfac, optimizers.scale_by_ekfac):
        tx = make(layers, damping=0.1, inverse_interval=1)
        step = quick(lambda s, tx=tx: tx.update(grads, s, kron=(stat,)))
        first, state = step(tx.init(params))
        for _ in range(3):
            last, state = step(state)
        assert state.refreshes == 4
        np.testing.assert_allclose(last["w"], first["w"], rtol=2e-4, atol=1e-6)


def test_running_factors(rng):
    """Two refreshes: a mean with weights 0.9 * 0.1 and 0.1, over their sum."""
    params, layers = dense_layer(np.float32)
    stats = [random_stats(rng, np.float32) for _ in range(2)]
    tx = optimizers.scale_by_kfac(layers, decay=0.9)
    state = tx.init(params)
    for stat in stats:
        _, state = tx.update(params, state, kron=(stat,))
    wanted = 0.09 * stats[0].g_factor + 0.1 * stats[1].g_factor
    np.testing.assert_allclose(state.left[0], wanted, rtol=1e-5, atol=1e-7)


# Networks ---------------------------------------------------------------------------


def network(key, model=None, dtype=np.float32):
    if model is None:
        model = eqx.nn.MLP(2, 2, 3, 1, activation=lambda x: x, dtype=dtype, key=key)
    return eqx.partition(kron.instrument(model), eqx.is_inexact_array)


def test_one_linear_layer_takes_the_newton_step(key, rng):
    """Squared errors: the Gauss-Newton matrix is the Hessian, and `A x I` exactly."""
    with jax.enable_x64(True):
        params, static = network(key, eqx.nn.Linear(3, 2, key=key))
        x = jnp.asarray(rng.normal(size=(10, 3)))
        y = jnp.asarray(rng.normal(size=(10, 2)))
        noise = jnp.tile(jnp.sqrt(2.0) * jnp.eye(2), (5, 1))
        twice = jnp.repeat(x[:5], 2, axis=0)  # with one noise each
        exact = curvature.Likelihood(
            sample=lambda key, f: f + noise,
            loss=lambda f, y: jnp.sum((f - y) ** 2, axis=-1) / 2,
        )
        out = lambda p: jax.vmap(eqx.combine(p, static))(twice)
        loss = lambda p: jnp.mean(jnp.sum((out(p) - y) ** 2, axis=-1)) / 2
        tx = optimizers.scale_by_kfac(damping=1e-12, damping_rule="exact")

        def step(params):
            stats = kron.fisher_stats(out, params, key, likelihood=exact)
            steps, _ = tx.update(jax.grad(loss)(params), tx.init(params), kron=stats)
            return optax.apply_updates(params, jax.tree.map(jnp.negative, steps))

        slope = jax.grad(loss)
        before, after = quick(lambda p: (slope(p), slope(step(p))))(params)
        before, after = jax.tree.map(np.asarray, (before, after))
    norm = lambda tree: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))
    assert norm(after) < 1e-9 * norm(before)


def test_deep_linear_network_against_its_full_fisher_matrix(key, rng):
    """With one example the blocks are those of the full matrix; the solve of a layer
    is that of its block."""
    with jax.enable_x64(True):
        params, static = network(key, dtype=np.float64)
        x = jnp.asarray(rng.normal(size=(1, 2)))
        loss = lambda p: jnp.sum(jnp.exp(jax.vmap(eqx.combine(p, static))(x)))
        tx = optimizers.scale_by_kfac(damping=0.2, damping_rule="exact")

        def step(params):
            f = kron.value_and_grad(loss, stats="factors")
            (_, stats), grads = f(params)
            return grads, tx.update(grads, tx.init(params), kron=stats)[0]

        grads, steps = quick(step)(params)
        flat, unravel = jax.flatten_util.ravel_pytree(grads)
        full = np.outer(flat, flat)
        blocks = np.zeros_like(full)
        start = 0
        for layer in grads.layers:
            size = layer.weight.size + layer.bias.size
            part = slice(start, start + size)
            blocks[part, part] = full[part, part]
            start += size
        wanted = unravel(np.linalg.solve(blocks + 0.2 * np.eye(len(flat)), flat))
        pairs = zip(jax.tree.leaves(steps), jax.tree.leaves(wanted), strict=True)
        assert max(float(jnp.abs(a - b).max()) for a, b in pairs) < 1e-10
        other = np.linalg.solve(full + 0.2 * np.eye(len(flat)), flat)
        assert np.abs(other - jax.flatten_util.ravel_pytree(steps)[0]).max() > 1e-2


# EKFAC ------------------------------------------------------------------------------


def test_ekfac_divides_by_the_diagonal_in_its_bases(key, rng):
    """At the second step: half the product of eigenvalues, half the mean over examples
    of squared rotated gradients."""
    with jax.enable_x64(True):
        params, static = network(key, eqx.nn.Linear(3, 2, key=key))
        x, y = (jnp.asarray(rng.normal(size=(6, n))) for n in (3, 2))
        one = lambda p, x, y: jnp.sum((eqx.combine(p, static)(x) - y) ** 4)
        loss = lambda p: jnp.mean(jax.vmap(lambda x, y: one(p, x, y))(x, y))
        tx = optimizers.scale_by_ekfac(damping=0.1, decay=0.5)

        @quick
        def step(state):
            bases = (state.basis_left, state.basis_right)
            f = kron.value_and_grad(loss, stats="factors", bases=bases)
            (_, stats), grads = f(params)
            return grads, *tx.update(grads, state, kron=stats)

        rows = jax.vmap(jax.grad(one), in_axes=(None, 0, 0))(params, x, y)
        _, _, state = step(tx.init(params))
        start, left, right = (
            np.asarray(t[0])
            for t in (state.diagonal, state.basis_left, state.basis_right)
        )
        grads, steps, state = step(state)
    w = np.concatenate([rows.weight, rows.bias[..., None]], axis=-1)
    moment = ((left.T @ w @ right) ** 2).mean(0)
    wanted = 0.5 * start + 0.5 * moment
    np.testing.assert_allclose(state.diagonal[0], wanted, rtol=1e-10)
    assert np.abs(start / moment - 1).max() > 0.05  # KFAC's would not do
    w = np.concatenate([grads.weight, grads.bias[:, None]], axis=1)
    inner = (left.T @ w @ right) / (wanted + 0.1)
    np.testing.assert_allclose(
        steps.weight, (left @ inner @ right.T)[:, :-1], rtol=1e-9
    )


def test_ekfac_starts_from_kfac(rng):
    params, layers = dense_layer(np.float32)
    grads, stat = random_gradient(rng, params), random_stats(rng, np.float32)
    steps = [
        first_step(tx, params, grads, stat)[0]["w"]
        for tx in (
            optimizers.scale_by_ekfac(layers, damping=0.2),
            optimizers.scale_by_kfac(layers, damping=0.2, damping_rule="exact"),
        )
    ]
    np.testing.assert_allclose(*steps, rtol=1e-5)


def test_ekfac_with_gradients_of_batches(rng):
    """Equal gradients: their squares in the bases, corrected for starting from zero."""
    params, layers = dense_layer(np.float32)
    grads = random_gradient(rng, params)
    stat = random_stats(rng, np.float32)._replace(moment=None)
    tx = optimizers.scale_by_ekfac(layers, damping=0.2, moment="batch")
    step = quick(lambda s: tx.update(grads, s, kron=(stat,)))
    _, state = step(tx.init(params))
    steps, state = step(state)
    left, right = (np.asarray(b[0]) for b in (state.basis_left, state.basis_right))
    rotated = left.T @ matrix(grads) @ right
    wanted = left @ (rotated / (rotated**2 + 0.2)) @ right.T
    np.testing.assert_allclose(matrix(steps), wanted, rtol=1e-3, atol=1e-5)


def test_ekfac_says_how_to_get_moments(rng):
    params, layers = dense_layer(np.float32)
    stat = random_stats(rng, np.float32)
    tx = optimizers.scale_by_ekfac(layers)
    _, state = tx.update(params, tx.init(params), kron=(stat,))
    with pytest.raises(ValueError, match="basis_left"):
        tx.update(params, state, kron=(stat._replace(moment=None),))


# Limits and cadence -----------------------------------------------------------------


@pytest.mark.parametrize("make", [optimizers.kfac, optimizers.ekfac])
def test_the_limit_of_the_step(make, rng):
    """Its squared length is at most `kl_clip`, also under a schedule."""
    params, layers = dense_layer(np.float32)
    grads, stat = random_gradient(rng, params), random_stats(rng, np.float32)
    rate = lambda count: 0.5 / (1.0 + jnp.asarray(count, jnp.float32))
    free = make(rate, layers, kl_clip=None, momentum=None)
    steps, _ = first_step(free, params, grads, stat)
    length = -0.5 * np.sum(matrix(steps) * matrix(grads))
    for limit in (length / 9, length * 9):
        tx = make(rate, layers, kl_clip=limit, momentum=None)
        found, _ = first_step(tx, params, grads, stat)
        factor = min(1, np.sqrt(limit / length))
        np.testing.assert_allclose(matrix(found), factor * matrix(steps), rtol=1e-4)


@pytest.mark.parametrize("make", [optimizers.scale_by_kfac, optimizers.scale_by_ekfac])
def test_statistics_are_asked_for_when_due(make, rng):
    params, layers = dense_layer(np.float32)
    stat = random_stats(rng, np.float32)
    calls = []

    def stats(time):
        jax.debug.callback(lambda: calls.append(1))
        moved = time * jnp.diag(jnp.arange(2.0))
        return (stat._replace(g_factor=stat.g_factor + moved),)

    tx = make(layers, update_interval=2, inverse_interval=4)
    step = jax.jit(lambda s, t: tx.update(params, s, kron=lambda: stats(t))[1])
    states = [tx.init(params)]
    for time in range(6):
        states.append(step(states[-1], jnp.asarray(time, jnp.float32)))
    jax.effects_barrier()
    assert len(calls) == 3
    same = lambda i, j, name: jnp.array_equal(
        getattr(states[i], name)[0], getattr(states[j], name)[0]
    )
    assert same(1, 2, "left")
    assert not same(2, 3, "left")
    assert same(1, 4, "basis_left")
    assert not same(4, 5, "basis_left")
    frozen, _ = tx.update(params, states[0], update_curvature=False)
    assert frozen["w"].shape == (2, 3)
    with pytest.raises(optimizers.MissingExtraError, match="kron"):
        tx.update(params, states[0])


# Composition ------------------------------------------------------------------------


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(2, 16, 2, groups=2, key=key)
        self.norm = eqx.nn.LayerNorm(16)
        self.linear = eqx.nn.Linear(16, 2, use_bias=False, key=key)

    def __call__(self, x):
        return self.linear(self.norm(jnp.tanh(self.conv(x)).mean((1, 2))))


@pytest.fixture(scope="module")
def problem():
    """Parameters, a batch, and a function that returns gradients and statistics."""
    params, static = network(None, Net(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (32, 2, 3, 3))

    def gather(params, x):
        loss = lambda p: jnp.mean((jax.vmap(eqx.combine(p, static))(x) - 1) ** 2)
        return kron.value_and_grad(loss, stats="factors", terms=32)(params)

    return params, x, gather


MAKERS = {
    "factored": lambda every: optimizers.kfac(
        0.05, damping=0.1, inverse_interval=every
    ),
    "exact": lambda every: optimizers.kfac(
        0.05, damping=0.1, damping_rule="exact", inverse_interval=every
    ),
    "ekfac": lambda every: optimizers.ekfac(
        0.05, damping=0.1, moment="batch", inverse_interval=every
    ),
}


def train(tx, gather, steps=3):
    def run(params, state, x):
        def step(carry, _):
            params, state = carry
            (value, stats), grads = gather(params, x)
            updates, state = tx.update(grads, state, params, kron=stats)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), None, steps)

    return quick(run)


@pytest.mark.parametrize(
    ("name", "count"), [("factored", 8), ("exact", 2), ("ekfac", 2)]
)
def test_the_loss_falls_and_devices_do_not_matter(name, count, problem, devices):
    """A batch and columns of the factors over several devices."""
    params, x, gather = problem
    tx = MAKERS[name](1)
    state = tx.init(params)
    run = train(tx, gather)
    (wanted, _), values = run(params, state, x)
    assert values[-1] < values[0]
    mesh = jax.sharding.Mesh(devices.devices[:count], ("devices",))

    def place(leaf):
        split = leaf.ndim >= 2 and leaf.shape[-1] % count == 0
        spec = P(*[None] * (leaf.ndim - 1), "devices") if split else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    placed = jax.tree.map(place, state)
    assert any(not a.is_fully_replicated for a in jax.tree.leaves(placed))
    batch = jax.device_put(x, NamedSharding(mesh, P("devices")))
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    (found, _), _ = run(whole, placed, batch)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("name", MAKERS)
def test_states_keep_their_types(name, problem):
    """So that a second update does not compile again."""
    params, x, gather = problem
    tx = MAKERS[name](2)

    def step(params, state):
        (_, stats), grads = gather(params, x)
        updates, state = tx.update(grads, state, params, kron=stats)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    kinds = lambda t: jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), t)
    given = jax.eval_shape(lambda p: p, params)
    assert kinds(jax.eval_shape(step, given, state)) == kinds((given, state))


def test_other_parameters_pass_or_go_elsewhere(problem):
    """The norm has no factors; a recipe gives it an optimizer of its own."""
    params, x, gather = problem
    (_, stats), grads = quick(gather)(params, x)
    tx = optimizers.scale_by_kfac()
    steps, _ = quick(lambda: tx.update(grads, tx.init(params), kron=stats))()
    assert jnp.array_equal(steps.norm.weight, grads.norm.weight)

    def labels(params):
        name = lambda path, _: "rest" if "norm" in path[0].name else "kron"
        return jax.tree_util.tree_map_with_path(name, params)

    both = {"kron": optimizers.scale_by_kfac(), "rest": optax.scale(2.0)}
    tx = optax.multi_transform(both, labels)
    apart, _ = quick(lambda: tx.update(grads, tx.init(params), params, kron=stats))()
    assert jnp.array_equal(apart.norm.weight, 2 * grads.norm.weight)
    np.testing.assert_allclose(apart.conv.weight, steps.conv.weight, rtol=1e-5)


def test_stacked_layers_are_preconditioned_each_by_itself(rng):
    """Against the same factors one by one."""
    spec = kron.LayerSpec("w", "b", ndim=2)
    params, layers = dense_layer(np.float32)
    stats = [random_stats(rng, np.float32) for _ in range(2)]
    grads = [random_gradient(rng, params) for _ in range(2)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    for rule in ("factored", "exact"):
        tx = optimizers.scale_by_kfac(layers, damping=0.1, damping_rule=rule)
        apart = [
            first_step(tx, params, g, s)[0] for g, s in zip(grads, stats, strict=True)
        ]
        tx = optimizers.scale_by_kfac((spec,), damping=0.1, damping_rule=rule)
        both, _ = first_step(tx, stack([params] * 2), stack(grads), stack(stats))
        np.testing.assert_allclose(both["w"], stack(apart)["w"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(both["b"], stack(apart)["b"], rtol=1e-4, atol=1e-6)


def test_hyperparameters_in_the_state(rng):
    params, layers = dense_layer(np.float32)
    stat = random_stats(rng, np.float32)
    for factory in (optimizers.kfac, optimizers.ekfac):
        tx = optimizers.inject(factory)(0.1, layers=layers)
        _, state = tx.update(params, tx.init(params), params, kron=(stat,))
        assert state.hyperparams["damping"] == pytest.approx(1e-3)


def test_wrong_arguments_are_errors():
    params, layers = dense_layer(np.float32)
    with pytest.raises(ValueError, match="learning_rate"):
        optimizers.scale_by_kfac(kl_clip=1e-3)
    with pytest.raises(ValueError, match="damping_rule"):
        optimizers.scale_by_kfac(damping_rule="pi")
    with pytest.raises(ValueError, match="damping"):
        optimizers.scale_by_ekfac(damping=0.0)
    tx = optimizers.scale_by_kfac(layers)
    means = kron.LayerStats(jnp.ones(4), jnp.ones(2))
    with pytest.raises(ValueError, match='stats="factors"'):
        tx.update(params, tx.init(params), kron=(means,))
