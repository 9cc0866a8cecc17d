"""SOAP against its equations in NumPy, and Adam where it has no bases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax.optimizers import scale_by_soap, soap


STEPS, EVERY = 8, 3
QUICK = {"xla_backend_optimization_level": 0}


def _gradients(rng, shape, dtype, steps=STEPS):
    """Gradients with distinct scales, so that eigenvalues are well apart."""
    g = rng.normal(size=(steps, *shape))
    for axis, d in enumerate(shape):
        scale = 2.0 ** np.arange(d)
        g = g * scale.reshape([-1] + [1] * (len(shape) - axis - 1))
    return jnp.asarray(g, dtype)


def _run(tx, gradients, **extra):
    """All updates and states of one compiled loop."""

    def one(state, g):
        updates, state = tx.update(g, state, g, **extra)
        return state, (updates, state)

    start = tx.init(jax.tree.map(lambda g: g[0], gradients))
    run = jax.jit(lambda gs: jax.lax.scan(one, start, gs)[1], compiler_options=QUICK)
    return run(gradients)


def _run_adam(gradients):
    with jax.numpy_dtype_promotion("standard"):  # Optax's own powers need it
        return _run(optax.scale_by_adam(0.95, 0.95, 1e-8), gradients)


def _along(x, matrix, axis):
    """`matrix^T` along one axis."""
    return np.moveaxis(np.tensordot(x, matrix, ((axis,), (0,))), -1, axis)


def _reference(gradients, b1=0.95, b2=0.95, eps=1e-8, every=EVERY, wrong=None):
    """SOAP as its authors' code runs: step in old bases, then see the gradient."""
    axes = range(gradients[0].ndim)
    moments = bases = None
    mu = nu = 0.0
    out = []
    for t, g in enumerate(np.asarray(gradients, np.float64)):
        flat = [np.moveaxis(g, a, 0).reshape(g.shape[a], -1) for a in axes]
        if t == 0:
            moments = [(1 - b2) * x @ x.T for x in flat]
            bases = [np.linalg.eigh(m)[1][:, ::-1] for m in moments]
            out.append(np.zeros_like(g))
            continue
        rotated = g
        for a in axes:
            rotated = _along(rotated, bases[a], a)
        mu = b1 * mu + (1 - b1) * rotated
        nu = b2 * nu + (1 - b2) * rotated**2
        d = mu / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t)) + eps)
        for a in axes:
            d = _along(d, bases[a].T, a)
        out.append(d)
        moments = [
            b2 * m + (1 - b2) * x @ x.T for m, x in zip(moments, flat, strict=True)
        ]
        if t % every == 0:
            for a in axes:
                image = moments[a] @ bases[a]
                order = np.argsort(-np.sum(bases[a] * image, axis=0))
                new = np.linalg.qr(image[:, order])[0]
                if wrong != "momentum":
                    mu = _along(mu, bases[a].T, a)
                    mu = _along(mu, new, a)
                if wrong != "order":
                    nu = np.take(nu, order, axis=a)
                bases[a] = new
    return np.stack(out)


def _error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)])
def test_follows_its_equations(rng, shape, precision):
    g = _gradients(rng, shape, precision.dtype)
    updates, state = _run(scale_by_soap(update_interval=EVERY), g)
    assert _error(updates, _reference(g)) <= precision.tolerance(2e4)
    assert _error(updates, _reference(g, wrong="momentum")) > 1e-2
    for basis in jax.tree.leaves((state.basis_left, state.basis_right)):
        last = basis[-1]
        gram = last.T @ last
        np.testing.assert_allclose(
            gram, np.eye(len(last)), atol=precision.tolerance(50)
        )


def test_sorting_of_squares_matters(rng):
    """Gradients whose large direction changes, so that columns change places."""
    g = np.array(_gradients(rng, (4, 3), jnp.float32))
    g[2:] = g[2:, ::-1, ::-1] * 30
    updates, _ = _run(scale_by_soap(update_interval=EVERY), jnp.asarray(g))
    assert _error(updates, _reference(g)) <= 1e-2
    assert _error(updates, _reference(g, wrong="order")) > 3e-2


def test_is_adam_where_it_has_no_bases(rng):
    """Vectors, numbers and axes that are too long; the first step left out of both."""
    tree = {
        "long": _gradients(rng, (6, 5), jnp.float32),
        "number": _gradients(rng, (), jnp.float32),
        "row": _gradients(rng, (1, 3), jnp.float32),
        "vector": _gradients(rng, (5,), jnp.float32),
    }
    updates, state = _run(scale_by_soap(max_dim=4), tree)
    adam, _ = _run_adam(jax.tree.map(lambda g: g[1:], tree))
    for name in tree:
        np.testing.assert_array_equal(updates[name][0], 0)
        np.testing.assert_allclose(updates[name][1:], adam[name], atol=1e-5)
    assert all(
        x.shape == (STEPS, 1, 1) for x in jax.tree.leaves((state.left, state.right))
    )


