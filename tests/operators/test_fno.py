"""The Fourier neural operator."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px
from pathax.operators._pointwise import at_points


def count(model):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


@pytest.mark.parametrize("grid", [(16,), (8, 9), (6, 4, 5)])
def test_any_dimension(grid, getkey):
    modes = (2,) * len(grid)
    model = px.operators.FNO(3, 2, modes, width=4, depth=2, key=getkey())
    y = eqx.filter_jit(model)(jax.random.normal(getkey(), (3, *grid)))
    assert y.shape == (2, *grid)
    kernels = 2 * 4 * 4 * 2 * 2 ** (len(grid) - 1) * 2 ** len(grid)
    lift = (3 + len(grid) + 1) * 8 + (8 + 1) * 4
    assert count(model) == kernels + 2 * 20 + lift + (4 + 1) * 8 + (8 + 1) * 2


def test_the_formula(getkey):
    """Layer by layer, with a spectral convolution that is tested elsewhere."""
    model = px.operators.FNO(1, 1, (3,), width=4, depth=2, key=getkey())
    x = jax.random.normal(getkey(), (1, 8))
    v = jnp.concatenate([x, jnp.arange(8)[None] / 8])
    v = model.lift(v)
    (k0, k1), (s0, s1) = model.convolutions, model.skips
    v = jax.nn.gelu(k0(v) + s0.weight @ v + s0.bias[:, None])
    v = k1(v) + s1.weight @ v + s1.bias[:, None]
    hidden = jax.nn.gelu(at_points(model.project.first, v))
    want = model.project.second.weight @ hidden + model.project.second.bias[:, None]
    np.testing.assert_allclose(eqx.filter_jit(model)(x), want, rtol=1e-5, atol=1e-6)


def test_the_formula_with_mixing(getkey):
    model = px.operators.FNO(1, 1, (3,), width=4, depth=2, mixing=0.5, key=getkey())
    gates = tuple(jax.random.normal(getkey(), (4,)) for _ in range(2))
    model = eqx.tree_at(lambda m: m.gates, model, gates)
    x = jax.random.normal(getkey(), (1, 8))
    v = model.lift(jnp.concatenate([x, jnp.arange(8)[None] / 8]))
    for i, act in enumerate((jax.nn.gelu, lambda x: x)):
        skip = model.skips[i].weight @ v + model.skips[i].bias[:, None]
        w = act(model.convolutions[i](v) + skip)
        v = act(model.mixers[i](w) + gates[i][:, None] * v)
    want = model.project(v)
    np.testing.assert_allclose(eqx.filter_jit(model)(x), want, rtol=1e-5, atol=1e-6)


def test_shifts(getkey):
    """Without coordinates the operator commutes with shifts, with them it doesn't."""
    x = jax.random.normal(getkey(), (1, 12))
    key = getkey()
    for coordinates in (False, True):
        model = px.operators.FNO(
            1, 1, (3,), width=4, depth=2, coordinates=coordinates, key=key
        )
        run = eqx.filter_jit(model)
        gap = jnp.abs(run(jnp.roll(x, 4, 1)) - jnp.roll(run(x), 4, 1)).max()
        assert (gap < 1e-5) != coordinates


def test_finer_grids(getkey):
    """A linear operator doesn't alias: asked for, or evaluated on, a finer grid."""
    plain = px.operators.FNO(
        1,
        1,
        (3,),
        width=4,
        depth=2,
        activation=lambda x: x,
        coordinates=False,
        key=getkey(),
    )
    wave = lambda n: np.sin(2 * np.pi * np.arange(n) / n + 0.3)[None]
    field = lambda n: jnp.asarray(wave(n), jnp.float32)
    run = eqx.filter_jit(plain)
    coarse, fine = run(field(12)), run(field(24))
    np.testing.assert_allclose(fine[:, ::2], coarse, atol=1e-6)
    np.testing.assert_allclose(run(field(12), (24,)), fine, atol=1e-6)
    np.testing.assert_allclose(run(field(24), (12,)), coarse, atol=1e-6)


def test_double_precision(getkey):
    """The same weights in both precisions."""
    model = px.operators.FNO(1, 1, (3, 3), width=4, depth=2, key=getkey())
    x = jax.random.normal(getkey(), (1, 8, 8))
    single = np.asarray(eqx.filter_jit(model)(x))
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a), float) if eqx.is_array(a) else a, model
        )
        double = np.asarray(eqx.filter_jit(wide)(jnp.asarray(np.asarray(x), float)))
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-6)


def test_bad_sizes(getkey):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        px.operators.FNO(1, 1, (2,), depth=0, key=getkey())


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.0),
    "adahessian": lambda: px.optimizers.adahessian(0.05),
    "mfac": lambda: px.optimizers.mfac(0.05, window=4, damping=0.1),
    "mkor": lambda: px.optimizers.mkor(0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training(name, seed):
    """One loop trains it with every optimizer: the shift by a quarter of the period."""
    rng = np.random.default_rng(0)
    t = np.arange(16) / 16
    waves = np.stack([np.cos(2 * np.pi * k * t + p) for k in (1, 2) for p in (0, 1.5)])
    x = (rng.normal(size=(32, 4)) @ waves).astype(np.float32)[:, None]
    data = px.training.Batches((x, np.roll(x, 4, axis=2)), batch_size=32)

    def loss(model, batch, key):
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    model = px.operators.FNO(1, 1, (3,), width=4, depth=1, key=jax.random.key(seed))
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):  # as Optax's Adam needs
        result = px.training.fit(
            px.curvature.kron.instrument(model),
            loss,
            data,
            OPTIMIZERS[name](),
            steps=30,
            key=jax.random.key(seed),
            log_every=10,
        )
    start = float(np.mean(x**2))
    assert result.history[-1]["loss"] < 0.8 * start
