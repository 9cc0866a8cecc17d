"""Natural GaLore: its subspaces, its Fisher matrix, and what it shares with Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import optimizers
from pathax.optimizers.second_order._moments import adam


STEPS, HISTORY, DAMPING = 7, 3, 0.2

# Small programs, where compilation is what takes time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Adam and GaLore are Optax's, which doesn't run under strict promotion."""
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):
        yield


def _runner(tx, params=None):
    def run(gradients):
        start = tx.init(jax.tree.map(lambda x: x[0], gradients))
        step = lambda state, g: tx.update(g, state, params)[::-1]
        return jax.lax.scan(step, start, gradients)[::-1]

    return jax.jit(run, compiler_options=QUICK)


def _run(tx, gradients, params=None):
    return _runner(tx, params)(gradients)


def _gradients(rng, shape=(4, 6), dtype=np.float32):
    return jnp.asarray(rng.normal(size=(STEPS, *shape)).astype(dtype))


def _error(found, exact):
    found, exact = np.asarray(found), np.asarray(exact)
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


@pytest.mark.parametrize(("scale", "reset"), [("sum", None), ("mean", 2), ("sum", 5)])
def test_the_window_is_the_dense_solve(rng, precision, scale, reset):
    gradients = _gradients(rng, (2, 3), precision.dtype)
    tx = optimizers.scale_by_window_fisher(
        HISTORY, DAMPING, fisher_scale=scale, reset_every=reset
    )
    found, _ = _run(tx, gradients)
    flat = np.asarray(gradients).reshape(STEPS, -1)
    exact = _dense(flat, HISTORY, DAMPING, scale, reset)
    found = np.asarray(found).reshape(STEPS, -1)
    assert _error(found, exact) < precision.tolerance(1000)
    other = {"sum": "mean", "mean": "sum"}[scale]
    assert _error(found, _dense(flat, HISTORY, DAMPING, other, reset)) > 1e-3
    assert _error(found, _dense(flat, HISTORY, DAMPING, scale, 3)) > 1e-3


def test_a_history_of_one(rng):
    gradients = _gradients(rng, (2, 3))
    found, _ = _run(optimizers.scale_by_window_fisher(1, DAMPING), gradients)
    size = jnp.sum(gradients**2, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, gradients / (DAMPING + size), rtol=1e-5)


def test_it_is_layerwise_mfac(rng):
    gradients = {"a": _gradients(rng, (2, 3)), "b": _gradients(rng, (3, 2))}
    window = optimizers.scale_by_window_fisher(HISTORY, DAMPING, fisher_scale="mean")
    mfac = optimizers.scale_by_mfac(HISTORY, DAMPING, layerwise=True)
    found, exact = _run(window, gradients)[0], _run(mfac, gradients)[0]
    for name in gradients:
        assert _error(found[name], exact[name]) < 1e-5


def _woodbury(x, damping):
    """`x_last / d - X S^-1 X^T x_last / d^2`, with `S = I + X^T X / d`."""
    d = x.dtype.type(damping)
    inner = np.eye(x.shape[1], dtype=x.dtype) + x.T @ x / d
    return x[:, -1] / d - x @ np.linalg.solve(inner, x.T @ x[:, -1]) / d**2


def test_the_authors_formula(rng):
    """The same in float64; in float32 it has no digits where ours has five."""
    gradients = _gradients(rng, (5, 6)) * 10
    damping = 1e-3
    tx = optimizers.scale_by_window_fisher(HISTORY, damping)
    found = np.asarray(_run(tx, gradients)[0])[-1].ravel()
    flat = np.asarray(gradients).reshape(STEPS, -1)
    exact = _dense(flat, HISTORY, damping)[-1]
    x = flat[-HISTORY:].T
    assert _error(_woodbury(x.astype(np.float64), damping), exact) < 1e-7
    assert _error(found, exact) < 1e-5
    assert _error(_woodbury(x, damping), exact) > 1e-3


@pytest.mark.parametrize("history", [1, 4])
def test_three_ways_to_solve(rng, history):
    """Woodbury, push-through and dense, in float64 and with a moderate damping."""
    with jax.enable_x64(True):
        gradients = _gradients(rng, (2, 3), np.float64)
        tx = optimizers.scale_by_window_fisher(history, DAMPING)
        found = np.asarray(_run(tx, gradients)[0])[-1].ravel()
    flat = np.asarray(gradients).reshape(STEPS, -1)
    assert _error(found, _dense(flat, history, DAMPING)[-1]) < 1e-9
    assert _error(found, _woodbury(flat[-history:].T, DAMPING)) < 1e-9


