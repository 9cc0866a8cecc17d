"""Shampoo against its equations in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax.optimizers import scale_by_shampoo, shampoo


STEPS = 5
QUICK = {"xla_backend_optimization_level": 0}


def _gradients(rng, shape, dtype):
    return jnp.asarray(rng.normal(size=(STEPS, *shape)), dtype)


def _run(tx, gradients, **extra):
    """All updates and states of one compiled loop."""

    def one(state, g):
        updates, state = tx.update(g, state, g, **extra)
        return state, (updates, state)

    start = tx.init(jax.tree.map(lambda g: g[0], gradients))
    run = jax.jit(lambda gs: jax.lax.scan(one, start, gs)[1], compiler_options=QUICK)
    return run(gradients)


def _power(matrix, power):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def _reference(
    gradients, every=1, warmup=0, decay=None, eps=1e-6, power=None, diagonal=()
):
    g = np.array(gradients, np.float64)
    axes = range(g.ndim - 1)
    power = -1 / (2 * len(axes)) if power is None else power
    moments = [np.zeros((g.shape[a + 1],) * 2) for a in axes]
    roots, out = list(moments), []
    for t, x in enumerate(g.copy()):
        for a in axes:
            flat = np.moveaxis(x, a, 0).reshape(x.shape[a], -1)
            new = flat @ flat.T
            if a in diagonal:
                new = np.diag(np.diag(new))
            keep, add = (1, 1) if decay is None else (decay, 1 - decay)
            moments[a] = keep * moments[a] + add * new
            if t % every == 0 or t < warmup or a in diagonal:
                mean = 1 if decay is None else 1 - decay ** (t + 1)
                shifted = moments[a] / mean + eps * np.eye(x.shape[a])
                roots[a] = _power(shifted, power)
        for a in axes:
            g[t] = np.moveaxis(np.tensordot(g[t], roots[a], ((a,), (0,))), -1, a)
        out.append(g[t])
    return np.stack(out)


def _error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


# The smallest eigenvalues are those of rounding, plus eps: roots of order 4 and more
# keep a quarter of the digits there, so that eps is not smaller than rounding.
@pytest.mark.parametrize(
    ("shape", "options", "same"),
    [
        ((4, 3), {"eps": 1e-3}, {}),
        ((4, 3), {"eps": 1e-3, "decay": 0.9}, {}),
        ((4, 3), {"eps": 1e-3, "exponent": 0.5}, {"power": -0.5}),
        ((4, 3), {"eps": 1e-3, "max_dim": 3}, {"diagonal": (0,)}),
        ((3, 2, 4), {"eps": 1e-3}, {}),
        ((3,), {"eps": 1e-3, "full_vectors": True}, {}),
    ],
    ids=["matrix", "mean", "root", "long axis", "tensor", "vector"],
)
def test_follows_its_equations(rng, shape, options, same, precision):
    g = _gradients(rng, shape, precision.dtype)
    updates, _ = _run(scale_by_shampoo(update_interval=3, warmup=2, **options), g)
    known = {k: v for k, v in options.items() if k in ("eps", "decay")}
    expected = _reference(g, every=3, warmup=2, **known, **same)
    assert _error(updates, expected) <= precision.tolerance(2e4)
    other = _reference(g, every=1, **known, **same)
    assert _error(updates, other) > 1e-3


def test_vectors_and_numbers_are_scaled_by_coordinates(rng):
    """AdaGrad, never with old roots."""
    g = {
        "number": _gradients(rng, (), jnp.float32),
        "vector": _gradients(rng, (3,), jnp.float32),
    }
    updates, _ = _run(scale_by_shampoo(eps=1e-3, warmup=0), g)
    for name, gradients in g.items():
        exact = np.asarray(gradients, np.float64)
        expected = exact / np.sqrt(np.cumsum(exact**2, axis=0) + 1e-3)
        assert _error(updates[name], expected) <= 2e-6


def test_warm_up_bounds_the_first_updates():
    """A gradient in a direction that the first one did not have."""
    g = jnp.zeros((2, 3, 3)).at[0, 0, 0].set(1.0).at[1, 1, 1].set(1.0)
    updates, _ = _run(scale_by_shampoo(), g)
    assert float(jnp.abs(updates).max()) <= 1
    updates, _ = _run(scale_by_shampoo(warmup=0), g)
    assert float(jnp.abs(updates).max()) > 100


def test_iteration_takes_the_same_roots(rng):
    """Optax's Newton iteration, also on matrices that it does not converge for."""
    tx = [scale_by_shampoo(eps=1e-2, root=root) for root in ("eigh", "newton")]
    # Of three hundred seeds, these are some of those where the iteration gives up.
    hard = [np.random.default_rng(seed).normal(size=(4, 3)) for seed in (55, 97, 107)]
    g = np.concatenate([hard, rng.normal(size=(5, 4, 3))]).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.vmap
    def both(g):
        left = jnp.matmul(g, g.T) + 1e-2 * jnp.eye(4)
        _, missed = optax.matrix_inverse_pth_root(left, 4, ridge_epsilon=0.0)
        return [t.update(g, t.init(g), g)[0] for t in tx], missed

    (eigh, newton), missed = both(g)
    errors = jnp.linalg.norm(newton - eigh, axis=(1, 2))
    assert float((errors / jnp.linalg.norm(eigh, axis=(1, 2))).max()) < 1e-3
    assert float(missed[:3].max()) > 0.1
    with pytest.raises(ValueError, match='root="eigh"'):
        _run(scale_by_shampoo(root="newton"), _gradients(rng, (2, 2, 2), jnp.float32))


