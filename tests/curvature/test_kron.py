"""Statistics of layers against dense references: layers, sizes, scales, bases."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px


kron = px.curvature.kron


def split(model):
    return eqx.partition(kron.instrument(model), eqx.is_inexact_array)


def patches(layer, x):
    """What a convolution multiplies with its weight, `(channels * kernel, places)`."""
    size = [
        d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    pads = layer.padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:], size, layer.stride, pads)
    modes = {"ZEROS": "constant", "REFLECT": "reflect", "CIRCULAR": "wrap"}
    x = np.pad(x, [(0, 0), *pads], modes[layer.padding_mode])
    ends = [n - s + 1 for n, s in zip(x.shape[1:], size, strict=True)]
    starts = itertools.product(*map(range, [0] * len(ends), ends, layer.stride))
    windows = [tuple(map(slice, at, np.add(at, size), layer.dilation)) for at in starts]
    return np.stack([x[:, *window].ravel() for window in windows], axis=1)


def uses_of(layer, x, cotangent):
    """Inputs and output cotangents, a row a use, group by group."""
    groups = getattr(layer, "groups", 1)
    x = np.asarray(x)
    a = x.reshape(-1, 1) if isinstance(layer, eqx.nn.Linear) else patches(layer, x)
    a = a.reshape(groups, -1, a.shape[-1])
    g = np.asarray(cotangent).reshape(groups, -1, a.shape[-1])
    return np.swapaxes(a, 1, 2), np.swapaxes(g, 1, 2)


def dense(layer, x, cotangents, terms=None):
    """The statistics by their definition, with an axis of groups in front."""
    pairs = [uses_of(layer, *pair) for pair in zip(x, cotangents, strict=True)]
    a, g = (np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
    if layer.bias is not None:
        a = np.concatenate([a, np.ones_like(a[..., :1])], axis=-1)
    n = a.shape[1]
    terms = n if terms is None else terms
    return {
        "a_mean": a.mean(1),
        "g_mean": terms / n * g.sum(1),
        "a_factor": np.einsum("kni,knj->kij", a, a) / n,
        "g_factor": terms * np.einsum("kni,knj->kij", g, g),
        "count": np.asarray(n),
    }, (a, g)


def check(stats, wanted, tolerance):
    """`wanted` has an axis of groups in front, which statistics have for several."""
    for name, value in wanted.items():
        found = getattr(stats, name)
        if found is None and name.endswith("factor"):  # of stats="mean"
            continue
        shape = value.shape[1:] if value.shape[:1] == (1,) else value.shape
        assert found.shape == shape
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found.reshape(value.shape), value, rtol=0, atol=tolerance * scale
        )


# Layers alone -----------------------------------------------------------------------

LAYERS = {
    "linear": lambda key: eqx.nn.Linear(3, 2, key=key),
    "without bias": lambda key: eqx.nn.Linear(3, 2, use_bias=False, key=key),
    "scalar": lambda key: eqx.nn.Linear("scalar", "scalar", key=key),
    "conv1d": lambda key: eqx.nn.Conv1d(2, 3, 3, stride=2, padding=1, key=key),
    "conv2d groups": lambda key: eqx.nn.Conv2d(4, 6, (3, 2), groups=2, key=key),
    "conv2d dilated": lambda key: eqx.nn.Conv2d(
        2, 2, 2, dilation=2, padding="SAME", use_bias=False, key=key
    ),
    "conv2d uneven": lambda key: eqx.nn.Conv2d(
        1, 2, 3, stride=(1, 2), padding=[[2, 0], [0, 1]], key=key
    ),
    "conv1d reflect": lambda key: eqx.nn.Conv1d(
        2, 2, 3, padding=1, padding_mode="REFLECT", key=key
    ),
    "conv1d circular": lambda key: eqx.nn.Conv1d(
        2, 2, 2, padding="SAME", padding_mode="CIRCULAR", key=key
    ),
    "conv1d wide": lambda key: eqx.nn.Conv1d(2, 1, 33, padding=16, key=key),
    "conv3d": lambda key: eqx.nn.Conv3d(1, 2, 2, key=key),
}


def inputs(layer, rng, dtype):
    if isinstance(layer, eqx.nn.Linear):
        shape = () if layer.in_features == "scalar" else (layer.in_features,)
    else:
        shape = (layer.in_channels, *(5, 4, 3)[: layer.num_spatial_dims])
    return jnp.asarray(rng.normal(size=(4, *shape)), dtype)


def quick(fn):
    """Compiled fast rather than well."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(fn, compiler_options=options)