def test_small_leaves_pass_by():
    tx = optimizers.scale_by_window_fisher(HISTORY)
    g = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    updates, state = jax.jit(lambda g: tx.update(g, tx.init(g)))(g)
    assert np.array_equal(updates["b"], g["b"])
    assert isinstance(state.window["b"], optax.MaskedNode)
    assert not np.array_equal(updates["w"], g["w"])


# Projections --------------------------------------------------------------------------


def _galore(**kwargs):
    defaults = {"rank": 2, "update_interval": 3, "scale": 0.5, "history": HISTORY}
    return optimizers.scale_by_natural_galore(**(defaults | kwargs))


@pytest.mark.parametrize(
    ("shape", "kwargs", "sides"),
    [
        ((4, 6), {}, "left"),
        ((6, 4), {}, "right"),
        ((4, 4), {}, "right"),
        ((4, 6), {"side": "large"}, "right"),
        ((4, 4), {"side": "large"}, "left"),
        ((4, 3, 2), {}, "left"),
        ((6, 4), {"two_sided": True}, "left and right"),
    ],
)
def test_updates_lie_in_the_subspace(rng, shape, kwargs, sides):
    gradients = _gradients(rng, shape)
    found, state = _run(_galore(**kwargs), gradients)
    found = np.asarray(found).reshape(STEPS, shape[0], -1)
    ranks = np.linalg.matrix_rank(found, tol=1e-4)
    assert np.all(ranks == 2)
    names = ("left", "right")
    here = [n for n, b in zip(names, state.projector, strict=True) if b is not None]
    assert " and ".join(here) == sides
    # Singular vectors of the gradient at the last refresh, with one sign fixed.
    u, _, vh = np.linalg.svd(np.asarray(gradients[6]).reshape(shape[0], -1))
    for basis, exact in zip(state.projector, (u, vh.T), strict=True):
        if basis is not None:
            np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)
            inner = np.asarray(basis.T @ exact[:, :2])
            np.testing.assert_allclose(np.abs(inner), np.eye(2), atol=1e-3)
            largest = np.abs(basis).argmax(axis=0)
            assert np.all(np.asarray(basis)[largest, [0, 1]] > 0)


def test_full_rank_is_the_full_space(rng):
    """With all directions kept and no Adam, a rotation there and back."""
    gradients = _gradients(rng)
    tx = _galore(rank=99, scale=1.0, b1=0.0, b2=0.0, eps=1e6, update_interval=100)
    found, _ = _run(tx, gradients)  # divided by a large number instead of the root
    window = optimizers.scale_by_window_fisher(HISTORY, 1e-3)
    exact, _ = _run(window, gradients)
    assert _error(1e6 * found, exact) < 1e-3


@pytest.mark.parametrize("shapes", [((6, 4), (3,)), ((4, 4), (4, 6))])
def test_what_optax_composes_is_the_same(rng, shapes):
    """Optax's projection with our Fisher matrix below it; both on the long side.

    Signs of singular vectors may differ. Without memory in Adam steps don't depend on
    them; with memory, up to the second refresh.
    """
    gradients = {name: _gradients(rng, s) for name, s in zip("ab", shapes, strict=True)}
    params = jax.tree.map(lambda x: x[0], gradients)
    fisher = optimizers.scale_by_window_fisher(HISTORY, 1e-3, reset_every=3)
    for steps, betas in ((3, (0.9, 0.999)), (STEPS, (0.0, 0.0))):
        base = optax.chain(fisher, optax.scale_by_adam(*betas, eps=0.1))
        theirs = optax.contrib.scale_by_galore(2, 3, 0.5, base_optimizer=base)
        wanted, _ = _run(theirs, gradients, params)
        ours = _galore(side="large", b1=betas[0], b2=betas[1], eps=0.1)
        found, _ = _run(ours, gradients, params)
        for name in found:
            assert _error(found[name][:steps], wanted[name][:steps]) < 2e-3


def test_moments_keep_their_digits_from_the_first_step():
    """Of a constant gradient every step is one; Optax's are off by a thousand ulp."""
    g = jnp.array([3.0, 0.1])
    errors = {}
    for name, make in (("ours", adam), ("optax", optax.scale_by_adam)):
        tx = make(0.9, 0.999, 1e-30)
        state, errors[name] = tx.init(g), 0.0
        for _ in range(3):
            step, state = tx.update(g, state)
            errors[name] = max(errors[name], float(jnp.abs(step - 1).max()))
    assert errors["ours"] < 5e-7
    assert errors["optax"] > 2e-6


