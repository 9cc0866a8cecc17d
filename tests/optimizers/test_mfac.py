"""M-FAC against dense linear algebra and against the authors' recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import optimizers


SIZE, WINDOW, DAMPING, STEPS = 7, 4, 0.2, 9

# Small programs, where compilation is what takes time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _gradients(rng, dtype, scale=1.0):
    return (scale * rng.normal(size=(STEPS, SIZE))).astype(dtype)


def _apart(rng, lengths, size=60):
    """Gradients of these lengths that are far from parallel, in float32."""
    lengths = np.asarray(lengths)[:, None]
    x = rng.normal(size=(len(lengths), size))
    return (lengths * x / np.linalg.norm(x, axis=1)[:, None]).astype(np.float32)


def _tree(flat):
    """The vector as a tree of a matrix and a vector."""
    return {"m": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "v": flat[..., 4:]}


def _flat(tree):
    m = np.asarray(tree["m"])
    parts = [m.reshape(*m.shape[:-2], -1), np.asarray(tree["v"])]
    return np.concatenate(parts, axis=-1)


def _runner(tx):
    """Updates of a sequence of gradients, in one compiled scan."""

    def run(trees):
        start = tx.init(jax.tree.map(lambda x: x[0], trees))
        step = lambda state, g: tx.update(g, state)[::-1]
        return jax.lax.scan(step, start, trees)

    compiled = jax.jit(run, compiler_options=QUICK)

    def flat(gradients):
        state, updates = compiled(jax.tree.map(jnp.asarray, _tree(gradients)))
        return _flat(updates), state

    return flat


def _run(tx, gradients):
    return _runner(tx)(gradients)


def _dense(gradients, normalize="count", damping=DAMPING, window=WINDOW):
    """Each gradient, preconditioned by the Fisher matrix of the last ones."""
    out = []
    for t in range(len(gradients)):
        rows = gradients[max(0, t + 1 - window) : t + 1].astype(np.float64)
        number = len(rows) if normalize == "count" else window
        fisher = damping * np.eye(rows.shape[1]) + rows.T @ rows / number
        out.append(np.linalg.solve(fisher, rows[-1]))
    return np.stack(out)


def _error(found, exact):
    return np.abs(found - exact).max() / np.abs(exact).max()


# Exactness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalize", "solver"), [("count", "cholesky"), ("window", "eigh")]
)
def test_it_is_the_dense_solve(rng, precision, normalize, solver):
    """Also after the ring came round, where the order of rows is another."""
    gradients = _gradients(rng, precision.dtype)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, normalize=normalize, solver=solver)
    found, state = _run(tx, gradients)
    assert _error(found, _dense(gradients, normalize)) < precision.tolerance(300)
    assert int(state.count) == STEPS
    assert int(state.slot) == STEPS % WINDOW
    other = {"count": "window", "window": "count"}[normalize]
    assert _error(found, _dense(gradients, other)) > 1e-3


def test_order_in_the_window_does_not_matter(rng, precision):
    gradients = _gradients(rng, precision.dtype)
    run = _runner(optimizers.scale_by_mfac(WINDOW, DAMPING))
    one = run(gradients)[0][-1]
    turned = gradients.copy()
    turned[-WINDOW:-1] = gradients[-WINDOW:-1][::-1]
    assert _error(run(turned)[0][-1], one) < precision.tolerance(300)
    turned[-WINDOW] = -2 * gradients[-2]
    assert _error(run(turned)[0][-1], one) > 1e-3


def test_a_window_of_one_gradient(rng):
    g = _gradients(rng, np.float32)
    found, _ = _run(optimizers.scale_by_mfac(1, DAMPING), g)
    exact = g / (DAMPING + np.sum(g**2, axis=1, keepdims=True))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_layerwise_is_block_diagonal(rng, precision):
    gradients = _gradients(rng, precision.dtype)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, layerwise=True)
    found, _ = _run(tx, gradients)
    exact = np.concatenate([_dense(gradients[:, :4]), _dense(gradients[:, 4:])], axis=1)
    assert _error(found, exact) < precision.tolerance(300)
    assert _error(found, _dense(gradients)) > 1e-3


def _recursion(rows, damping):
    """The authors' dynamic algorithm, in double precision."""
    count = len(rows)
    d = np.triu(rows @ rows.T / damping)
    for i in range(count):
        for k in range(i):
            d[i, i:] -= d[k, i] * d[k, i:] / (count + d[k, k])
    b = np.eye(count) / damping
    for i in range(count):
        for j in range(i):
            b[i, j] = -sum(d[k, i] / (count + d[k, k]) * b[k, j] for k in range(j, i))
    vectors = np.tril(b) @ rows
    scales = count + np.diag(d)
    x = rows[-1]
    return x / damping - vectors.T @ (vectors @ x / scales)


