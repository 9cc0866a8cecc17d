"""Natural GaLore: its subspaces, its Fisher matrix, and what it shares with Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import optimizers


STEPS, HISTORY, DAMPING = 7, 3, 0.2


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Adam and GaLore are Optax's, which doesn't run under strict promotion."""
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):
        yield


def _run(tx, gradients, params=None):
    @jax.jit
    def run(gradients):
        start = tx.init(jax.tree.map(lambda x: x[0], gradients))
        step = lambda state, g: tx.update(g, state, params)[::-1]
        return jax.lax.scan(step, start, gradients)

    state, updates = run(gradients)
    return updates, state


def _gradients(rng, shape=(4, 6), dtype=np.float32):
    return jnp.asarray(rng.normal(size=(STEPS, *shape)).astype(dtype))


def _error(found, exact):
    return np.abs(found - exact).max() / np.abs(exact).max()


# The Fisher matrix of a window --------------------------------------------------------


def _dense(flat, history, damping, scale="sum", reset=None):
    out = []
    for t in range(len(flat)):
        start = max(0, t + 1 - history)
        if reset is not None:
            start = max(start, t // reset * reset)
        x = flat[start : t + 1].astype(np.float64)
        fisher = x.T @ x / (len(x) if scale == "mean" else 1)
        out.append(np.linalg.solve(damping * np.eye(x.shape[1]) + fisher, x[-1]))
    return np.stack(out)


@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("reset", [None, 2, 5])
def test_the_window_is_the_dense_solve(rng, precision, scale, reset):
    gradients = _gradients(rng, (2, 3), precision.dtype)
    tx = optimizers.scale_by_window_fisher(
        HISTORY, DAMPING, fisher_scale=scale, reset_every=reset
    )
    found, _ = _run(tx, gradients)
    flat = np.asarray(gradients).reshape(STEPS, -1)
    exact = _dense(flat, HISTORY, DAMPING, scale, reset)
    found = np.asarray(found).reshape(STEPS, -1)
    assert _error(found, exact) < precision.tolerance(300)
    wrong = _dense(flat, HISTORY, DAMPING, scale, 3)
    assert _error(found, wrong) > 1e-3


def test_the_usual_formula_loses_its_digits(rng):
    """`x / d - X S^-1 X^T x / d^2` in float32, beside ours."""
    gradients = _gradients(rng, (5, 6)) * 10
    damping = 1e-3
    tx = optimizers.scale_by_window_fisher(HISTORY, damping)
    found = np.asarray(_run(tx, gradients)[0])[-1].ravel()
    flat = np.asarray(gradients).reshape(STEPS, -1)
    exact = _dense(flat, HISTORY, damping)[-1]
    x = flat[-HISTORY:].T
    d = np.float32(damping)
    inner = np.eye(HISTORY, dtype=np.float32) + x.T @ x / d
    usual = x[:, -1] / d - x @ np.linalg.solve(inner, x.T @ x[:, -1]) / d**2
    assert _error(found, exact) < 1e-5
    assert _error(usual, exact) > 1e-3


def test_small_leaves_pass_by(rng):
    tx = optimizers.scale_by_window_fisher(HISTORY)
    g = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    updates, state = tx.update(g, tx.init(g))
    assert np.array_equal(updates["b"], g["b"])
    assert isinstance(state.window["b"], optax.MaskedNode)
    assert not np.array_equal(updates["w"], g["w"])


# Projections --------------------------------------------------------------------------


def _galore(**kwargs):
    defaults = {"rank": 2, "update_interval": 3, "scale": 0.5, "history": HISTORY}
    return optimizers.scale_by_natural_galore(**(defaults | kwargs))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 3, 2)])
