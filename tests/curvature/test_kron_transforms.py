"""Statistics of layers inside of loops, maps, checkpoints, solves and meshes."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import pathax as px


kron = px.curvature.kron


def quick(fn):
    """Compiled fast rather than well."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def split(model):
    return eqx.partition(kron.instrument(model), eqx.is_inexact_array)


def distance(tree, other):
    """The largest difference, relative to the largest entry of its array."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in pairs)


@pytest.fixture(scope="module")
def mlp():
    return split(eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0)))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (8, 3))


@pytest.fixture(scope="module")
def whole_batch(mlp, x):
    """What all ways to write this loss must give."""
    params, static = mlp

    def loss(p):
        return jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)

    return quick(kron.value_and_grad(loss, stats="factors"))(params)


def looped(how):
    """The mean loss over a batch, written in some way."""

    def mean(model, x):
        one = lambda x: jnp.mean(model(x) ** 2)
        if how == "nested vmap":
            return jnp.mean(jax.vmap(jax.vmap(one))(x.reshape(2, 4, 3)))
        if how == "scan":
            return jax.lax.scan(lambda c, x: (c + one(x) / 8, None), 0.0, x)[0]
        if how == "scan of vmap":
            body = lambda c, x: (c + jnp.mean(jax.vmap(one)(x)) / 2, None)
            return jax.lax.scan(body, 0.0, x.reshape(2, 4, 3))[0]
        if how == "vmap of checkpointed scan":
            step = jax.checkpoint(lambda c, x: (c + one(x) / 4, None))
            inner = lambda x: jax.lax.scan(step, 0.0, x)[0]
            return jnp.mean(jax.vmap(inner)(x.reshape(2, 4, 3)))
        if how == "map":
            return jnp.mean(jax.lax.map(one, x, batch_size=4))
        if how == "jit and checkpoint":
            return jnp.mean(jax.vmap(jax.jit(jax.checkpoint(one)))(x))
        if how == "cond":
            square = lambda: jnp.mean(jax.vmap(one)(x))
            return jax.lax.cond(x[0, 0] < 100, square, lambda: 0.0)
        assert how == "python"
        return sum(one(row) for row in x) / 8

    return mean


WAYS = (
    "nested vmap",
    "scan",
    "scan of vmap",
    "vmap of checkpointed scan",
    "map",
    "jit and checkpoint",
    "cond",
    "python",
)


@pytest.mark.parametrize("how", WAYS)
def test_all_ways_through_a_batch_agree(how, mlp, x, whole_batch):
    params, static = mlp
    mean = looped(how)
    loss = lambda p: mean(eqx.combine(p, static), x)

    def run(params):
        both = [kron.value_and_grad(loss, stats=k)(params) for k in ("mean", "factors")]
        return both, jax.value_and_grad(loss)(params)

    (means, factors), (value, grads) = quick(run)(params)
    assert distance(factors, whole_batch) < 2e-6
    blank = [s._replace(a_factor=None, g_factor=None) for s in factors[0][1]]
    assert distance(means[0][1], blank) < 2e-6
    assert distance(means[1], grads) < 1e-6
    assert distance(means[0][0], value) < 1e-6


def products_of_examples(fn, *args):
    """Shapes of the intermediate results that have an axis of examples and factors."""
    text = jax.jit(fn).lower(*args).as_text()
    return [s for s in ("8x3x3", "8x4x4", "8x1x3x3", "8x1x4x4") if f"<{s}x" in text]


def test_factors_are_one_product_for_the_whole_batch(mlp, x):
    """No product of single examples is formed, which summing would need."""
    params, static = mlp
    loss = lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    f = kron.value_and_grad(loss, stats="factors")
    assert products_of_examples(f, params) == []
    # The same through the gradients of single examples does form them.
    one = lambda p, x: jnp.mean(eqx.combine(p, static)(x) ** 2)
    g = jax.vmap(kron.value_and_grad(one, stats="factors"), in_axes=(None, 0))
    assert products_of_examples(g, params, x) != []


def test_examples_one_by_one(mlp, x, whole_batch):
    """A map outside gives each example its own statistics."""
    params, static = mlp
    one = lambda p, x: jnp.mean(eqx.combine(p, static)(x) ** 2)
    f = jax.vmap(kron.value_and_grad(one, stats="factors"), in_axes=(None, 0))
    (_, stats), _ = quick(f)(params, x)
    (_, wanted), _ = whole_batch
    for stat, want in zip(stats, wanted, strict=True):
        assert jnp.array_equal(stat.count, jnp.ones(8))
        assert distance(stat.a_factor.mean(0), want.a_factor) < 1e-6
        assert distance(stat.g_factor.mean(0), want.g_factor) < 1e-6
        assert distance(stat.g_mean.mean(0), want.g_mean) < 1e-6


def test_recurrent_uses_count_as_samples(x):
    """Against the same network unrolled into layers of its own; the number of uses is
    not the batch size."""
    layer = eqx.nn.Linear(5, 2, key=jax.random.key(0))
    params, static = split(layer)
    series = jnp.stack([x, 2 * x, -x], axis=1)  # (8, 3 steps, 3)

    def run(layers, xs):
        c = jnp.zeros(2)
        for layer, x in zip(layers, xs, strict=True):
            c = jnp.tanh(layer(jnp.concatenate([c, x])))
        return jnp.sum(c**2)

    def scanned(p):
        layer = eqx.combine(p, static)

        def one(xs):
            step = lambda c, x: (jnp.tanh(layer(jnp.concatenate([c, x]))), None)
            return jnp.sum(jax.lax.scan(step, jnp.zeros(2), xs)[0] ** 2)

        return jnp.mean(jax.vmap(one)(series))

    def unrolled(p):
        return jnp.mean(jax.vmap(lambda x: run(eqx.combine(p, copies), x))(series))

    (_, (stats,)), grads = quick(kron.value_and_grad(scanned, stats="factors"))(params)
    three, copies = split([layer] * 3)
    f = kron.value_and_grad(unrolled, stats="factors")
    (_, apart), apart_grads = quick(f)(three)
    assert stats.count == 24
    mean = lambda name: sum(getattr(s, name) for s in apart) / 3
    assert distance(stats.a_factor, mean("a_factor")) < 1e-6
    assert distance(stats.a_mean, mean("a_mean")) < 1e-6
    # Each copy has 8 uses, all together 24, so that is the number of terms.
    assert distance(stats.g_factor, 9 * mean("g_factor")) < 1e-6
    assert distance(stats.g_mean, 3 * mean("g_mean")) < 1e-6
    assert distance(grads.weight, sum(g.weight for g in apart_grads)) < 1e-6


def test_attention_counts_tokens(x):
    model = eqx.nn.MultiheadAttention(1, 3, key=jax.random.key(0))
    params, static = split(model)
    tokens = jnp.stack([x, -x], axis=0)
    loss = lambda p: jnp.mean(
        jax.vmap(lambda t: eqx.combine(p, static)(t, t, t))(tokens) ** 2
    )
    (_, stats), _ = quick(kron.value_and_grad(loss, stats="factors"))(params)
    assert [float(s.count) for s in stats] == [16.0] * 4
    rows = tokens.reshape(16, 3)
    for stat in stats[:3]:
        assert distance(stat.a_factor, rows.T @ rows / 16) < 1e-6


# Several layers in one --------------------------------------------------------------


def test_stacked_layers_have_statistics_each(x):
    """A scan over layers, and an ensemble inside or outside of the gradient."""
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))
    params, static = split(make(jax.random.split(jax.random.key(0), 2)))
    take = lambda i: jax.tree.map(lambda p: p[i], params)

    def deep(p, x):
        step = lambda x, p: (jnp.tanh(jax.vmap(eqx.combine(p, static))(x)), None)
        return jnp.mean(jax.lax.scan(step, x, p)[0] ** 2)

    def deep_apart(ps, x):
        for p in ps:
            x = jnp.tanh(jax.vmap(eqx.combine(p, static))(x))
        return jnp.mean(x**2)

    def wide(p, x):
        model = lambda p: jax.vmap(eqx.combine(p, static))(x)
        return jnp.mean(jax.vmap(model)(p) ** 2, axis=(1, 2))

    def run(params, x):
        f = lambda loss: kron.value_and_grad(loss, stats="factors")
        each = f(lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2))
        return (
            f(deep)(params, x)[0][1],
            f(deep_apart)([take(0), take(1)], x)[0][1],
            f(lambda p, x: jnp.sum(wide(p, x)))(params, x)[0][1],
            jax.vmap(each, in_axes=(0, None))(params, x)[0][1],
        )

    scanned, apart, inside, outside = quick(run)(params, x)
    assert scanned[0].a_factor.shape == (2, 4, 4)
    stacked = jax.tree.map(lambda *s: jnp.stack(s), *apart)
    assert distance(scanned[0], stacked) < 2e-6
    assert distance(inside, outside) < 2e-6


# Derivatives inside of the loss -----------------------------------------------------


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_derivatives_in_the_inputs(mode, x):
    """As in physics-informed networks; uses in derivatives are not counted."""
    net = eqx.nn.MLP(3, "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = split(net)

    def slope(model, x):
        if mode == "reverse":
            return jax.grad(model)(x)[0]
        return jax.jvp(model, (x,), (jnp.array([1.0, 0.0, 0.0]),))[1]

    def loss(p):
        model = eqx.combine(p, static)
        return jnp.mean(jax.vmap(lambda x: slope(model, x) ** 2)(x))

    def run(params):
        return kron.value_and_grad(loss)(params), jax.grad(loss)(params)

    ((_, stats), grads), plain = quick(run)(params)
    assert distance(grads, plain) < 1e-6
    assert stats[0].count == 8


@pytest.mark.parametrize("kind", ["mean", "factors"])
def test_solves_with_a_backward_pass_of_their_own(kind, x):
    """There sums go use by use, and are the same."""
    params, static = split(eqx.nn.Linear(3, 3, key=jax.random.key(0)))

    def loss(p, adjoint):
        field = lambda t, y, p: jnp.tanh(eqx.combine(p, static)(y))
        end = lambda y: (
            diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Euler(),
                0.0,
                1.0,
                0.5,
                y,
                args=p,
                adjoint=adjoint,
                max_steps=2,
            ).ys
        )
        return jnp.mean(jax.vmap(end)(x[:2]) ** 2)

    def run(params):
        f = lambda adjoint: kron.value_and_grad(lambda p: loss(p, adjoint), stats=kind)
        checkpointed = f(diffrax.RecursiveCheckpointAdjoint())(params)
        return checkpointed, f(diffrax.DirectAdjoint())(params)

    checkpointed, direct = quick(run)(params)
    assert direct[0][1][0].count == 4
    assert distance(checkpointed, direct) < 1e-6


def test_curvature_through_taps(mlp, x):
    """Hessian products of the gradient that comes with statistics."""
    params, static = mlp
    loss = lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)

    def run(params):
        taps = lambda p: kron.value_and_grad(loss)(p)[1]
        products = [jax.jvp(f, (params,), (params,))[1] for f in (taps, jax.grad(loss))]
        return products

    assert distance(*quick(run)(params)) < 1e-6


def test_errors_of_the_loss_are_its_own(mlp):
    def loss(p):
        raise ValueError("of the loss")

    with pytest.raises(ValueError, match="of the loss") as caught:
        kron.value_and_grad(loss)(mlp[0])
    assert caught.value.__context__ is None


# Devices ----------------------------------------------------------------------------


def test_a_sharded_batch(mlp, x, whole_batch, devices, no_retrace):
    """Factors are sums over all devices, and come out on each of them."""
    params, static = mlp
    loss = lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    batch = jax.device_put(x, NamedSharding(devices, P("devices")))
    params = jax.device_put(params, NamedSharding(devices, P()))
    f = kron.value_and_grad(loss, stats="factors")
    found = no_retrace(f, (params, batch), (params, batch))
    assert distance(found[1], whole_batch) < 2e-6
    assert found[1][0][1][0].a_factor.sharding.is_fully_replicated


@pytest.mark.parametrize("kind", ["mean", "factors"])
def test_shard_map(kind, mlp, x, whole_batch, devices):
    """With a loss that is the mean over all devices."""
    params, static = mlp

    def local(params, x):
        def loss(p):
            mean = jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
            return jax.lax.pmean(mean, "devices")

        return kron.value_and_grad(loss, stats=kind)(params)

    specs = {"in_specs": (P(), P("devices")), "out_specs": P()}
    f = jax.shard_map(local, mesh=devices, **specs)
    (value, stats), grads = quick(f)(params, x)
    (want, wanted), want_grads = whole_batch
    if kind == "mean":
        wanted = [s._replace(a_factor=None, g_factor=None) for s in wanted]
    assert distance(value, want) < 1e-6
    assert distance(grads, want_grads) < 1e-6
    assert distance(stats, wanted) < 2e-6