def test_a_refresh_starts_anew(rng):
    """With no memory in Adam, as if the steps before had not been."""
    gradients = _gradients(rng)
    run = _runner(_galore(b1=0.0, b2=0.0, eps=0.1))
    whole, state = run(gradients)
    assert int(state.fisher.count) == STEPS - 6  # emptied at steps 0, 3 and 6
    late, _ = run(jnp.concatenate([gradients[3:], gradients[:3]]))
    assert _error(whole[3:], late[:4]) < 1e-4
    kept = _galore(b1=0.0, b2=0.0, eps=0.1, reset_history_on_refresh=False)
    mixed, state = _run(kept, gradients)
    assert int(state.fisher.count) == HISTORY
    assert _error(mixed[:3], whole[:3]) < 1e-6
    assert _error(mixed[3:], whole[3:]) > 1e-3


def test_rotated_moments(rng):
    """The mean of steps is the same vector in old coordinates and in new ones."""
    gradients = _gradients(rng)
    # All directions are kept, so nothing is lost; the second moment does nothing.
    options = {"rank": 4, "b1": 0.9, "b2": 0.0, "eps": 1e3, "history": 1}
    found = {
        rotate: _run(_galore(**options, rotate_moments=rotate), gradients)[0]
        for rotate in (False, True)
    }
    flat = np.asarray(gradients, np.float64).reshape(STEPS, -1)
    steps = _dense(flat, 1, 1e-3).reshape(gradients.shape)
    mean, exact = 0.0, []
    for t, step in enumerate(steps, 1):
        mean = 0.9 * mean + 0.1 * step
        exact.append(0.5 * mean / (1 - 0.9**t) / 1e3)
    assert _error(found[True], np.stack(exact)) < 1e-3
    assert _error(found[False], np.stack(exact)) > 1e-2


def test_rotation_to_the_same_basis_changes_nothing(rng):
    """The same gradient at each refresh gives the same projector."""
    gradients = jnp.broadcast_to(_gradients(rng)[:1], (STEPS, 4, 6))
    plain, _ = _run(_galore(), gradients)
    rotated, _ = _run(_galore(rotate_moments=True), gradients)
    assert _error(rotated, plain) < 1e-3


@pytest.mark.parametrize("modules", ["attention", ("attention", "mlp")])
def test_chosen_modules(rng, modules):
    """Others get Adam alone."""
    g = _gradients(rng)[0]
    tree = {"attention": {"weight": g, "bias": g[0]}, "embedding": {"weight": g}}
    state = jax.eval_shape(_galore(modules=modules).init, tree)
    sides = jax.tree.map(
        lambda pair: [b is not None for b in pair],
        state.projector,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    assert sides["attention"] == {"weight": [True, False], "bias": [False, False]}
    assert sides["embedding"] == {"weight": [False, False]}


def test_complex_weights(rng):
    """As Fourier layers have; the subspace is a complex one."""
    parts = np.asarray(rng.normal(size=(2, STEPS, 4, 5)), np.float32)
    found, state = _run(_galore(), jnp.asarray(parts[0] + 1j * parts[1]))
    left = np.asarray(state.projector[0])
    np.testing.assert_allclose(left.conj().T @ left, np.eye(2), atol=1e-5)
    assert found.dtype == jnp.complex64
    assert np.all(np.linalg.matrix_rank(np.asarray(found), tol=1e-4) == 2)


def test_interval_may_be_traced(rng):
    gradients = _gradients(rng)
    make = optimizers.inject(optimizers.natural_galore)
    tx = make(learning_rate=1.0, rank=2, update_interval=3, scale=0.5, history=HISTORY)
    found, _ = _run(tx, gradients, gradients[0])
    wanted, _ = _run(_galore(), gradients)
    assert _error(found, -wanted) < 1e-3


def test_memory_is_what_the_page_says():
    """The history is larger than what it preconditions."""
    m, rank, history = 16, 4, 20
    tx = optimizers.scale_by_natural_galore(rank, history=history)
    state = jax.eval_shape(tx.init, jnp.zeros((m, m)))
    assert state.fisher.window.size == history * rank * m == 5 * m * m


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
