"""Gradient-normalized Newton: every solver is the dense one, every step is safe."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import pathax as px
from pathax.optimizers import gradient_normalized_newton as newton


# Compilation is most of the time of these tests.
_QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=_QUICK)


ROWS, SIZE = 9, 5


def _problem(rng, dtype):
    """Residuals that are not linear, and a starting point."""
    a = jnp.asarray(rng.normal(size=(ROWS, SIZE)), dtype)
    b = jnp.asarray(rng.normal(size=ROWS), dtype)
    x = jnp.asarray(rng.normal(size=SIZE), dtype)
    residuals = lambda x: jnp.tanh(a @ x) - b
    return residuals, x


def _half_mean(residuals):
    return lambda x: jnp.mean(residuals(x) ** 2) / 2


def _spd(rng, size, dtype, low=-1.0, high=1.0):
    """A positive definite matrix with eigenvalues from 10^low to 10^high."""
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return jnp.asarray((q * np.logspace(low, high, size)) @ q.T, dtype)


def _run(tx, f, x, steps, extra=lambda x: {}):
    """Steps as a user writes them, in one compiled loop; all points and states."""

    def one(carry, _):
        x, state = carry
        value, grad = optax.value_and_grad_from_state(f)(x, state=state)
        d, state = tx.update(grad, state, x, value=value, obj_fn=f, **extra(x))
        x = optax.apply_updates(x, d)
        return (x, state), (x, d, state)

    loop = jit(lambda x: jax.lax.scan(one, (x, tx.init(x)), length=steps)[1])
    return loop(x)


def _dense_step(c, g, gamma, metric=None):
    """The definition of a step, in NumPy."""
    c, g = np.asarray(c, np.float64), np.asarray(g, np.float64)
    metric = np.eye(g.size) if metric is None else np.asarray(metric, np.float64)
    norm = np.sqrt(g @ np.linalg.solve(metric, g))
    return -np.linalg.solve(c + norm / gamma * metric, g)


# Solvers ----------------------------------------------------------------------------


def _forms(jacobian, residuals):
    """One curvature in all forms that a user may have it in: solver, curvature."""
    matrix = jacobian.T @ jacobian / ROWS
    return {
        "eigh": ("eigh", matrix),
        "cholesky": ("cholesky", matrix),
        "rows": ("rows", (jacobian, residuals)),
        "rows without residuals": ("rows", (jacobian, None)),
        "rows as a matrix": ("auto", (jacobian, residuals)),
        "products as a matrix": ("auto", lambda v: matrix @ v),
        "operator": ("cholesky", lx.MatrixLinearOperator(matrix)),
        "lanczos": ("lanczos", lambda v: matrix @ v),
    }


def test_all_solvers_take_the_dense_step(rng, precision):
    residuals, x = _problem(rng, precision.dtype)

    @jit
    def steps(x):
        jacobian, r = jax.jacobian(residuals)(x), residuals(x)
        g = jacobian.T @ r / ROWS
        out = {}
        for name, (solver, given) in _forms(jacobian, r).items():
            tx = newton(mode="fixed", gamma0=0.3, solver=solver, krylov_tol=0.0)
            out[name], _ = tx.update(g, tx.init(x), x, curvature=given)
        return jacobian.T @ jacobian / ROWS, g, out

    matrix, g, taken = steps(x)
    expected = _dense_step(matrix, g, 0.3)
    for name, d in taken.items():
        error = np.linalg.norm(d - expected) / np.linalg.norm(expected)
        assert error <= precision.tolerance(500), name


def test_rows_where_subtraction_fails(rng, precision):
    """A gradient in the span of large rows, a tiny shift: Woodbury loses its digits."""
    rows, size, shift = 3, 6, 0.1
    jacobian = jnp.asarray(1e3 * rng.normal(size=(rows, size)), precision.dtype)
    r = jnp.asarray(rng.normal(size=rows), precision.dtype)
    exact = np.asarray(jacobian, np.float64)
    slope = exact.T @ np.asarray(r, np.float64) / rows
    gamma = np.linalg.norm(slope) / shift
    # Even in float64 the dense solve has an error of 1e-9 here, hence in row space.
    gram = exact @ exact.T + rows * shift * np.eye(rows)
    expected = -exact.T @ np.linalg.solve(gram, np.asarray(r, np.float64))
    tx = newton(mode="fixed", gamma0=gamma)
    x = jnp.zeros(size, precision.dtype)

    @jit
    def steps(j, r, g):
        step = lambda given: tx.update(g, tx.init(x), x, curvature=given)[0]
        gram = shift * rows * jnp.eye(rows, dtype=j.dtype) + j @ j.T
        woodbury = -(g - j.T @ jnp.linalg.solve(gram, j @ g)) / shift
        return step((j, r)), step((j, None)), woodbury.astype(g.dtype)

    g = jnp.asarray(slope, precision.dtype)
    error = lambda d: np.linalg.norm(d - expected) / np.linalg.norm(expected)
    with_residuals, without, woodbury = map(error, steps(jacobian, r, g))
    assert with_residuals <= precision.tolerance(2e3)
    assert without <= precision.tolerance(2e3)
    assert woodbury > precision.tolerance(1e5)


def test_rank_one_and_diagonal_are_the_dense_steps(rng, precision):
    g = jnp.asarray(rng.normal(size=SIZE), precision.dtype)
    entries = jnp.asarray(rng.uniform(size=SIZE), precision.dtype)
    x, c = jnp.zeros_like(g), jnp.asarray(0.7, precision.dtype)
    cases = ((c, c * jnp.outer(g, g)), (entries, jnp.diag(entries)))
    tx = newton(mode="fixed", gamma0=0.5)
    for given, matrix in cases:
        d, _ = tx.update(g, tx.init(x), x, curvature=given)
        np.testing.assert_allclose(
            d, _dense_step(matrix, g, 0.5), rtol=precision.tolerance(200)
        )


def test_metrics_are_the_dense_ones(rng, precision):
    dtype = precision.dtype
    jacobian = jnp.asarray(rng.normal(size=(ROWS, SIZE)), dtype)
    r = jnp.asarray(rng.normal(size=ROWS), dtype)
    matrix, g = jacobian.T @ jacobian / ROWS, jacobian.T @ r / ROWS
    weights = jnp.asarray(rng.uniform(0.5, 2, size=SIZE), dtype)
    dense = _spd(rng, SIZE, dtype)
    cases = [
        (weights, jnp.diag(weights), matrix),
        (dense, dense, (jacobian, r)),
        (dense, dense, lambda v: matrix @ v),
        (2.0, 2 * np.eye(SIZE), matrix),
    ]

    @jit
    def steps(g):
        tx = [newton(mode="fixed", gamma0=0.3, metric=m) for m, _, _ in cases]
        return [
            t.update(g, t.init(g), g, curvature=given)[0]
            for t, (_, _, given) in zip(tx, cases, strict=True)
        ]

    for d, (_, full, _) in zip(steps(g), cases, strict=True):
        expected = _dense_step(matrix, g, 0.3, full)
        assert expected @ full @ expected <= 0.3**2
        error = np.linalg.norm(d - expected) / np.linalg.norm(expected)
        assert error <= precision.tolerance(2e3)


def test_lanczos_grows_its_basis_by_need(rng):
    """Three distinct eigenvalues need three products, as long as `C` is tiny or not."""
    called = []

    def product(v):
        jax.debug.callback(lambda: called.append(1))
        return jnp.repeat(jnp.array([0.1, 1.0, 10.0]), 4) * v

    g = jnp.asarray(rng.normal(size=12), jnp.float32)
    tx = newton(mode="fixed", gamma0=100.0, solver="lanczos")
    d, _ = tx.update(g, tx.init(g), g, curvature=product)
    jax.effects_barrier()
    assert 1 <= len(called) <= 3
    shift = float(jnp.linalg.norm(g)) / 100
    matrix = np.repeat([0.1, 1.0, 10.0], 4)
    residual = np.linalg.norm((matrix + shift) * np.asarray(d) + np.asarray(g))
    assert residual <= 0.1 * shift * np.linalg.norm(d) + 1e-5
    called.clear()
    tx = newton(mode="fixed", gamma0=1e-3, solver="lanczos")
    tx.update(g, tx.init(g), g, curvature=product)
    jax.effects_barrier()
    assert len(called) == 1  # the shift is much larger than the curvature


# Search -----------------------------------------------------------------------------


def test_quadratic_with_its_hessian(rng, precision):
    """Steps within the radius, descent, and the acceptance test, at every step."""
    h = _spd(rng, SIZE, precision.dtype)
    f = lambda x: 0.5 * x @ h @ x
    x = jnp.asarray(rng.normal(size=SIZE), precision.dtype)
    points, steps, state = _run(newton(gamma0=0.1), f, x, 8, lambda x: {"curvature": h})
    before = np.concatenate([x[None], points[:-1]])
    radii = np.concatenate([[0.1], state.gamma[:-1]])
    lengths = np.linalg.norm(steps, axis=1)
    assert (lengths <= radii * (1 + precision.tolerance(50))).all()
    f0, f1 = jax.vmap(f)(before), jax.vmap(f)(points)
    assert (f1 < f0).all()
    g0 = np.linalg.norm(before @ np.asarray(h), axis=1)
    g1 = np.linalg.norm(points @ np.asarray(h), axis=1)
    assert (f0 - f1 >= radii * g1**2 / (8 * g0)).all()
    assert int(state.rejected[-1]) == 0
    assert int(state.trials[-1]) == 8
    np.testing.assert_allclose(state.gamma, 0.1 * 2.0 ** np.arange(1, 9), rtol=1e-6)


def test_a_wrong_curvature_is_found_out(rng):
    """A hundredth of the Hessian overshoots, so trials are rejected, and `f` falls."""
    h = _spd(rng, SIZE, jnp.float32)
    f = lambda x: 0.5 * x @ h @ x
    x = jnp.asarray(rng.normal(size=SIZE), jnp.float32)
    extra = lambda x: {"curvature": h / 100}
    points, _, state = _run(newton(gamma0=1e3), f, x, 8, extra)
    assert int(state.rejected[-1]) > 0
    values = jax.vmap(f)(jnp.concatenate([x[None], points]))
    assert (jnp.diff(values) < 0).all()
    # Without the search, the same step goes uphill.
    fixed = newton(mode="fixed", gamma0=1e3)
    d, _ = fixed.update(h @ x, fixed.init(x), x, curvature=h / 100)
    assert f(x + d) > 10 * f(x)


def test_indefinite_curvature_is_rejected_until_positive():
    c = jnp.diag(jnp.array([-1.0, 1.0, 2.0]))
    f = lambda x: jnp.sum(jnp.log1p(x**2))
    x = jnp.array([2.0, -0.3, 0.2])
    g = jax.grad(f)(x)
    solvers = ("eigh", "cholesky", "lanczos")

    @jit
    def steps(x):
        out = []
        for solver in solvers:
            tx = newton(gamma0=1e3, solver=solver)
            out.append(tx.update(g, tx.init(x), x, obj_fn=f, curvature=c))
        return out

    for solver, (d, state) in zip(solvers, steps(x), strict=True):
        accepted = float(jnp.linalg.norm(g)) / (float(state.gamma) / 2)
        assert bool(jnp.isfinite(d).all())
        assert float(d @ g) < 0
        assert accepted > 1
        assert int(state.rejected) == int(state.trials) - 1 >= 1
        if solver != "lanczos":
            expected = -np.linalg.solve(np.asarray(c) + accepted * np.eye(3), g)
            np.testing.assert_allclose(d, expected, rtol=1e-4)


def test_curvature_is_evaluated_once_a_step():
    """However many trials there are; each of them is one value and gradient."""
    curvature, values = [], []

    def count(calls, x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    f = lambda x: count(values, jnp.sum(jnp.cosh(x)))
    tx = newton(lambda x: count(curvature, jnp.eye(2) / 100), gamma0=1e3)
    x = jnp.array([1.0, 2.0])
    step = jit(lambda x, s: tx.update(jnp.sinh(x), s, x, obj_fn=f))
    _, state = step(x, tx.init(x))
    jax.effects_barrier()
    assert int(state.trials) > 3
    assert len(curvature) == 1
    assert len(values) == int(state.trials) + 1


def test_failed_searches_leave_the_point_and_shrink_the_radius():
    x, g = jnp.ones(3), jnp.ones(3)
    tx = newton(max_trials=4)
    nan = lambda p: jnp.sum(p) * jnp.nan
    d, state = tx.update(
        g, tx.init(x), x, value=jnp.array(1.0), obj_fn=nan, curvature=jnp.eye(3)
    )
    np.testing.assert_array_equal(d, 0)
    assert float(state.gamma) == 2.0**-4
    assert (int(state.trials), int(state.rejected)) == (4, 4)
    assert float(state.value) == 1.0
    np.testing.assert_array_equal(state.grad, g)


def test_zero_gradient_makes_no_step_and_no_trial():
    x = jnp.zeros(3)
    f = lambda p: jnp.sum(p**2)
    for tx in (newton(), newton(mode="power", constant=1.0), newton(mode="fixed")):
        d, state = tx.update(x, tx.init(x), x, obj_fn=f, curvature=jnp.zeros((3, 3)))
        np.testing.assert_array_equal(d, 0)
        assert int(state.trials) == 0
        assert bool(jnp.isfinite(state.gamma))


def test_stored_value_and_gradient_change_nothing(rng, precision):
    residuals, x = _problem(rng, precision.dtype)
    f = _half_mean(residuals)
    tx = newton(curvature="ggn")
    stored, _, state = _run(tx, f, x, 5, lambda x: {"residual_fn": residuals})

    def one(carry, _):
        x, state = carry
        d, state = tx.update(
            jax.grad(f)(x), state, x, value_fn=f, residual_fn=residuals
        )
        return (x + d, state), x + d

    _, fresh = jit(lambda x: jax.lax.scan(one, (x, tx.init(x)), length=5))(x)
    np.testing.assert_allclose(stored, fresh, rtol=precision.tolerance(500))
    np.testing.assert_allclose(
        state.value[-1], f(stored[-1]), rtol=precision.tolerance(20)
    )


def test_stops_at_the_rounding_of_a_minimum(rng, precision):
    """The gradient falls to rounding, then all stands still: no trial is spent."""
    a = jnp.asarray(rng.normal(size=(ROWS, SIZE)), precision.dtype)
    x = jnp.asarray(rng.normal(size=SIZE), precision.dtype)
    # The constant hides small decreases.
    f = lambda x: 100 + jnp.mean(jax.nn.softplus(a @ x)) + jnp.sum(x**2) / 8
    points, steps, state = _run(newton(curvature="hessian"), f, x, 25)
    slopes = jnp.linalg.norm(jax.vmap(jax.grad(f))(points[-3:]), axis=1)
    assert float(slopes.max()) <= precision.tolerance(50)
    assert not np.asarray(steps[-3:]).any()
    trials = np.diff(np.asarray(state.trials))
    assert (trials[-3:] <= 1).all()
    # By the value alone, the search would have ended far before: a decrease that is
    # seen leaves about sqrt(eps |f|).
    assert float(slopes.max()) < 1e-2 * np.sqrt(100 * precision.eps)


# Fixed rules ------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_power_rule(rng, power, precision):
    h = _spd(rng, SIZE, precision.dtype)
    g = jnp.asarray(rng.normal(size=SIZE), precision.dtype)
    lipschitz = 3.0
    tx = newton(mode="power", power=power, constant=(lipschitz / 2) ** 0.5)
    d, state = tx.update(g, tx.init(g), g, curvature=h)
    norm = np.linalg.norm(np.asarray(g, np.float64))
    shift = np.sqrt(lipschitz / 2) * norm ** (1 - power)
    if power == 0.5:
        assert shift == pytest.approx(np.sqrt(lipschitz * norm / 2))
    expected = _dense_step(h, g, norm / shift)
    np.testing.assert_allclose(
        d, expected, rtol=precision.tolerance(500), atol=precision.tolerance(100)
    )
    assert not np.isfinite(state.value)  # nothing was evaluated


def test_smoothing_is_a_running_mean_of_the_radius():
    g = jnp.array([4.0])
    tx = newton(mode="power", power=1.0, constant=1.0, smoothing=0.75)
    state = tx.init(g)
    _, state = tx.update(g, state, g, curvature=jnp.zeros((1, 1)))
    assert float(state.gamma) == 4.0
    _, state = tx.update(g / 4, state, g, curvature=jnp.zeros((1, 1)))
    assert float(state.gamma) == 0.75 * 4 + 0.25 * 1


# Curvature by name ------------------------------------------------------------------


def test_named_curvature_is_the_dense_one(rng, precision):
    """Hessian, Gauss-Newton of a likelihood and of residuals, Fisher of rows."""
    dtype = precision.dtype
    inputs = jnp.asarray(rng.normal(size=(4, 2)), dtype)
    labels = jnp.asarray([0, 1, 2, 0])
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    start = {"b": rng.normal(size=3), "w": rng.normal(size=(2, 3))}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), start)
    flat, back = jax.flatten_util.ravel_pytree(params)
    predict = lambda p: jnp.tanh(inputs @ p["w"] + p["b"][None, :])
    losses = lambda p: cross_entropy(predict(p), labels)
    loss = lambda p: jnp.mean(losses(p))
    residuals = lambda p: predict(p).reshape(-1)

    def matrices(x):
        rows = jax.jacobian(lambda x: losses(back(x)))(x)
        j = jax.jacfwd(lambda x: predict(back(x)))(x)
        p = jax.nn.softmax(predict(back(x)))
        h = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
        return {
            "hessian": jax.hessian(lambda x: loss(back(x)))(x),
            "ggn": jnp.einsum("bip,bij,bjq->pq", j, h, j) / 4,
            "fisher": rows.T @ rows / 4,
            "residuals": jnp.einsum("bip,biq->pq", j, j) / 12,
        }, back(jnp.einsum("bip,bi->p", j, predict(back(x))) / 12)

    def steps(params, slope):
        example = lambda p, row: cross_entropy(
            jnp.tanh(row[0] @ p["w"] + p["b"]), row[1]
        )
        rows = px.curvature.empirical_fisher_rows(example, params, (inputs, labels))
        out = {}
        for name, extra in {
            "hessian": {"obj_fn": loss},
            "ggn": {"predict_fn": predict},
            "fisher": {"rows": rows},
            "residuals": {"residual_fn": residuals},
        }.items():
            kind = "ggn" if name == "residuals" else name
            tx = newton(mode="fixed", curvature=kind, gamma0=0.05)
            out[name], _ = tx.update(slope, tx.init(params), params, **extra)
        return out

    dense, slope = jit(matrices)(flat)
    flat_slope, _ = jax.flatten_util.ravel_pytree(slope)
    for name, d in jit(steps)(params, slope).items():
        expected = _dense_step(dense[name], flat_slope, 0.05)
        got, _ = jax.flatten_util.ravel_pytree(d)
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error <= precision.tolerance(500), name


def test_complex_parameters_are_their_real_coordinates(rng, precision):
    """A complex least-squares problem takes the steps of the real one."""
    dtype = precision.dtype
    a = jnp.asarray(rng.normal(size=(4, 3)), dtype)
    b = jnp.asarray(rng.normal(size=(4, 2)), dtype)
    kind = "complex64" if dtype == "float32" else "complex128"
    target = jax.lax.complex(b[:, 0], b[:, 1])
    residual = lambda z: a.astype(kind) @ (z + 0.1 * z * z) - target
    f = lambda z: jnp.sum(jnp.abs(residual(z)) ** 2) / 16  # 8 real residuals

    def real_residual(x):
        r = residual(jax.lax.complex(x[:, 0], x[:, 1]))
        return jnp.stack([r.real, r.imag], axis=-1)

    real_f = lambda x: jnp.sum(real_residual(x) ** 2) / 16
    tx = newton(curvature="ggn")
    x = jnp.asarray(rng.normal(size=(3, 2)), dtype)
    z = jax.lax.complex(x[:, 0], x[:, 1])

    @jit
    def both(z, x):
        g = jnp.conj(jax.grad(f)(z))
        dz, _ = tx.update(g, tx.init(z), z, obj_fn=f, residual_fn=residual)
        dx, _ = tx.update(
            jax.grad(real_f)(x), tx.init(x), x, obj_fn=real_f, residual_fn=real_residual
        )
        return dz, dx, f(z), f(z + dz)

    dz, dx, before, after = both(z, x)
    np.testing.assert_allclose(
        np.stack([dz.real, dz.imag], -1), dx, rtol=precision.tolerance(1e3)
    )
    assert after < before


# Misuse -----------------------------------------------------------------------------


def test_what_is_missing_is_named():
    x = jnp.ones(2)
    f = lambda x: jnp.sum(x**2)
    for tx, extra, name in (
        (newton(), {}, "obj_fn"),
        (newton(), {"obj_fn": f}, "curvature"),
        (newton(curvature="ggn"), {"obj_fn": f}, "predict_fn"),
        (newton(curvature="fisher"), {"obj_fn": f}, "rows"),
    ):
        with pytest.raises(px.optimizers.MissingExtraError) as error:
            tx.update(x, tx.init(x), x, **extra)
        assert error.value.name == name
    with pytest.raises(ValueError, match="needs the parameters"):
        newton().update(x, newton().init(x))


def test_misuse_says_what_to_write():
    x = jnp.ones(2)
    update = lambda tx, c: tx.update(x, tx.init(x), x, obj_fn=jnp.sum, curvature=c)
    with pytest.raises(ValueError, match="solver='auto'"):
        update(newton(solver="rank_one"), jnp.eye(2))
    with pytest.raises(TypeError, match=r"\(2, 2\) array"):
        update(newton(), jnp.eye(3))
    with pytest.raises(ValueError, match="one residual a row"):
        update(newton(), (jnp.ones((3, 2)), jnp.ones(4)))
    with pytest.raises(ValueError, match="`mode` must be one of"):
        newton(mode="trust")
    with pytest.raises(ValueError, match="constant"):
        newton(mode="power")