def test_the_authors_recursion(rng):
    gradients = _gradients(rng, np.float64)
    exact = _recursion(gradients[-WINDOW:], DAMPING)
    assert _error(_dense(gradients, "window")[-1], exact) < 1e-12


# Single precision ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def single():
    """The last update of a sequence in float32, for any damping."""

    def last(damping, gradients):
        tx = optimizers.scale_by_mfac(WINDOW, damping)
        step = lambda state, g: tx.update(g, state)[::-1]
        return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1][-1]

    compiled = jax.jit(last, compiler_options=QUICK)
    return lambda damping, g: np.asarray(compiled(np.float32(damping), jnp.asarray(g)))


@pytest.mark.parametrize(("ratio", "limit"), [(1, 1e-6), (1e3, 1e-6), (1e6, 1e-5)])
def test_float32_keeps_its_digits(rng, single, ratio, limit):
    """For any size of the gradient, squared, beside the damping."""
    gradients = _apart(rng, [1e3] * WINDOW)
    damping = 1e6 / (WINDOW * ratio)
    exact = _dense(gradients, damping=damping)[-1]
    assert _error(single(damping, gradients), exact) < limit


def _textbook(rows, damping):
    """`(x - R^T K^-1 R x) / damping`, a difference."""
    damping = np.float32(damping)
    gram = len(rows) * damping * np.eye(len(rows), dtype=np.float32) + rows @ rows.T
    return (rows[-1] - rows.T @ np.linalg.solve(gram, rows @ rows[-1])) / damping


def test_the_textbook_form_loses_them(rng):
    gradients = _apart(rng, [1e3] * WINDOW)
    exact = _dense(gradients, damping=0.25)[-1]
    assert _error(_textbook(gradients, 0.25), exact) > 1e-2


def test_gradients_that_become_small(rng, single):
    """As at the end of training: older ones must not drown the newest."""
    gradients = _apart(rng, [1e4, 1e3, 1e2, 1.0])
    damping = 1e-2
    exact = _dense(gradients, damping=damping)[-1]
    assert _error(single(damping, gradients), exact) < 1e-5
    # A damping of the rounding of the largest one is what must not be.
    floor = WINDOW * np.finfo(np.float32).eps * 1e8 / WINDOW
    assert _error(_dense(gradients, damping=floor)[-1], exact) > 0.5


@pytest.mark.parametrize("solver", ["cholesky", "eigh"])
def test_parallel_gradients(solver):
    """Inner products are singular to rounding, and the damping is far below that."""
    g = np.full((STEPS, SIZE), 1e3, np.float32)
    found, _ = _run(optimizers.scale_by_mfac(WINDOW, 1e-6, solver=solver), g)
    np.testing.assert_allclose(found, 1e3 / (SIZE * 1e6), rtol=1e-3)


# Options ------------------------------------------------------------------------------


