"""The spatiotemporal operator: sizes, grids, times, conservation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px
from pathax.operators._stfno import features


MODES = (3, 3, 2)


def linear(x):
    return x


def small(key, activation=jax.nn.gelu, **options):
    """Shapes as the model has them, filled without compiling its initialization."""
    sizes = {"width": 6, "depth": 2, "frames": 4, "horizon": 2.0}
    make = lambda key: px.operators.STFNO(
        MODES, activation=activation, key=key, **sizes, **options
    )
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    fill = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(fill, eqx.filter_eval_shape(make, key))


def with_bias(model, key):
    """A head whose bias takes part."""
    bias = jax.random.normal(key, model.head.bias.shape, model.head.bias.dtype)
    return eqx.tree_at(lambda m: m.head.bias, model, bias)


@eqx.filter_jit
def run(model, frames):
    """Compiled; a trajectory is cheap to evaluate as it is."""
    return model.trajectory(frames)


@eqx.filter_jit
def run_head(head, latent, initial, out_shape=None):
    return head(latent, initial, out_shape)


def frames_at(shape, dtype, count=4):
    """Smooth frames that a grid of any size can hold."""
    x = [np.arange(n) / n for n in shape]
    x, y = np.meshgrid(*x, indexing="ij")
    wave = lambda j: np.sin(2 * np.pi * (x + 2 * y) + 0.3 * j) + 0.1 * j
    return jnp.asarray(np.stack([wave(j) for j in range(count)]), dtype)


def count(model):
    return sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


@pytest.mark.parametrize(
    ("modes", "width", "published"),
    [((12, 12, 5), 20, 9_242_461), ((32, 32, 5), 10, 16_469_791)],
)
def test_published_sizes(modes, width, published, key):
    """All but the head is as published; its head has 16 reals a mode."""
    make = lambda key: eqx.filter(
        px.operators.STFNO(modes, width=width, key=key), eqx.is_array
    )
    model = eqx.filter_eval_shape(make, key)
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    mx, my, mt = modes
    trunk = sizes(model) - sizes(model.head)
    assert trunk + 16 * mx * my * mt == published
    assert sizes(model.head) == 4 * (2 * mx - 1) * (2 * my - 1) * mt


def test_start_and_mean_are_exact(precision, getkey):
    head = small(getkey()).head
    frames = frames_at((8, 7), precision.dtype)
    path = run_head(head, frames, frames[-1])
    assert jnp.array_equal(path(0.0), frames[-1])
    later = path(jnp.linspace(0.5, 2.0, 4, dtype=precision.dtype))
    drift = jnp.abs(jnp.mean(later, (1, 2)) - jnp.mean(frames[-1]))
    assert jnp.max(drift) < precision.tolerance(16)
    assert jnp.max(jnp.abs(later - frames[-1][None])) > 0.1
    free = small(getkey(), conserve_mean=False).head
    later = run_head(free, frames, frames[-1])(1.0)
    assert abs(float(jnp.mean(later) - jnp.mean(frames[-1]))) > 1e-2


def test_number_of_frames_does_not_matter(precision, getkey):
    """Common times have common values, however many others are asked for."""
    head = small(getkey()).head
    frames = frames_at((8, 8), precision.dtype)
    path = run_head(head, frames, frames[-1])
    times = lambda n: jnp.asarray(2.0 * np.arange(1, n + 1) / n, precision.dtype)
    ten, twenty, forty = (path(times(n)) for n in (10, 20, 40))
    scale = float(jnp.abs(forty).max())
    assert jnp.abs(twenty[1::2] - ten).max() < scale * precision.tolerance(8)
    assert jnp.abs(forty[3::4] - ten).max() < scale * precision.tolerance(8)


def test_the_head_does_not_know_the_grid(precision, getkey):
    """Of band-limited input, on another grid, and returned on another grid."""
    head = with_bias(small(getkey()), getkey()).head
    path = {
        shape: run_head(
            head,
            frames_at(shape, precision.dtype),
            frames_at(shape, precision.dtype)[0],
        )
        for shape in ((8, 8), (16, 24))
    }
    coarse = path[8, 8].coefficients
    limit = float(jnp.abs(coarse).max()) * precision.tolerance(64)
    assert jnp.abs(path[16, 24].coefficients[:, ::2, ::3] - coarse).max() < limit
    z = frames_at((8, 8), precision.dtype)
    moved = run_head(head, z, z[0], (16, 24))
    assert jnp.abs(moved.coefficients - path[16, 24].coefficients).max() < limit
    assert jnp.abs(moved(0.0) - path[16, 24](0.0)).max() < precision.tolerance(64)


def test_a_linear_operator_does_not_know_the_grid(precision, getkey):
    """Aliasing of the activation is all that a grid changes."""
    model = small(getkey(), activation=linear)
    coarse = run(model, frames_at((12, 12), precision.dtype))(1.0)
    fine = run(model, frames_at((24, 24), precision.dtype))(1.0)
    gap = jnp.abs(fine[::2, ::2] - coarse).max() / jnp.abs(coarse).max()
    assert gap < precision.tolerance(256)


def test_time_derivative(getkey):
    """Against forward differentiation in time, and against a complex sum."""
    with jax.enable_x64(True):
        frames = frames_at((8, 8), np.float64)
        path = run_head(small(getkey()).head, frames, frames[-1])
        for t in (0.0, 0.7, 2.0):
            _, want = jax.jvp(path, (t,), (1.0,))
            np.testing.assert_allclose(path.derivative(t), want, atol=1e-12)
        halves = np.asarray(path.coefficients).reshape(2, -1, 8, 8)
        phases = 1j * np.pi * np.arange(1, 3)[:, None, None] / 2.0
        wave = (halves[0] - 1j * halves[1]) * np.exp(phases * 0.7)
        np.testing.assert_allclose(
            path.derivative(0.7), (phases * wave).sum(0).real, atol=1e-12
        )
        differences = (path(0.8) - path(0.7)) / 0.1  # what frames alone can tell
        assert jnp.abs(differences - path.derivative(0.7)).max() > 1e-3
        both = path.derivative(jnp.array([0.0, 0.7]))
        np.testing.assert_allclose(both[1], path.derivative(0.7), atol=1e-14)


def test_head_formula(getkey):
    """The head against sums over all points, frames and wavenumbers."""
    with jax.enable_x64(True):
        head = px.operators.SpectralHead(
            (3, 2), horizon=3.0, conserve_mean=False, key=getkey()
        )
        bias = jax.random.normal(getkey(), head.bias.shape)
        head = eqx.tree_at(lambda h: h.bias, head, bias)
        z = np.asarray(jax.random.normal(getkey(), (4, 8)))
        w0 = np.asarray(jax.random.normal(getkey(), (8,)))
        k, omega = np.array([0, 1, 2, -2, -1]), np.arange(1, 3)
        x, j = np.arange(8) / 8, np.arange(5)
        frames = np.concatenate([w0[None], z])
        analysis = np.exp(-1j * np.pi * np.outer(omega, 1 + j / 5)) / 10
        hat = analysis @ frames @ np.exp(-2j * np.pi * np.outer(x, k)) / 8
        pairs = np.asarray(head.weight), np.asarray(head.bias)
        weight, offset = (p[..., 0] + 1j * p[..., 1] for p in pairs)
        c = weight * hat + offset
        y = lambda t: (
            2
            * np.real(
                np.exp(1j * np.pi * omega * (1 + t / 3))
                @ c
                @ np.exp(2j * np.pi * np.outer(k, x))
            )
        )
        path = run_head(head, jnp.asarray(z), jnp.asarray(w0))
        for t in (0.0, 1.1, 3.0):
            np.testing.assert_allclose(path(t), w0 + y(t) - y(0.0), atol=1e-12)


def test_features(precision):
    """Periodic in space, and the same on every grid."""
    dtype = precision.dtype
    make = jax.jit(features, static_argnums=(0, 1, 2, 3, 4))
    few, many = (np.asarray(make((n, 6, 3), 8, -0.01, True, dtype)) for n in (4, 8))
    np.testing.assert_allclose(many[:, ::2], few, atol=precision.tolerance(16))
    s = np.arange(1, 4) / 100
    np.testing.assert_allclose(
        few[5, 0, 0],
        np.exp(-0.01 * s) * np.sin(np.pi * s),
        rtol=precision.tolerance(16),
    )
    assert make((4, 6, 3), 8, -0.01, False, dtype).shape == (8, 4, 6, 3)


def test_transforms(getkey, no_retrace):
    model = small(getkey())
    batch = jnp.stack([frames_at((8, 8), np.float32) * s for s in (1.0, 2.0)])
    times = jnp.linspace(0.5, 2.0, 3)
    whole = lambda model, x: jax.vmap(lambda f: model(f, times))(x)
    whole, _ = no_retrace(
        whole, (model, batch), (with_bias(model, getkey()), 2 * batch)
    )
    np.testing.assert_allclose(
        whole[1], run(model, batch[1])(times), rtol=1e-4, atol=1e-3
    )


def test_one_and_three_dimensions(getkey):
    for modes, grid in (((3, 2), (8,)), ((2, 2, 2, 2), (4, 5, 6))):
        whole = lambda key, modes=modes, grid=grid: px.operators.STFNO(
            modes, width=8, depth=1, frames=3, key=key
        )(jnp.ones((5, *grid)), jnp.linspace(0, 1, 3))
        assert eqx.filter_eval_shape(whole, getkey()).shape == (3, *grid)


def test_training(seed):
    """A travelling wave: less than half the error of staying where it is."""
    rng = np.random.default_rng(0)
    x, t = np.arange(16) / 16, np.arange(8) / 8
    phase = rng.uniform(size=(16, 1, 1))
    waves = np.sin(2 * np.pi * (x - 0.5 * t[:, None] + phase)).astype(np.float32)
    data = px.training.Batches((waves[:, :4], waves[:, 4:]), batch_size=16)
    times = jnp.arange(1, 5) / 8

    def loss(model, batch, key):
        ahead = jax.vmap(lambda f: model(f, times))(batch[0])
        return jnp.mean((ahead - batch[1]) ** 2)

    model = px.operators.STFNO(
        (3, 2), width=6, depth=1, frames=4, horizon=0.5, key=jax.random.key(seed)
    )
    promotion = jax.numpy_dtype_promotion("standard")
    for optimizer in (
        optax.adamw(1e-2, weight_decay=0.0),
        px.optimizers.adahessian(0.1),
        px.optimizers.soap(1e-2, weight_decay=0.0),
    ):
        with promotion, jax.numpy_rank_promotion("allow"):
            result = px.training.fit(
                model, loss, data, optimizer, steps=60, key=jax.random.key(seed)
            )
        stay = np.mean((waves[:, 4:] - waves[:, 3:4]) ** 2)
        assert result.history[-1]["loss"] < 0.5 * stay


def test_bad_arguments(getkey):
    with pytest.raises(ValueError, match="one for time"):
        px.operators.STFNO((3,), key=getkey())
    with pytest.raises(ValueError, match="at least 6, for the features"):
        px.operators.STFNO((3, 3, 2), width=4, key=getkey())
    with pytest.raises(ValueError, match="as many frames inside"):
        px.operators.STFNO((3, 3, 5), width=8, frames=4, key=getkey())
    with pytest.raises(ValueError, match="at least 4 frames"):
        small(getkey())(jnp.zeros((3, 8, 8)), 1.0)
    with pytest.raises(ValueError, match=r"and \(5, 5\) points"):
        small(getkey()).head(jnp.zeros((4, 4, 8)), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match="positive time"):
        px.operators.SpectralHead((3, 2), horizon=0.0, key=getkey())