def test_one_long_axis_leaves_the_other():
    state = scale_by_soap(max_dim=4).init(jnp.zeros((5, 3)))
    assert state.left.shape == (1, 1)
    assert state.right.shape == (3, 3)


def test_first_step_may_be_adams(rng):
    """Without a skipped step, it is the sign; the bases then are the same ones."""
    g = _gradients(rng, (4, 3), jnp.float32)
    updates, state = _run(scale_by_soap(skip_first=False), g)
    np.testing.assert_allclose(updates[0], g[0] / (np.abs(g[0]) + 1e-8), rtol=1e-5)
    _, skipped = _run(scale_by_soap(), g)
    np.testing.assert_allclose(
        np.abs(state.basis_left[0]), np.abs(skipped.basis_left[0])
    )
    # Its squares are those of the gradient in these bases: a diagonal of 4 by 3.
    beside = np.array(state.nu[0])
    beside[np.arange(3), np.arange(3)] = 0
    assert beside.max() <= 1e-4 * float(state.nu[0].max())


def test_merged_axes_are_one_axis(rng):
    g = _gradients(rng, (4, 3, 2), jnp.float32)
    merged, _ = _run(scale_by_soap(max_dim=6, merge_dims=True), g)
    matrix, _ = _run(scale_by_soap(), g.reshape(STEPS, 4, 6))
    np.testing.assert_allclose(
        merged.reshape(STEPS, 4, 6),
        matrix,
        atol=1e-3,
    )


def test_complex_leaves_are_tensors_of_real_ones(rng):
    """The same as a real leaf with a last axis of two that has no basis."""
    g = _gradients(rng, (5, 3, 2), jnp.float32)
    complex_g = jax.lax.complex(g[..., 0], g[..., 1])
    updates, _ = _run(scale_by_soap(update_interval=EVERY), complex_g)
    # A last axis of ten, of which bases of at most five are made, has none either.
    wide = jnp.concatenate([g, jnp.zeros((STEPS, 5, 3, 8), g.dtype)], axis=-1)
    real, _ = _run(scale_by_soap(update_interval=EVERY, max_dim=5), wide)
    np.testing.assert_allclose(
        np.stack([updates.real, updates.imag], -1),
        real[..., :2],
        rtol=1e-3,
        atol=1e-3,
    )


def test_rotations_of_the_gradients_rotate_the_updates(rng):
    """What Adam lacks: no coordinates are special, with exact bases every step."""
    g = np.asarray(_gradients(rng, (4, 3), np.float32))
    q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    turned = np.einsum("ij,tjk->tik", q, g).astype(np.float32)
    plain, _ = _run(scale_by_soap(update_interval=1), jnp.asarray(g))
    other, _ = _run(scale_by_soap(update_interval=1), jnp.asarray(turned))
    assert _error(other, np.einsum("ij,tjk->tik", q, plain)) < 1e-2
    plain, _ = _run_adam(jnp.asarray(g))
    other, _ = _run_adam(jnp.asarray(turned))
    assert _error(other, np.einsum("ij,tjk->tik", q, plain)) > 0.1


def test_cadence(rng):
    """Bases change when the interval or the extra says so, moments at every step."""
    g = _gradients(rng, (3, 2), jnp.float32)

    def changes(tree):
        return (np.abs(np.diff(np.asarray(tree), axis=0)).max(axis=(1, 2)) > 0).tolist()

    _, state = _run(scale_by_soap(update_interval=EVERY), g)
    assert changes(state.basis_left) == [t % EVERY == 0 for t in range(1, STEPS)]
    assert all(changes(state.left))
    _, state = _run(scale_by_soap(), g, update_curvature=True)
    assert all(changes(state.basis_left))
    _, state = _run(scale_by_soap(update_interval=1), g, update_curvature=False)
    assert not any(changes(state.basis_left))


def test_alias_decays_weights_and_descends():
    tx = soap(0.5, weight_decay=0.1)
    params = jnp.full((2, 2), 2.0)
    updates, _ = tx.update(jnp.ones((2, 2)), tx.init(params), params)
    np.testing.assert_allclose(updates, -0.5 * 0.1 * 2.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["b1", "b2", "shampoo_decay"])
def test_decays_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be in"):
        scale_by_soap(**{name: 1.0})