def test_momentum_and_rate(rng):
    gradients = _gradients(rng, np.float32)
    found, _ = _run(optimizers.mfac(0.5, WINDOW, DAMPING, momentum=0.9), gradients)
    mu, wanted = np.zeros(SIZE), []
    for step in _dense(gradients):
        mu = 0.9 * mu + 0.1 * step
        wanted.append(-0.5 * mu)
    assert _error(found, np.stack(wanted)) < 1e-4


def test_decay_before_and_after_the_window():
    params = {"w": jnp.array([1.0, 2.0])}
    g = {"w": jnp.array([0.5, 0.0])}

    def step(**kwargs):
        tx = optimizers.mfac(1.0, 2, 1.0, **kwargs)
        return tx.update(g, tx.init(params), params)[0]["w"]

    @jax.jit
    def steps():
        return step(), step(weight_decay=0.1), step(coupled_l2=0.1)

    plain, decoupled, coupled = map(np.asarray, steps())
    np.testing.assert_allclose(decoupled, plain - 0.1 * np.array([1.0, 2.0]), rtol=1e-6)
    h = np.array([0.6, 0.2])
    np.testing.assert_allclose(coupled, -h / (1 + h @ h), rtol=1e-6)


def test_rows_of_a_batch(rng, precision):
    """All in at once, and the mean of them is what is preconditioned."""
    batches = rng.normal(size=(3, 3, SIZE)).astype(precision.dtype)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)

    @jax.jit
    def run(trees):
        mean = lambda rows: jax.tree.map(lambda x: jnp.mean(x, axis=0), rows)
        step = lambda state, rows: tx.update(mean(rows), state, rows=rows)[::-1]
        start = tx.init(jax.tree.map(lambda x: x[0, 0], trees))
        state, updates = jax.lax.scan(step, start, trees)
        half = jax.tree.map(lambda x: x / 2, mean(jax.tree.map(lambda x: x[0], trees)))
        clipped, _ = tx.update(half, start, rows=jax.tree.map(lambda x: x[0], trees))
        return state, updates, clipped

    state, found, clipped = run(jax.tree.map(jnp.asarray, _tree(batches)))
    rows = batches.reshape(-1, SIZE).astype(np.float64)
    for t in range(3):
        seen = rows[max(0, 3 * t + 3 - WINDOW) : 3 * t + 3]
        fisher = DAMPING * np.eye(SIZE) + seen.T @ seen / len(seen)
        exact = np.linalg.solve(fisher, rows[3 * t : 3 * t + 3].mean(axis=0))
        assert _error(_flat(found)[t], exact) < precision.tolerance(300)
    assert (int(state.count), int(state.slot)) == (9, 1)
    np.testing.assert_allclose(_flat(clipped), _flat(found)[0] / 2, rtol=1e-4)
    np.testing.assert_array_equal(state.gram, np.asarray(state.gram).T)


def test_too_many_rows():
    tx = optimizers.scale_by_mfac(WINDOW)
    g = jnp.ones(2)
    with pytest.raises(ValueError, match="no longer than the window of 4"):
        tx.update(g, jax.eval_shape(tx.init, g), None, rows=jnp.ones((5, 2)))


def test_under_a_mask(rng):
    """Hidden leaves pass, and rows of them are not looked at."""
    gradients = _gradients(rng, np.float32)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)
    masked = optax.masked(tx, {"m": False, "v": True})

    @jax.jit
    def both(trees):
        g = jax.tree.map(lambda x: x[-1], trees)
        rows = jax.tree.map(lambda x: x[-WINDOW:], trees)
        alone, all_rows = {"v": g["v"]}, {"v": rows["v"]}
        return (
            masked.update(g, masked.init(g), rows=rows)[0],
            tx.update(alone, tx.init(alone), rows=all_rows)[0],
        )

    trees = jax.tree.map(jnp.asarray, _tree(gradients))
    found, alone = both(trees)
    np.testing.assert_array_equal(found["m"], trees["m"][-1])
    np.testing.assert_array_equal(found["v"], alone["v"])