def same_statistics(layer, rng, dtype, tolerance):
    """With the same value and gradient, bit by bit."""
    x = inputs(layer, rng, dtype)
    shape = jax.eval_shape(jax.vmap(layer), x).shape
    c = jnp.asarray(rng.normal(size=shape), dtype)
    plain, static = eqx.partition(layer, eqx.is_inexact_array)
    params, tapped = split(layer)

    def loss(params, static):
        y = jax.vmap(eqx.combine(params, static))(x)
        return jnp.sum(jnp.sin(y) * c), jnp.cos(y) * c

    def run(plain, params):
        f = functools.partial(kron.value_and_grad, has_aux=True)
        g = lambda p: loss(p, tapped)
        both = [f(g, stats=kind)(params) for kind in ("mean", "factors")]
        return jax.value_and_grad(loss, has_aux=True)(plain, static), both

    ((value, cotangents), grads), both = quick(run)(plain, params)
    wanted, _ = dense(layer, x, cotangents)
    for ((found, _), (stats,)), tapped_grads in both:
        assert found == value
        leaves = (jax.tree.leaves(tree) for tree in (tapped_grads, grads))
        assert all(map(jnp.array_equal, *leaves))
        check(stats, wanted, tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_statistics_of_their_definition(name, key, rng):
    with jax.enable_x64(True):
        same_statistics(LAYERS[name](key), rng, np.float64, 1e-13)


@pytest.mark.parametrize("name", ["linear", "conv2d groups"])
def test_single_precision(name, key, rng):
    same_statistics(LAYERS[name](key), rng, np.float32, 2e-5)


def test_terms_of_a_mean_over_examples(key, rng):
    """A convolution is used at several positions of each of the terms."""
    layer = eqx.nn.Conv1d(2, 3, 2, key=key)
    x = inputs(layer, rng, np.float32)
    params, static = split(layer)
    loss = lambda p: jnp.mean(
        jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2, axis=(1, 2))
    )
    (_, (stats,)), _ = quick(kron.value_and_grad(loss, stats="factors", terms=4))(
        params
    )
    wanted, _ = dense(layer, x, 2 * jax.vmap(layer)(x) / 4, terms=4)
    check(stats, wanted, 1e-5)
    default, _ = dense(layer, x, 2 * jax.vmap(layer)(x) / 4)
    assert abs(default["g_factor"] / wanted["g_factor"] - 4).max() < 1e-5


# A batch of one, and other cases where factors are exact ---------------------------


def fisher_block(stats):
    return np.kron(np.asarray(stats.g_factor), np.asarray(stats.a_factor))


def test_one_example_gives_the_fisher_block_exactly(key, rng, precision):
    """`A x S` of a layer inside a network is the outer product of its gradient."""
    model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=key)
    params, static = split(model)
    x = jnp.asarray(rng.normal(size=(1, 3)), precision.dtype)
    loss = lambda p: jnp.sum(jnp.exp(jax.vmap(eqx.combine(p, static))(x)))
    (_, stats), grads = quick(kron.value_and_grad(loss, stats="factors"))(params)
    for layer, stat in zip(grads.layers, stats, strict=True):
        row = np.concatenate([layer.weight, layer.bias[:, None]], axis=1).ravel()
        error = np.abs(fisher_block(stat) - np.outer(row, row)).max()
        assert error <= precision.tolerance(100) * (row**2).max()