@pytest.mark.parametrize("side", ["small", "large"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_updates_lie_in_the_subspace(rng, shape, side, two_sided):
    gradients = _gradients(rng, shape)
    found, state = _run(_galore(side=side, two_sided=two_sided), gradients)
    ranks = np.linalg.matrix_rank(np.asarray(found).reshape(STEPS, shape[0], -1))
    assert np.all(ranks == 2)
    left, right = state.projector
    rows, columns = shape[0], int(np.prod(shape[1:]))
    on_left = (rows <= columns) == (side == "small")
    assert (left is not None, right is not None) == (
        (True, True) if two_sided else (on_left, not on_left)
    )
    for basis in (left, right):
        if basis is not None:
            np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)


def test_full_rank_is_the_full_space(rng):
    """With all directions kept and no Adam, a rotation there and back."""
    gradients = _gradients(rng)
    tx = _galore(rank=99, scale=1.0, b1=0.0, b2=0.0, eps=1e6, update_interval=100)
    found, _ = _run(tx, gradients)  # divided by a large number instead of the root
    window = optimizers.scale_by_window_fisher(HISTORY, 1e-3)
    exact, _ = _run(window, gradients)
    np.testing.assert_allclose(1e6 * found, exact, rtol=2e-3, atol=1e-5)


def test_what_optax_composes_is_the_same(rng):
    """Optax's projection with our Fisher matrix below it; both on the long side."""
    gradients = {"w": _gradients(rng, (6, 4)), "b": _gradients(rng, (3,))}
    params = jax.tree.map(lambda x: x[0], gradients)
    fisher = optimizers.scale_by_window_fisher(HISTORY, 1e-3, reset_every=3)
    base = optax.chain(fisher, optax.scale_by_adam(eps=1e-6))
    theirs = optax.contrib.scale_by_galore(2, 3, 0.5, base_optimizer=base)
    wanted, _ = _run(theirs, gradients, params)
    found, _ = _run(_galore(side="large"), gradients, params)
    # Signs of singular vectors may differ when a projector is made anew, and then
    # moments differ; the first three steps have one projector and no such choice.
    for name in found:
        np.testing.assert_allclose(
            found[name][:3], wanted[name][:3], rtol=2e-3, atol=2e-5
        )


def test_history_and_moments_at_a_refresh(rng):
    gradients = _gradients(rng)
    default, state = _run(_galore(), gradients)
    assert int(state.fisher.count) == STEPS - 6  # emptied at steps 0, 3 and 6
    kept, state = _run(_galore(reset_history_on_refresh=False), gradients)
    assert int(state.fisher.count) == HISTORY
    rotated, _ = _run(_galore(rotate_moments=True), gradients)
    for other in (kept, rotated):
        assert np.array_equal(default[:3], other[:3])
        assert not np.allclose(default[3:], other[3:], atol=1e-3)


def test_rotation_to_the_same_basis_changes_nothing(rng):
    """The same gradient at each refresh gives the same projector."""
    gradients = jnp.broadcast_to(_gradients(rng)[:1], (STEPS, 4, 6))
    plain, _ = _run(_galore(), gradients)
    rotated, _ = _run(_galore(rotate_moments=True), gradients)
    np.testing.assert_allclose(plain, rotated, rtol=1e-4, atol=1e-5)


def test_complex_weights(rng):
    """As Fourier layers have; the subspace is a complex one."""
    parts = np.asarray(rng.normal(size=(2, STEPS, 4, 5)), np.float32)
    found, state = _run(_galore(), jnp.asarray(parts[0] + 1j * parts[1]))
    left = np.asarray(state.projector[0])
    np.testing.assert_allclose(left.conj().T @ left, np.eye(2), atol=1e-5)
    assert found.dtype == jnp.complex64
    assert np.all(np.isfinite(found))


def test_interval_may_be_traced(rng):
    gradients = _gradients(rng)
    make = optimizers.inject(optimizers.natural_galore)
    tx = make(learning_rate=1.0, rank=2, update_interval=3, scale=0.5, history=HISTORY)
    found, _ = _run(tx, gradients, gradients[0])
    wanted, _ = _run(_galore(), gradients)
    np.testing.assert_allclose(found, -wanted, rtol=1e-4, atol=1e-6)


def test_memory_is_what_the_page_says():
    """The history is larger than what it preconditions."""
    m, rank, history = 16, 4, 20
    state = optimizers.scale_by_natural_galore(rank, history=history).init(
        jnp.zeros((m, m))
    )
    window = state.fisher.window
    assert window.size == history * rank * m == 5 * m * m


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "`rank` must be in"),
        ({"side": "short"}, "`side` must be one of"),
        ({"history": 0}, "`history` must be in"),
        ({"fisher_scale": "max"}, "`fisher_scale` must be one of"),
        ({"damping": -1.0}, "`damping` must be in"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _galore(**kwargs)
