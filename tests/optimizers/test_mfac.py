"""M-FAC against dense linear algebra and against the authors' recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathax import optimizers


SIZE, WINDOW, DAMPING, STEPS = 7, 4, 0.2, 9


def _gradients(rng, dtype, scale=1.0):
    return (scale * rng.normal(size=(STEPS, SIZE))).astype(dtype)


def _tree(flat):
    """The vector as a tree of a matrix, a vector and a number."""
    return {"m": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "v": flat[..., 4:]}


def _flat(tree):
    m = np.asarray(tree["m"])
    parts = [m.reshape(*m.shape[:-2], -1), np.asarray(tree["v"])]
    return np.concatenate(parts, axis=-1)


def _run(tx, gradients, **extra):
    """Updates of a sequence of gradients, in one compiled scan."""
    trees = jax.tree.map(jnp.asarray, _tree(gradients))

    @jax.jit
    def run(trees):
        start = tx.init(jax.tree.map(lambda x: x[0], trees))
        step = lambda state, g: tx.update(g, state, None, **extra)[::-1]
        return jax.lax.scan(step, start, trees)

    state, updates = run(trees)
    return _flat(updates), state


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


@pytest.mark.parametrize("normalize", ["count", "window"])
@pytest.mark.parametrize("solver", ["cholesky", "eigh"])
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


def test_one_gradient_alone(rng):
    g = _gradients(rng, np.float32)[:1]
    found, _ = _run(optimizers.scale_by_mfac(WINDOW, DAMPING), g)
    np.testing.assert_allclose(found, g / (DAMPING + np.sum(g**2)), rtol=1e-5)


def test_layerwise_is_block_diagonal(rng, precision):
    gradients = _gradients(rng, precision.dtype)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, layerwise=True)
    found, _ = _run(tx, gradients)
    exact = np.concatenate([_dense(gradients[:, :4]), _dense(gradients[:, 4:])], axis=1)
    assert _error(found, exact) < precision.tolerance(300)
    assert _error(found, _dense(gradients)) > 1e-3


def test_float32_keeps_its_digits(rng):
    """For gradients a thousand times larger than the damping, squared."""
    gradients = _gradients(rng, np.float32, 1e3)
    damping = float(np.sum(gradients[-1] ** 2)) / (WINDOW * 1e6)
    found, _ = _run(optimizers.scale_by_mfac(WINDOW, damping), gradients)
    exact = _dense(gradients, damping=damping)
    assert _error(found[-1], exact[-1]) < 1e-5
    rows = gradients[-WINDOW:]
    gram = np.float32(WINDOW * damping) * np.eye(WINDOW, dtype=np.float32)
    gram += rows @ rows.T
    x = rows[-1]
    naive = (x - rows.T @ np.linalg.solve(gram, rows @ x)) / np.float32(damping)
    assert _error(naive, exact[-1]) > 1e-2  # what the usual formula leaves


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


def test_the_authors_recursion(rng, precision):
    gradients = _gradients(rng, precision.dtype)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, normalize="window")
    found, _ = _run(tx, gradients)
    exact = _recursion(gradients[-WINDOW:].astype(np.float64), DAMPING)
    assert _error(found[-1], exact) < precision.tolerance(300)


def test_momentum_and_rate(rng):
    gradients = _gradients(rng, np.float32)
    plain, _ = _run(optimizers.scale_by_mfac(WINDOW, DAMPING), gradients)
    tx = optimizers.mfac(0.5, WINDOW, DAMPING, momentum=0.9)
    found, _ = _run(tx, gradients)
    mu, wanted = np.zeros(SIZE), []
    for step in plain:
        mu = 0.9 * mu + 0.1 * step
        wanted.append(-0.5 * mu)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_decay_before_and_after_the_window():
    params = {"w": jnp.array([1.0, 2.0])}
    g = {"w": jnp.array([0.5, 0.0])}

    def step(**kwargs):
        tx = optimizers.mfac(1.0, 2, 1.0, **kwargs)
        return np.asarray(tx.update(g, tx.init(params), params)[0]["w"])

    plain, decoupled, coupled = step(), step(weight_decay=0.1), step(coupled_l2=0.1)
    np.testing.assert_allclose(decoupled, plain - 0.1 * np.array([1.0, 2.0]), rtol=1e-6)
    h = np.array([0.6, 0.2])
    np.testing.assert_allclose(coupled, -h / (1 + h @ h), rtol=1e-6)


def test_rows_of_a_batch(rng, precision):
    """All in at once, and the mean of them is what is preconditioned."""
    rows = rng.normal(size=(3, SIZE)).astype(precision.dtype)
    mean = rows.mean(axis=0)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)
    trees = jax.tree.map(jnp.asarray, (_tree(mean), _tree(rows)))
    update = jax.jit(lambda g, r: tx.update(g, tx.init(g), None, rows=r))
    found, state = update(*trees)
    wide = rows.astype(np.float64)
    fisher = DAMPING * np.eye(SIZE) + wide.T @ wide / len(wide)
    exact = np.linalg.solve(fisher, wide.mean(axis=0))
    assert _error(_flat(found), exact) < precision.tolerance(300)
    assert (int(state.count), int(state.slot)) == (3, 3)
    clipped, _ = update(jax.tree.map(lambda x: x / 2, trees[0]), trees[1])
    np.testing.assert_allclose(_flat(clipped), _flat(found) / 2, rtol=1e-4)
    with pytest.raises(ValueError, match="no longer than the window of 4"):
        tx.update(trees[0], state, None, rows=_tree(jnp.ones((5, SIZE))))


def test_products_taken_anew_are_the_same(rng):
    gradients = _gradients(rng, np.float32)
    for layerwise in (False, True):
        found, _ = _run(
            optimizers.scale_by_mfac(WINDOW, layerwise=layerwise), gradients
        )
        anew, _ = _run(
            optimizers.scale_by_mfac(WINDOW, layerwise=layerwise, recompute_interval=2),
            gradients,
        )
        np.testing.assert_allclose(found, anew, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("solver", "limit"), [("eigh", 1e-3), ("cholesky", 3.0)])
def test_parallel_gradients_do_not_break_it(solver, limit):
    """Inner products are then singular to rounding, and the damping is below that."""
    g = np.ones((STEPS, SIZE), np.float32) * np.float32(1e3)
    tx = optimizers.scale_by_mfac(WINDOW, 1e-6, solver=solver)
    found, _ = _run(tx, g)
    exact = 1e3 / (SIZE * 1e6)
    assert np.abs(found / exact - 1).max() < limit


def test_complex_leaves_count_as_two_real_ones(rng):
    parts = rng.normal(size=(STEPS, 2, 3)).astype(np.float32)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)

    def run(trees):
        step = lambda state, g: tx.update(g, state)[::-1]
        return jax.lax.scan(step, tx.init(jax.tree.map(lambda x: x[0], trees)), trees)[
            1
        ]

    real = jax.jit(run)(jnp.asarray(parts))
    found = jax.jit(run)(jnp.asarray(parts[:, 0] + 1j * parts[:, 1]))
    np.testing.assert_allclose(jnp.real(found), real[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jnp.imag(found), real[:, 1], rtol=1e-4, atol=1e-6)


def test_low_precision_windows(rng):
    gradients = _gradients(rng, np.float32)
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING, window_dtype=jnp.bfloat16)
    found, state = _run(tx, gradients)
    assert state.window["m"].dtype == jnp.bfloat16
    assert state.gram.dtype == jnp.float32
    assert 1e-6 < _error(found, _dense(gradients)) < 0.05
    half, _ = _run(optimizers.scale_by_mfac(WINDOW), gradients.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("count", [2, 8])
def test_a_sharded_window(rng, devices, count):
    """Rows split over devices along a parameter's axis, as the parameter is."""
    mesh = jax.sharding.Mesh(devices.devices[:count], ("devices",))
    spec = jax.sharding.PartitionSpec
    gradients = jnp.asarray(rng.normal(size=(STEPS, 8, 3)).astype(np.float32))
    tx = optimizers.scale_by_mfac(WINDOW, DAMPING)
    put = lambda x, s: jax.device_put(x, jax.sharding.NamedSharding(mesh, s))
    update = jax.jit(tx.update)
    one, many = tx.init(gradients[0]), tx.init(gradients[0])
    many = many._replace(window=put(many.window, spec(None, "devices")))
    for g in gradients:
        alone, one = update(g, one)
        spread, many = update(put(g, spec("devices")), many)
        np.testing.assert_allclose(alone, spread, rtol=1e-4, atol=1e-6)
    assert len(many.window.sharding.device_set) == count


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