def test_squared_errors_of_one_layer_have_a_gauss_newton_matrix(key, rng, precision):
    """It is `A x I`, if labels stand for their distribution exactly."""
    params, static = split(eqx.nn.Linear(3, 2, key=key))
    x = jnp.asarray(rng.normal(size=(5, 3)), precision.dtype)
    x = jnp.concatenate([x, x])
    # Each input comes twice, with noises whose second moments add up to the identity.
    noise = jnp.repeat(jnp.sqrt(jnp.asarray(2.0)) * jnp.eye(2), 5, axis=0)
    gaussian = px.curvature.Likelihood(
        sample=lambda key, y: y + noise.astype(y.dtype),
        loss=lambda y, labels: jnp.sum((y - labels) ** 2, axis=-1) / 2,
    )
    predict = lambda p: jax.vmap(eqx.combine(p, static))(x)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def both(flat):
        draw = functools.partial(kron.fisher_stats, predict, likelihood=gaussian)
        jacobian = jax.jacobian(lambda v: predict(unravel(v)))(flat)
        ggn = jnp.einsum("noi,noj->ij", jacobian, jacobian) / 10
        return draw(unravel(flat), key), ggn

    (stats,), ggn = quick(both)(flat)
    assert stats.count == 10
    ones = np.ones((10, 1), precision.dtype)
    a = np.concatenate([x, ones], axis=1)
    exact = np.kron(np.eye(2), a.T @ a / 10)
    order = [*range(3), 6, *range(3, 6), 7]  # weights row by row, then the bias
    tolerance = precision.tolerance(100)
    assert np.abs(fisher_block(stats) - exact).max() <= tolerance * 10
    assert np.abs(np.asarray(ggn)[np.ix_(order, order)] - exact).max() <= tolerance * 10


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_drawn_labels_have_the_moments_of_the_model(likelihood, key):
    """The mean over many draws of `S` is the Hessian in the outputs."""
    params, static = split(eqx.nn.Linear(2, 3, key=key))
    x = jnp.asarray([[1.0, -0.5]])
    predict = lambda p: jax.vmap(eqx.combine(p, static))(x)
    draw = lambda key: kron.fisher_stats(predict, params, key, likelihood=likelihood)
    keys = jax.random.split(key, 20_000)
    (stats,) = jax.jit(jax.vmap(draw))(keys)
    logits = predict(params)[0]
    terms = 3 if likelihood == "bernoulli" else 1  # of the mean
    p = jax.nn.softmax(logits)
    q = jax.nn.sigmoid(logits)
    hessian = {
        "categorical": jnp.diag(p) - p[:, None] * p[None],
        "bernoulli": jnp.diag(q * (1 - q)),
        "gaussian": jnp.eye(3),
    }[likelihood]
    # Products of scores are at most about 2 in size, or of variance 2 for a Gaussian.
    error = jnp.abs(stats.g_factor.mean(0) - hessian / terms).max()
    assert error < 6 * jnp.sqrt(2.0) / jnp.sqrt(20_000.0)


def test_masked_terms_do_not_count(key, rng):
    params, static = split(eqx.nn.Linear(2, 3, key=key))
    x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    predict = lambda p, x: jax.vmap(eqx.combine(p, static))(x)
    fixed = px.curvature.Likelihood(
        sample=lambda key, y: jnp.zeros_like(y),
        loss=lambda y, labels: jnp.sum((y - labels) ** 2, axis=-1) / 2,
    )
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])

    def both(params):
        draw = functools.partial(kron.fisher_stats, likelihood=fixed)
        some = draw(lambda p: predict(p, x), params, key, mask=mask)
        return some + draw(lambda p: predict(p, x[:2]), params, key)

    some, half = quick(both)(params)
    np.testing.assert_allclose(some.g_factor, half.g_factor, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "without bias", "conv2d groups"])