@pytest.mark.parametrize("layerwise", [False, True])
def test_products_taken_anew(rng, layerwise):
    """They are what they were; and a window that was changed is seen."""
    gradients = _gradients(rng, np.float32)
    trees = jax.tree.map(jnp.asarray, _tree(gradients))
    tx = optimizers.scale_by_mfac(
        WINDOW, DAMPING, layerwise=layerwise, recompute_interval=STEPS
    )

    @jax.jit
    def run(trees, wrong):
        start = tx.init(jax.tree.map(lambda x: x[0], trees))
        step = lambda state, g: tx.update(g, state)[::-1]
        before = jax.tree.map(lambda x: x[:-1], trees)
        state, _ = jax.lax.scan(step, start, before)
        state = state._replace(gram=jax.tree.map(lambda x: x + wrong, state.gram))
        return tx.update(jax.tree.map(lambda x: x[-1], trees), state)

    plain, state = run(trees, jnp.asarray(0.0))
    again, _ = run(trees, jnp.asarray(1.0))
    np.testing.assert_array_equal(_flat(plain), _flat(again))
    window = [np.asarray(x).reshape(WINDOW, -1) for x in jax.tree.leaves(state.window)]
    exact = [w @ w.T for w in window]
    grams = jax.tree.leaves(state.gram) if layerwise else [state.gram]
    for found, wanted in zip(grams, exact if layerwise else [sum(exact)], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_complex_leaves_count_as_two_real_ones(rng):
    parts = rng.normal(size=(STEPS, 2, 3)).astype(np.float32)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)

    def run(trees):
        step = lambda state, g: tx.update(g, state)[::-1]
        return jax.lax.scan(step, tx.init(trees[0]), trees)[1]

    run = jax.jit(run, compiler_options=QUICK)
    real = np.asarray(run(jnp.asarray(parts)))
    found = np.asarray(run(jnp.asarray(parts[:, 0] + 1j * parts[:, 1])))
    assert _error(np.stack([found.real, found.imag], axis=1), real) < 1e-4


def test_low_precision_windows(rng):
    gradients = _gradients(rng, np.float32)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, window_dtype=jnp.bfloat16)
    found, state = _run(tx, gradients)
    assert state.window["m"].dtype == jnp.bfloat16
    assert state.gram.dtype == jnp.float32
    assert 1e-6 < _error(found, _dense(gradients)) < 0.1
    half = jax.eval_shape(
        lambda g: tx.update(g, tx.init(g)), jnp.zeros(SIZE, jnp.bfloat16)
    )
    assert half[0].dtype == jnp.bfloat16


def test_a_sharded_window(rng, devices):
    """Rows are split over devices as the parameter is, from the start on."""
    gradients = jnp.asarray(rng.normal(size=(STEPS, 8, 3)).astype(np.float32))
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)
    update = jax.jit(tx.update)
    state, alone = tx.init(gradients[0]), []
    for g in gradients:
        updates, state = update(g, state)
        alone.append(np.asarray(updates))
    for count in (2, 8):
        mesh = jax.sharding.Mesh(devices.devices[:count], ("devices",))
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        spread_gradients = [jax.device_put(g, spread) for g in gradients]
        many = tx.init(spread_gradients[0])
        for g, wanted in zip(spread_gradients, alone, strict=True):
            assert many.window.sharding.shard_shape(many.window.shape) == (
                WINDOW,
                8 // count,
                3,
            )
            updates, many = update(g, many)
            assert _error(np.asarray(updates), wanted) < 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": 0}, "`window` must be in"),
        ({"damping": 0.0}, "`damping` must be in"),
        ({"momentum": 1.5}, "`momentum` must be in"),
        ({"normalize": "sum"}, "`normalize` must be one of 'count', 'window'"),
        ({"solver": "lu"}, "`solver` must be one of"),
        ({"recompute_interval": 0}, "`recompute_interval` must be in"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizers.scale_by_mfac(**kwargs)
