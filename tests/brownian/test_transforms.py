"""Paths under `jit`, `vmap` and many devices; what compiles how often."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import pathax as px


Tree = px.brownian.VirtualBrownianTree
TOL = 2.0**-10
EPS = float(np.finfo(np.float32).eps)


def _value(key, s, u):
    return Tree(0.0, 1.0, TOL, (2,), key, order=1).moments(s, u)


def _same(x, y, scale=1.0):
    """Up to a few roundings relative to a standard deviation: reductions may differ."""
    assert np.abs(np.asarray(x) - np.asarray(y)).max() <= 8 * EPS * scale


def test_new_times_and_keys_compile_once(no_retrace, getkey):
    calls = [
        (getkey(), jnp.asarray(s), jnp.asarray(u))
        for s, u in [(0.2, 0.7), (0.0, 1.0), (0.6, 0.1), (0.3, 0.3), (0.5, 0.5001)]
    ]
    values = no_retrace(_value, *calls)
    for value, call in zip(values, calls, strict=True):
        _same(value, _value(*call))


def test_new_paths_compile_once(no_retrace, getkey):
    """A tree is a PyTree: its key and times are leaves, all else is static."""
    trees = [Tree(0.0, end, TOL * end, (2,), getkey()) for end in (1.0, 2.0, 3.5)]
    no_retrace(lambda tree: tree.evaluate(0.2, 0.7), *((tree,) for tree in trees))
    endless = [Tree(0.0, None, tol, (2,), getkey()) for tol in (0.1, 0.01)]
    no_retrace(lambda tree: tree.evaluate(0.2, 0.7), *((tree,) for tree in endless))


def test_python_numbers_compile_once(key, monkeypatch):
    """A loop over `evaluate(0.1, 0.2)`, `evaluate(0.2, 0.3)`, ... must not compile."""
    count = 0
    original = Tree.standardised

    def counted(self, *args):
        nonlocal count
        count += 1
        return original(self, *args)

    monkeypatch.setattr(Tree, "standardised", counted)
    tree = Tree(0.0, 1.0, TOL, (5,), key)
    for i in range(5):
        tree.evaluate(0.1 * i, 0.1 * (i + 1))
    tree.evaluate(t0=0.25, t1=1)  # as keywords; an integer is another dtype
    assert count <= 2


def test_vmap_over_keys_is_a_loop(getkey):
    keys = jax.random.split(getkey(), 16)
    batch = jax.jit(jax.vmap(_value, in_axes=(0, None, None)))(keys, 0.2, 0.7)
    for i in (0, 7, 15):
        _same(batch[i], _value(keys[i], 0.2, 0.7))
    assert len(np.unique(np.asarray(batch)[:, 0, 0])) == 16


def test_vmap_over_paths_and_times(getkey):
    """A batch of trees, each at its own times."""
    keys = jax.random.split(getkey(), 8)
    s = jnp.linspace(0, 0.5, 8)
    make = lambda key: Tree(0.0, 1.0, TOL, (2,), key, order=1)
    trees = eqx.filter_vmap(make)(keys)
    values = eqx.filter_vmap(lambda tree, s: tree.moments(s, s + 0.25))(trees, s)
    for i in (0, 5):
        _same(values[i], _value(keys[i], s[i], s[i] + 0.25))


def test_scan_over_steps(key):
    tree = Tree(0.0, 1.0, TOL, (2,), key, order=1)

    @jax.jit
    def walk(tree):
        step = lambda t, _: (t + 0.125, tree.evaluate(t, t + 0.125))
        return jax.lax.scan(step, 0.0, length=8)[1]

    _same(jnp.sum(walk(tree), axis=0), tree.evaluate(0.0, 1.0))


def test_many_devices_draw_the_numbers_of_one(devices, getkey):
    keys = jax.random.split(getkey(), 64)
    times = jnp.linspace(0.25, 0.75, 64)
    batch = jax.vmap(lambda key, u: _value(key, 0.2, u))
    one = np.asarray(jax.jit(batch)(keys, times))

    # The check of the range is an error that Equinox raises from a branch, which JAX's
    # check of what varies over devices does not understand if times do.
    spec = PartitionSpec("devices")
    mapped = jax.shard_map(
        batch, mesh=devices, in_specs=spec, out_specs=spec, check_vma=False
    )
    by_hand = jax.jit(mapped)(keys, times)
    assert len(by_hand.sharding.device_set) == 8
    _same(by_hand, one)

    sharding = NamedSharding(devices, spec)
    placed = jax.device_put((keys, times), sharding)
    automatic = jax.jit(batch)(*placed)
    assert automatic.sharding.is_equivalent_to(sharding, automatic.ndim)
    _same(automatic, one)


def test_paths_on_many_devices_at_the_same_times(devices, getkey):
    keys = jax.random.split(getkey(), 16)
    batch = jax.vmap(lambda key: _value(key, 0.2, 0.7))
    spec = PartitionSpec("devices")
    mapped = jax.shard_map(batch, mesh=devices, in_specs=spec, out_specs=spec)
    _same(jax.jit(mapped)(keys), batch(keys))


def test_increments_are_data_in_a_gradient(key):
    """A loss of increments is differentiable in everything else."""
    tree = Tree(0.0, 1.0, TOL, (2,), key)

    @jax.jit
    @jax.value_and_grad
    def loss(scale):
        return jnp.sum(scale * tree.evaluate(0.2, 0.7) ** 2)

    value, gradient = loss(2.0)
    _same(gradient, value / 2, abs(float(value)) + 1)


@pytest.mark.parametrize("kind", ["tree", "endless", "grid"])
def test_path_inside_of_what_is_differentiated(kind, key):
    """As a field of a model, say: its own times have no gradient, and raise nothing."""
    path = Tree(0.0, None if kind == "endless" else 1.0, TOL, (2,), key)
    if kind == "grid":
        path = path.on_grid(jnp.linspace(0, 1, 5))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        scale, path = model
        return scale * jnp.sum(path.evaluate(0.25, 0.5) ** 2 + path.evaluate(0.5) ** 2)

    value, (gradient, of_path) = loss((jnp.asarray(2.0), path))
    _same(gradient, value / 2, abs(float(value)) + 1)
    for x in (of_path.t0, of_path.t1):
        assert x == 0


def test_paths_are_saved_and_compared(key):
    """Trees are PyTrees of arrays that survive flattening."""
    tree = Tree(0.0, 1.0, TOL, (2,), key, order=2, cache_levels=2)
    leaves, treedef = jax.tree.flatten(tree)
    again = jax.tree.unflatten(treedef, leaves)
    assert jnp.array_equal(again.evaluate(0.2, 0.7), tree.evaluate(0.2, 0.7))
    assert eqx.tree_equal(tree, again)
    with_other = Tree(0.0, 1.0, TOL, (2,), jax.random.fold_in(key, 1), order=2)
    assert not eqx.tree_equal(tree, with_other)