def test_moments_in_given_bases(name, key, rng, precision):
    """They are the diagonal of the rotated Fisher matrix of independent uses."""
    layer = LAYERS[name](key)
    x = inputs(layer, rng, precision.dtype)
    params, static = split(layer)
    y = quick(jax.vmap(layer))(x)
    wanted, (a, g) = dense(layer, x, np.cos(y))
    basis = lambda n: np.linalg.qr(rng.normal(size=(len(a), n, n)))[0]
    left, right = basis(g.shape[-1]), basis(a.shape[-1])
    squeeze = lambda q: jnp.asarray(q[0] if len(q) == 1 else q, precision.dtype)
    loss = lambda p: jnp.sum(jnp.sin(jax.vmap(eqx.combine(p, static))(x)))
    bases = ((squeeze(left),), (squeeze(right),))
    f = kron.value_and_grad(loss, stats="factors", bases=bases)
    (_, (stats,)), _ = quick(f)(params)
    n = a.shape[1]
    moment = n * np.einsum(
        "kni,knj->kij", np.einsum("kno,koi->kni", g, left) ** 2, (a @ right) ** 2
    )
    check(stats, wanted | {"moment": moment}, precision.tolerance(400))


# Trees ------------------------------------------------------------------------------


def test_instrumenting_changes_nothing_but_the_class(key):
    model = {
        "mlp": eqx.nn.MLP(2, 2, 3, 1, key=key),
        "conv": [eqx.nn.Conv2d(1, 1, 2, key=key)],
        "norm": eqx.nn.LayerNorm(3),
    }
    tapped = kron.instrument(model)
    assert isinstance(tapped["conv"][0], eqx.nn.Conv2d)
    assert isinstance(tapped["mlp"].layers[0], eqx.nn.Linear)
    pairs = zip(jax.tree.leaves(tapped), jax.tree.leaves(model), strict=True)
    assert all(a is b for a, b in pairs)
    again = kron.instrument(tapped)
    assert jax.tree.structure(again) == jax.tree.structure(tapped)


def test_layers_are_named_by_their_paths(key):
    class Model(eqx.Module):
        mlp: eqx.nn.MLP
        attention: eqx.nn.MultiheadAttention
        conv: dict

    model = Model(
        eqx.nn.MLP(2, 2, 3, 1, key=key),
        eqx.nn.MultiheadAttention(1, 4, use_output_bias=True, key=key),
        {"a": eqx.nn.Conv(2, 4, 4, 3, groups=2, key=key)},
    )
    params, _ = split(model)
    found = {spec.weight_path: spec for spec in kron.layers(params)}
    assert list(found) == [
        "mlp.layers.0.weight",
        "mlp.layers.1.weight",
        "attention.query_proj.weight",
        "attention.key_proj.weight",
        "attention.value_proj.weight",
        "attention.output_proj.weight",
        "conv.a.weight",
    ]
    assert found["attention.query_proj.weight"].bias_path is None
    assert found["attention.output_proj.weight"].bias_path.endswith("output_proj.bias")
    conv = found["conv.a.weight"]
    assert (conv.kind, conv.groups, conv.ndim) == ("conv", 2, 4)
    assert kron.layers(kron.instrument(model)) == kron.layers(params)


def test_layers_that_are_not_trained_are_left_out(key):
    """Frozen or tied weights; masked ones stay, so that statistics go with them."""
    params, _ = split(eqx.nn.MLP(2, 2, 3, 1, key=key))
    frozen = eqx.tree_at(lambda p: p.layers[0].weight, params, None)
    assert [s.weight_path for s in kron.layers(frozen)] == ["layers.1.weight"]
    seen = []
    spy = optax.GradientTransformation(lambda p: seen.append(kron.layers(p)), None)
    optax.masked(spy, jax.tree.map(lambda p: p.ndim == 1, params)).init(params)
    assert [s.weight_path for s in seen[0]] == ["layers.0.weight", "layers.1.weight"]
    embedding = eqx.nn.Embedding(3, 2, key=key)
    tied = eqx.nn.Shared(
        (embedding, eqx.nn.Linear(2, 3, key=key)),
        lambda pair: pair[1].weight,
        lambda pair: pair[0].weight,
    )
    assert kron.layers(split(tied)[0]) == ()


