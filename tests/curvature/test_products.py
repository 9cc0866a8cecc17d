"""Products with curvature matrices against the matrices themselves."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

from pathax import curvature


MODES = ("fwd_over_rev", "rev_over_rev", "finite_diff", "forward_diff")


def _params(rng, dtype):
    return {
        "w": jnp.asarray(rng.normal(size=(3, 4)), dtype),
        "b": jnp.asarray(rng.normal(size=(4,)), dtype),
        "absent": None,
    }


def _flat(tree) -> np.ndarray:
    """Real coordinates of a tree in one vector, in double precision."""
    parts = []
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        pair = [leaf.real, leaf.imag] if np.iscomplexobj(leaf) else [leaf]
        parts.append(np.stack(pair, axis=-1).ravel())
    return np.concatenate(parts).astype(np.float64)


def _tree_of(vector, like):
    """The tree with these real coordinates."""
    leaves, start = [], 0
    for leaf in jax.tree.leaves(like):
        width = 2 if jnp.iscomplexobj(leaf) else 1
        part = vector[start : start + width * leaf.size].reshape(*leaf.shape, width)
        start += width * leaf.size
        number = part[..., 0] if width == 1 else part[..., 0] + 1j * part[..., 1]
        leaves.append(jnp.asarray(number, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _columns(product, like) -> np.ndarray:
    """The matrix behind a product."""
    size = len(_flat(like))
    product = jax.jit(product)
    return np.stack([_flat(product(_tree_of(e, like))) for e in np.eye(size)], axis=1)


def _close(a, b, tolerance):
    assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


# Hessian ----------------------------------------------------------------------------


def test_hessian_products_in_every_mode(precision, rng):
    params = _params(rng, precision.dtype)
    x = jnp.asarray(rng.normal(size=(5, 3)), precision.dtype)
    loss = lambda p: jnp.mean(jnp.tanh(x @ p["w"] + p["b"][None, :]) ** 3)
    like = jax.eval_shape(lambda: params)
    flat = lambda v: loss(_from_vector(v, like))
    dense = jax.jit(jax.hessian(flat))(_vector(params))
    exact = precision.tolerance(100)
    limits = {"fwd_over_rev": exact, "rev_over_rev": exact}
    limits["finite_diff"] = 1e-5 if precision.eps < 1e-10 else 3e-2
    limits["forward_diff"] = 100 * precision.eps**0.5
    for mode in MODES:
        product = lambda v, mode=mode: _vector(
            curvature.hvp(loss, params, mode)(_from_vector(v, like))
        )
        matrix = jax.jit(jax.vmap(product))(jnp.eye(16, dtype=precision.dtype))
        _close(np.asarray(matrix), np.asarray(dense), limits[mode])


def _vector(params):
    """The tree of `_params` as one vector, in any transformation."""
    return jnp.concatenate([params["b"], params["w"].ravel()])


def _from_vector(v, like):
    return {"b": v[:4], "w": v[4:].reshape(like["w"].shape), "absent": None}


def test_central_differences_beat_one_sided_ones(rng):
    """The mode would fail its tolerance with the simpler formula."""
    with jax.enable_x64(True):
        x, v = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
        loss = lambda x: jnp.sum(jnp.exp(x) + x**5)
        exact = (jnp.exp(x) + 20 * x**3) * v
        h = 6e-6 * (1 + jnp.linalg.norm(x)) / jnp.linalg.norm(v)
        gradient = jax.grad(loss)
        one_sided = (gradient(x + h * v) - gradient(x)) / h
        central = curvature.hvp(loss, x, "finite_diff")(v)
        scale = jnp.max(jnp.abs(exact))
        assert jnp.max(jnp.abs(central - exact)) < 1e-8 * scale
        assert jnp.max(jnp.abs(one_sided - exact)) > 1e-7 * scale


def test_finite_differences_of_the_zero_vector_are_zero():
    product = curvature.hvp(lambda x: jnp.sum(x**4), jnp.ones(2), "finite_diff")
    np.testing.assert_array_equal(product(jnp.zeros(2)), 0)


@pytest.mark.parametrize("mode", MODES)
def test_complex_leaves_are_two_real_ones(mode, rng):
    """|z|^4 and Re z^3, whose Hessian in (x, y) is known."""
    with jax.enable_x64(True):
        z = jnp.asarray(0.6 - 0.8j)
        loss = lambda p: jnp.real(p["z"] ** 3) + p["a"] * jnp.real(p["z"] * 1j)
        params = {"a": jnp.asarray(2.0), "z": z}
        matrix = _columns(curvature.hvp(loss, params, mode), params)
        x, y = 0.6, -0.8
        expected = np.array([[0, 0, -1], [0, 6 * x, -6 * y], [-1, -6 * y, -6 * x]])
        atol = 1e-6 if mode == "forward_diff" else 1e-9
        np.testing.assert_allclose(matrix, expected, atol=atol)


def test_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="no mode 'forward'"):
        curvature.hvp(jnp.sum, jnp.ones(2), "forward")


# Differential equations -------------------------------------------------------------


def _solve(adjoint, solver):
    def predict(rate):
        term = diffrax.ODETerm(lambda t, y, rate: -rate * y)
        solution = diffrax.diffeqsolve(
            term,
            solver,
            0.0,
            1.0,
            0.25,
            jnp.ones(2, rate.dtype),
            args=rate,
            adjoint=adjoint,
            max_steps=16,
        )
        return solution.ys[0]

    return predict


@pytest.mark.parametrize("mode", ["fwd_over_rev", "rev_over_rev"])
def test_adjoints_without_second_derivatives_say_what_to_write(mode, key):
    """By the product in one mode, by the estimate that uses it in the other."""
    predict = _solve(diffrax.RecursiveCheckpointAdjoint(), diffrax.Heun())
    loss, rate = lambda rate: jnp.sum(predict(rate) ** 2), jnp.ones(2)
    if mode == "fwd_over_rev":
        run = lambda: curvature.hutchinson_diagonal(loss, rate, key)
    else:
        run = lambda: curvature.hvp(loss, rate, mode)(rate)
    with pytest.raises(TypeError, match=r"DirectAdjoint\(\).*finite_diff.*sophia_g"):
        run()


def test_gauss_newton_through_such_an_adjoint_says_so_too():
    predict = _solve(diffrax.RecursiveCheckpointAdjoint(), diffrax.Heun())
    with pytest.raises(TypeError, match=r"forward mode.*DirectAdjoint\(\)"):
        curvature.ggn_mvp(predict, jnp.ones(2), "gaussian")(jnp.ones(2))


def test_other_errors_pass_through():
    def broken(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        curvature.hvp(broken, jnp.ones(2))


def test_differences_of_gradients_through_a_checkpointing_adjoint():
    """They agree with exact products through `DirectAdjoint`."""
    with jax.enable_x64(True):
        rate, v = jnp.asarray([0.5, 1.5]), jnp.asarray([1.0, -2.0])

        def product(adjoint, mode):
            predict = _solve(adjoint, diffrax.Euler())
            loss = lambda rate: jnp.sum(predict(rate) ** 2)
            return jax.jit(curvature.hvp(loss, rate, mode))(v)

        exact = product(diffrax.DirectAdjoint(), "fwd_over_rev")
        recursive = diffrax.RecursiveCheckpointAdjoint()
        np.testing.assert_allclose(product(recursive, "finite_diff"), exact, rtol=1e-7)
        # Four Euler steps of size 1/4: y = (1 - rate / 4)^4.
        known = 8 * 7 / 16 * (1 - rate / 4) ** 6 * v
        np.testing.assert_allclose(exact, known, rtol=1e-12)


# Gauss-Newton -----------------------------------------------------------------------


def _log_softmax_loss(outputs, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[..., None], -1)
    return -picked[..., 0]


LOSSES = {
    "categorical": lambda f: _log_softmax_loss(f, jnp.ones(f.shape[:-1], jnp.int32)),
    "bernoulli": lambda f: optax.sigmoid_binary_cross_entropy(f, jnp.ones_like(f)),
    "gaussian": lambda f: jnp.sum((f - 1) ** 2, axis=-1) / 2,
}


def _gauss_newton(predict, params, loss) -> np.ndarray:
    """`J^T H J` from dense Jacobian and Hessian of the mean loss."""
    flat = lambda v: predict(_from_vector(v, params)).ravel()
    outputs = predict(params)
    jacobian = np.asarray(jax.jit(jax.jacobian(flat))(_vector(params)))
    mean = lambda f: loss(f.reshape(outputs.shape))
    hessian = np.asarray(jax.jit(jax.hessian(mean))(outputs.ravel()))
    return jacobian.T @ hessian @ jacobian


@pytest.mark.parametrize("likelihood", LOSSES)
def test_gauss_newton_products(likelihood, precision, rng):
    """Batch and sequence axes; the named likelihood, its loss, a mask and a count."""
    params = _params(rng, precision.dtype)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)), precision.dtype)
    predict = lambda p: jnp.tanh(x @ p["w"]) + p["b"][None, None, :]
    losses = LOSSES[likelihood]
    rows = jax.eval_shape(losses, predict(params)).shape
    mask = jnp.asarray(rng.integers(0, 2, rows), precision.dtype).at[0, 0].set(1)
    mask = mask.at[1, 1].set(0)

    def products(v):
        v = _from_vector(v, params)
        make = lambda *args, **kw: _vector(
            curvature.ggn_mvp(predict, params, *args, **kw)(v)
        )
        return (
            make(likelihood),
            make(lambda f: jnp.mean(losses(f))),
            make(likelihood, mask=mask),
            make(likelihood, count=3),
        )

    found = jax.jit(jax.vmap(products))(jnp.eye(16, dtype=precision.dtype))
    named, given, masked, counted = map(np.asarray, found)
    mean = _gauss_newton(predict, params, lambda f: jnp.mean(losses(f)))
    masked_mean = lambda f: jnp.sum(mask * losses(f)) / jnp.sum(mask)
    tolerance = precision.tolerance(100)
    _close(named, mean, tolerance)
    _close(given, mean, tolerance)
    _close(masked, _gauss_newton(predict, params, masked_mean), tolerance)
    _close(counted, mean * np.prod(rows) / 3, tolerance)
    assert np.max(np.abs(masked - named)) > 1e-3 * np.max(np.abs(mean))
    assert np.linalg.eigvalsh(named.astype(np.float64)).min() > -1e-5


def test_scalar_outputs_are_a_batch_of_their_own():
    """Gaussian outputs with one axis: the mean over the batch, not a sum."""
    x = jnp.asarray([1.0, 3.0])
    product = curvature.ggn_mvp(lambda w: x * w, jnp.asarray(1.0), "gaussian")
    assert float(product(jnp.asarray(1.0))) == 5.0


def test_complex_parameters_and_outputs(rng):
    """`f = A z` for complex z: in real coordinates, twice the real form of A^H A."""
    with jax.enable_x64(True):
        a = jnp.asarray(rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)))
        z = jnp.asarray(rng.normal(size=2) + 1j * rng.normal(size=2))
        out_loss = lambda f: jnp.sum(jnp.real(f) ** 2 + jnp.imag(f) ** 2)
        matrix = _columns(curvature.ggn_mvp(lambda z: a @ z, z, out_loss), z)
        gram = np.asarray(2 * jnp.conj(a).T @ a)
        pairs = [[gram.real, -gram.imag], [gram.imag, gram.real]]
        expected = np.transpose(np.array(pairs), (2, 0, 3, 1)).reshape(4, 4)
        np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_what_a_likelihood_cannot_do_is_an_error():
    x = jnp.ones((2, 3))
    predict = lambda w: x * w
    w = jnp.asarray(1.0)
    with pytest.raises(ValueError, match="no likelihood 'poisson'"):
        curvature.ggn_mvp(predict, w, "poisson")
    bare = curvature.Likelihood(lambda key, f: f, lambda f, y: (f - y) ** 2)
    with pytest.raises(ValueError, match="hessian=lambda"):
        curvature.ggn_mvp(predict, w, bare)
    with pytest.raises(ValueError, match=r"shape \(2,\); got \(3,\)"):
        curvature.ggn_mvp(predict, w, "gaussian", mask=jnp.ones(3))
    with pytest.raises(ValueError, match="takes its mean itself"):
        curvature.ggn_mvp(predict, w, jnp.sum, count=3)
    with pytest.raises(TypeError, match="one real floating-point array"):
        curvature.ggn_mvp(lambda w: (w, w), w, "gaussian")


# Fisher and operators ---------------------------------------------------------------


def test_fisher_products(precision, rng):
    dtype = precision.dtype
    complex_dtype = jnp.complex64 if dtype == np.float32 else jnp.complex128
    z = rng.normal(size=(5, 2)) + 1j * rng.normal(size=(5, 2))
    rows = {
        "a": jnp.asarray(rng.normal(size=(5, 3, 2)), dtype),
        "z": jnp.asarray(z, complex_dtype),
    }
    like = jax.tree.map(lambda r: r[0], rows)
    g = np.stack([_flat(jax.tree.map(lambda r, i=i: r[i], rows)) for i in range(5)])
    matrix = _columns(curvature.fisher_mvp(rows), like)
    _close(matrix, g.T @ g / 5, precision.tolerance(20))
    halved = _columns(curvature.fisher_mvp(rows, count=10), like)
    _close(halved, g.T @ g / 10, precision.tolerance(20))


def test_fisher_products_add_up_half_precision_in_single():
    rows = jnp.ones((4096, 2), jnp.bfloat16)
    out = curvature.fisher_mvp(rows)(jnp.ones(2, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 2)


def test_operators_solve_and_carry_tags(rng):
    with jax.enable_x64(True):
        z = jnp.asarray([0.5 + 1j, -1.0 + 0.2j])
        params = {"x": jnp.asarray(rng.normal(size=3)), "z": z, "absent": None}
        loss = lambda p: (
            jnp.sum(p["x"] ** 4 + p["x"] ** 2) + jnp.sum(jnp.abs(p["z"]) ** 4)
        )
        product = curvature.hvp(loss, params)
        operator = curvature.as_operator(product, params, positive_semidefinite=True)
        assert lx.is_symmetric(operator)
        assert lx.is_positive_semidefinite(operator)
        assert not lx.is_positive_semidefinite(curvature.as_operator(product, params))
        real = {"x": params["x"], "z": jnp.stack([z.real, z.imag], -1), "absent": None}
        image = eqx.filter_jit(operator.mv)(real)
        solver = lx.CG(rtol=1e-12, atol=1e-12)
        solution = jax.jit(lambda b: lx.linear_solve(operator, b, solver).value)(image)
        np.testing.assert_allclose(_flat(solution), _flat(real), rtol=1e-9)