def test_a_large_axis_costs_a_vector(rng):
    g = _gradients(rng, (6, 3, 1), jnp.float32)
    state = scale_by_shampoo(max_dim=4).init(g[0])
    assert state.left.shape == (6,)
    assert [m.shape for m in state.right] == [(3, 3), (1, 1)]


def test_grafting_takes_the_length_of_another(rng):
    g = {
        "a": _gradients(rng, (4, 3), jnp.float32),
        "b": _gradients(rng, (3,), jnp.float32),
    }
    plain, _ = _run(scale_by_shampoo(), g)
    grafted, state = _run(scale_by_shampoo(grafting=optax.trace(0.9)), g)
    length, _ = _run(optax.trace(0.9), g)
    for name in g:
        for p, x, y in zip(plain[name], grafted[name], length[name], strict=True):
            norms = [np.linalg.norm(z) for z in (p, x, y)]
            np.testing.assert_allclose(norms[1], norms[2], rtol=6e-6)
            np.testing.assert_allclose(x / norms[1], p / norms[0], atol=6e-6)
    assert isinstance(state.grafting, optax.TraceState)


def test_a_zero_gradient_makes_a_zero_update():
    g = jnp.zeros((1, 3, 2))
    for tx in (scale_by_shampoo(), scale_by_shampoo(grafting=optax.identity())):
        updates, _ = _run(tx, g)
        np.testing.assert_array_equal(updates, 0)


def test_complex_leaves_are_tensors_of_real_ones(rng):
    """Moments sum over real and imaginary parts, and the order is that of the leaf."""
    g = _gradients(rng, (4, 3, 2), jnp.float32)
    updates, state = _run(
        scale_by_shampoo(eps=1e-3), jax.lax.complex(g[..., 0], g[..., 1])
    )
    flat = np.asarray(g[0], np.float64).reshape(4, 6)
    np.testing.assert_allclose(state.left[0], flat @ flat.T, rtol=1e-4)
    left = _power(flat @ flat.T + 1e-3 * np.eye(4), -0.25)
    other = np.asarray(g[0], np.float64).transpose(1, 0, 2).reshape(3, 8)
    right = _power(other @ other.T + 1e-3 * np.eye(3), -0.25)
    expected = np.einsum("ij,jkc,kl->ilc", left, np.asarray(g[0]), right)
    got = np.stack([updates[0].real, updates[0].imag], -1)
    assert _error(got, expected) <= 1e-3


def test_cadence_can_be_told(rng):
    g = _gradients(rng, (3, 2), jnp.float32)
    always, _ = _run(scale_by_shampoo(), g, update_curvature=True)
    assert (
        _error(always, _run(scale_by_shampoo(warmup=0, update_interval=1), g)[0]) == 0
    )
    never, state = _run(scale_by_shampoo(), g, update_curvature=False)
    np.testing.assert_array_equal(never, g)
    assert float(jnp.abs(state.left[-1]).max()) > 0


def test_alias_has_momentum_and_decays_weights():
    params = 2 * jnp.eye(2)
    tx = shampoo(0.5, momentum=0.9, weight_decay=0.1)
    state = tx.init(params)
    first, state = tx.update(4 * jnp.eye(2), state, params)
    np.testing.assert_allclose(first, -0.5 * (1 + 0.2) * np.eye(2), rtol=1e-5)
    second, _ = tx.update(jnp.zeros((2, 2)), state, params)
    np.testing.assert_allclose(second, -0.5 * (0.9 + 0.2) * np.eye(2), rtol=1e-5)


def test_misuse_says_what_to_write():
    with pytest.raises(ValueError, match="`root` must be one of"):
        scale_by_shampoo(root="qr")
    with pytest.raises(ValueError, match="`decay` must be in"):
        scale_by_shampoo(decay=1.0)