def test_errors_say_what_to_write(key):
    with pytest.raises(ValueError, match="there is no equinox"):
        kron.instrument({"w": jnp.ones(2)})
    layer = eqx.nn.Linear(2, 2, key=key)
    loss = lambda p: jnp.sum(p.weight)
    plain = eqx.filter(layer, eqx.is_inexact_array)
    with pytest.raises(ValueError, match=r"kron\.instrument"):
        kron.value_and_grad(loss)(plain)
    params, _ = split(layer)
    with pytest.raises(ValueError, match="must be one of"):
        kron.value_and_grad(loss, stats="rows")(params)
    other = (kron.LayerSpec("other.weight"),)
    with pytest.raises(ValueError, match="no instrumented layer"):
        kron.value_and_grad(loss, layers=other)(params)
    wrong = ((jnp.eye(2),), (jnp.eye(5),))
    with pytest.raises(ValueError, match="must have 2 and 3 rows"):
        kron.value_and_grad(loss, stats="factors", bases=wrong)(params)
    with pytest.raises(ValueError, match="layout"):
        kron.LayerSpec("w", layout="oi")


def test_chosen_layers(key, rng):
    params, static = split(eqx.nn.MLP(2, 2, 3, 1, key=key))
    x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    loss = lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2)
    (_, every), _ = quick(kron.value_and_grad(loss))(params)
    last = kron.layers(params)[1:]
    (_, some), _ = quick(kron.value_and_grad(loss, layers=last))(params)
    assert len(some) == 1
    assert jnp.array_equal(some[0].a_mean, every[1].a_mean)


def test_unused_layers_have_zeros(key):
    params, static = split([eqx.nn.Linear(2, 2, key=key) for _ in range(2)])
    loss = lambda p: jnp.sum(eqx.combine(p, static)[0](jnp.ones(2)))
    (_, stats), _ = kron.value_and_grad(loss, stats="factors")(params)
    assert stats[1].count == 0
    assert not any(np.any(x) for x in jax.tree.leaves(stats[1]))


def test_auxiliary_results_of_any_kind(key):
    params, static = split(eqx.nn.Linear(2, 2, key=key))
    aux = {"text": "a", "array": jnp.arange(3), "none": None}

    def loss(p):
        return jnp.sum(eqx.combine(p, static)(jnp.ones(2))), aux

    ((value, found), stats), _ = kron.value_and_grad(loss, has_aux=True)(params)
    assert value.shape == ()
    assert (found["text"], found["none"], len(stats)) == ("a", None, 1)
    assert jnp.array_equal(found["array"], aux["array"])


def test_half_precision_sums_in_single(key):
    """In bfloat16 the count would stop at 256."""
    layer = eqx.nn.Linear(2, 2, dtype=jnp.bfloat16, key=key)
    params, static = split(layer)
    x = jnp.ones((1000, 2), jnp.bfloat16)
    loss = lambda p: jnp.sum(jax.vmap(eqx.combine(p, static))(x).astype(jnp.float32))
    for kind in ("mean", "factors"):
        (_, (stats,)), grads = quick(kron.value_and_grad(loss, stats=kind))(params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(stats)} == {"float32"}
        assert grads.weight.dtype == jnp.bfloat16
        assert stats.count == 1000
        assert jnp.all(stats.g_mean == 1000)


def test_penalties_over_all_leaves_change_nothing(key):
    """Taps are zeros, and leaves of the tree that the loss gets."""
    params, static = split(eqx.nn.Linear(2, 2, key=key))
    x = jnp.ones((3, 2))

    def loss(p):
        fit = jnp.sum(jax.vmap(eqx.combine(p, static))(x) ** 2)
        return fit + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    f = quick(kron.value_and_grad(loss, stats="factors"))
    (value, (stats,)), grads = f(params)
    plain_value, plain_grads = quick(jax.value_and_grad(loss))(params)
    assert value == plain_value
    assert jnp.array_equal(grads.weight, plain_grads.weight)
    assert stats.count == 3
