"""Bad input is refused with what to write instead, at the earliest possible moment."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


Tree = px.brownian.VirtualBrownianTree


def _make(
    key, *, t0=0.0, t1: object = 1.0, tol: object = 2.0**-10, shape=(2,), **kwargs
):
    return Tree(t0, t1, tol, shape, key, **kwargs)


pytestmark = pytest.mark.usefixtures("unchecked")


# Construction -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tol", "message"),
    [
        (0.0, "`tol` must be positive and finite; got 0.0"),
        (-1e-3, "`tol` must be positive and finite; got -0.001"),
        (float("nan"), "`tol` must be positive and finite; got nan"),
        (float("inf"), "`tol` must be positive and finite; got inf"),
        (1.5, r"at most the length of the interval, 1.0; got 1.5. Write `tol=1.0`"),
        (1e-9, r"at least 1.19e-07, the spacing of float32 times .*`tol=1.19209e-07`"),
    ],
)
def test_bad_tolerances(tol, message, key):
    with pytest.raises(ValueError, match=message):
        _make(key, tol=tol)


def test_smallest_tolerance_is_the_one_that_the_message_names(key, precision):
    smallest = precision.eps
    with pytest.raises(ValueError, match="tol=None"):
        _make(key, tol=smallest / 2)
    assert _make(key, tol=smallest).depth == np.finfo(precision.dtype).nmant
    # Far from zero times are coarser.
    with pytest.raises(ValueError, match="must be at least"):
        _make(key, t0=1000.0, t1=1001.0, tol=smallest)


@pytest.mark.parametrize(
    ("t0", "t1", "message"),
    [
        (1.0, 1.0, "`t0` must be strictly less than `t1`; got 1.0, 1.0"),
        (1.0, 0.0, "`t0` must be strictly less than `t1`; got 1.0, 0.0"),
        (0.0, float("inf"), "must be finite; got 0.0 and inf. Write `t1=None`"),
        (float("nan"), 1.0, "must be finite; got nan"),
        (float("-inf"), 1.0, "must be finite; got -inf"),
    ],
)
def test_bad_ends(t0, t1, message, key):
    with pytest.raises(ValueError, match=message):
        _make(key, t0=t0, t1=t1)


def test_bad_start_of_an_endless_tree(key):
    for start in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be finite"):
            _make(key, t0=start, t1=None)


def test_arrays_of_ends(key):
    with pytest.raises((TypeError, ValueError), match="scalar"):
        _make(key, t1=jnp.ones(2))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (3, r"must be a tuple; got 3. Write `\(3,\)`"),
        (np.int64(3), r"Write `\(3,\)`"),
        ([3], r"Write `\(3,\)`"),
        ([2, 3], r"Write `\(2, 3\)`"),
        ({}, "at least one array; got an empty PyTree"),
        (None, "at least one array; got an empty PyTree"),
        ((2.0,), "tuple of integers or a PyTree"),
        ("ab", "tuple of integers or a PyTree"),
        (jax.ShapeDtypeStruct((2,), jnp.int32), "floating-point: .* got int32"),
        (jax.ShapeDtypeStruct((2,), jnp.bool_), "floating-point: .* got bool"),
        (jax.ShapeDtypeStruct((2,), np.float64), "`jax.config.update"),
        (jax.ShapeDtypeStruct((2,), np.complex128), "`jax.config.update"),
        ((-1,), r"must not be negative; got \(-1,\)"),
    ],
)
def test_bad_shapes(shape, message, key):
    with pytest.raises((TypeError, ValueError), match=message):
        _make(key, shape=shape)


@pytest.mark.parametrize("order", [-1, True, 1.5, "2"])
def test_bad_orders(order, key):
    with pytest.raises(ValueError, match="`order` must be an integer >= 0; got"):
        _make(key, order=order)


@pytest.mark.parametrize(
    "levy_area",
    [
        "space-time",
        None,
        1,
        diffrax.AbstractSpaceTimeLevyArea,
        diffrax.AbstractBrownianIncrement,
        px.brownian.HigherOrderLevyArea,
    ],
)
def test_bad_levy_areas(levy_area, key):
    match = "one of `diffrax.BrownianIncrement`, .* write `order=3`"
    with pytest.raises((TypeError, ValueError), match=match):
        _make(key, levy_area=levy_area)


def test_order_below_what_the_levy_area_needs(key):
    with pytest.raises(ValueError, match="needs `order=2` or more; got `order=1`"):
        _make(key, levy_area=diffrax.SpaceTimeTimeLevyArea, order=1)


@pytest.mark.parametrize(
    ("levels", "kwargs", "message"),
    [
        (11, {}, "exceeds the depth of the tree, 10. Write `cache_levels=10` or less"),
        (25, {}, "from 0 to 24; got 25"),
        (-1, {}, "from 0 to 24; got -1"),
        (1.0, {}, "from 0 to 24; got 1.0"),
        (2, {"t1": None}, "no top to cache"),
    ],
)
def test_bad_caches(levels, kwargs, message, key):
    with pytest.raises((TypeError, ValueError), match=message):
        _make(key, cache_levels=levels, **kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 0, r"must be a JAX random key; got 0. Write `jax.random.key\(seed\)`"),
        (lambda: None, "must be a JAX random key; got None"),
        (lambda: jnp.zeros(2), "got an array of dtype float32"),
        (lambda: jnp.zeros(2, jnp.int32), "got an array of dtype int32"),
        (lambda: jax.random.split(jax.random.key(0)), "single key; got .*jax.vmap"),
        (lambda: jax.random.split(jax.random.PRNGKey(0)), "single key; got .*jax.vmap"),
    ],
)
def test_bad_keys(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _make(make())


def test_endless_tree_needs_a_unit(key):
    with pytest.raises(ValueError, match="needs a `tol`, its unit of time"):
        _make(key, t1=None, tol=None)


def test_traced_tolerance(key):
    with pytest.raises(ValueError, match="It was traced; pass it as a Python float"):
        jax.jit(lambda tol: _make(key, tol=tol).evaluate(0.2, 0.7))(0.1)


# Queries ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree():
    return _make(jax.random.key(0), order=1)


@pytest.mark.parametrize(
    ("s", "u"), [(-0.1, 0.5), (0.5, 1.1), (1.1, 0.5), (0.5, -0.1), (2.0, 3.0)]
)
def test_times_out_of_range(s, u, tree):
    with pytest.raises(RuntimeError, match=r"outside of its range \[t0, t1\]"):
        tree.evaluate(s, u)


@pytest.mark.parametrize("t", [float("nan"), float("inf"), float("-inf")])
def test_times_that_are_no_numbers(t, tree):
    for query in ((t, 0.5), (0.5, t)):
        with pytest.raises(RuntimeError, match="outside of its range"):
            tree.evaluate(*query)


def test_rounded_ends_are_in_range(tree):
    """Solvers add up steps, and arrive within a few units in the last place."""
    after = float(np.nextafter(np.float32(1), np.float32(2)))
    rounded, exact = tree.evaluate(0.5, after), tree.evaluate(0.5, 1.0)
    assert jnp.allclose(rounded, exact, rtol=1e-6)


def test_endless_range(key):
    tree = _make(key, t1=None)
    for query in ((-1e-3, 0.5), (0.5, 2.0**21), (0.5, float("nan"))):
        with pytest.raises(RuntimeError, match="outside of its range"):
            tree.evaluate(*query)


@pytest.mark.parametrize("query", ["evaluate", "moments", "time_integrals"])
def test_arrays_of_times(query, tree):
    with pytest.raises(ValueError, match=r"scalars; got .*\(3,\).*jax.vmap"):
        getattr(tree, query)(0.0, jnp.linspace(0.1, 0.9, 3))


# Gradients ----------------------------------------------------------------------------

NO_GRADIENT = "no gradient with respect to the times.*jax.lax.stop_gradient"


@pytest.mark.parametrize("query", ["evaluate", "moments", "time_integrals"])
@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_no_gradient_with_respect_to_times(query, compile_, tree):
    value = lambda u: jnp.sum(getattr(tree, query)(0.2, u))
    with pytest.raises(ValueError, match=NO_GRADIENT):
        jax.grad(compile_(value))(0.7)
    with pytest.raises(ValueError, match=NO_GRADIENT):
        jax.jvp(compile_(value), (0.7,), (1.0,))


def test_no_gradient_with_respect_to_the_first_time(tree):
    with pytest.raises(ValueError, match=NO_GRADIENT):
        jax.jit(jax.grad(lambda s: jnp.sum(tree.evaluate(s, 0.7))))(0.2)


def test_no_gradient_with_respect_to_the_ends(key):
    for ends in (lambda t: (t, 1.0), lambda t: (0.0, t + 1)):
        value = lambda t, ends=ends: jnp.sum(
            Tree(*ends(t), None, (2,), key).evaluate(0.2, 0.7)
        )
        with pytest.raises(ValueError, match=NO_GRADIENT):
            jax.grad(value)(0.1)


def test_stopped_times_are_constants(tree):
    def value(u):
        return u * jnp.sum(tree.evaluate(0.2, jax.lax.stop_gradient(u)))

    expected = jnp.sum(tree.evaluate(0.2, 0.7))
    assert jnp.allclose(jax.grad(value)(0.7), expected, rtol=1e-5)


def test_times_beside_differentiated_values(tree):
    """A loss that differentiates something else needs no `stop_gradient`."""
    loss = lambda scale, u: scale * jnp.sum(tree.evaluate(0.2, u) ** 2)
    gradient = jax.jit(jax.grad(loss))(3.0, 0.7)
    assert jnp.allclose(gradient, loss(1.0, 0.7), rtol=1e-5)


def test_errors_reach_the_user_through_jit(tree):
    compiled = eqx.filter_jit(lambda tree, u: tree.evaluate(0.2, u))
    with pytest.raises(RuntimeError, match="outside of its range"):
        compiled(tree, jnp.asarray(3.0))
