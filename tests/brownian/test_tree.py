"""The virtual Brownian tree: forms, values, consistency between queries, streams."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.brownian import _legendre as lg


Tree = px.brownian.VirtualBrownianTree

# One configuration for most tests: what they share is compiled once a process.
TOL = 2.0**-14
SHAPE = (2,)


def _tree(key, order=2, t0=0.0, t1: float | None = 1.0, **kwargs):
    return Tree(t0, t1, TOL, SHAPE, key, order=order, **kwargs)


def _close(x, y, eps, scale=1.0, factor=8):
    """Equal up to rounding of a quantity of that scale, not of its value.

    A moment is a sum of many normals that may cancel, so its error is relative to its
    standard deviation, `sqrt(h)`; four units in the last place of that, and a bit for
    the few roundings of the largest of many.
    """
    x, y = np.asarray(x), np.asarray(y)
    assert x.shape == y.shape
    assert np.all(np.abs(x - y) <= factor * eps * scale), np.abs(x - y).max() / eps


# Forms of the call -------------------------------------------------------------------


def test_drop_in_constructor(key):
    """Positional and keyword forms of `diffrax.VirtualBrownianTree`."""
    area = diffrax.SpaceTimeLevyArea
    forms = [
        Tree(0.0, 1.0, TOL, SHAPE, key, area),
        Tree(0.0, 1.0, tol=TOL, shape=SHAPE, key=key, levy_area=area),
        Tree(t0=0, t1=1, tol=TOL, shape=SHAPE, key=key, order=1),
        Tree(0.0, 1.0, np.float32(TOL), SHAPE, key, area, order=1),
        Tree(0.0, 1.0, jnp.asarray(TOL), SHAPE, key, area, cache_levels=0),
    ]
    values = [form.evaluate(0.2, 0.7, use_levy=True) for form in forms]
    for value in values[1:]:
        assert jax.tree.all(jax.tree.map(jnp.array_equal, values[0], value))
    for cls in (diffrax.AbstractBrownianPath, px.brownian.AbstractMomentPath):
        assert isinstance(forms[0], cls)
    assert forms[0].levy_area is area


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_increment_classes(order, key):
    classes = [
        diffrax.BrownianIncrement,
        diffrax.SpaceTimeLevyArea,
        diffrax.SpaceTimeTimeLevyArea,
        px.brownian.HigherOrderLevyArea,
        px.brownian.HigherOrderLevyArea,
    ]
    tree = _tree(key, order)
    increment = tree.evaluate(0.2, 0.7, use_levy=True)
    assert type(increment) is classes[order]
    assert tree.levy_area is classes[order]
    eps = float(np.finfo(np.float32).eps)
    assert abs(float(increment.dt) - 0.5) < eps
    moments = np.asarray(tree.moments(0.2, 0.7))
    assert moments.shape == (order + 1, *SHAPE)
    _close(increment.W, moments[0], eps)
    if order >= 1:
        _close(increment.H, -moments[1] / 2, eps)
    if order >= 2:
        _close(increment.K, moments[2] / 12, eps)
    if order >= 3:
        assert isinstance(increment, diffrax.AbstractSpaceTimeTimeLevyArea)
        _close(increment.higher, moments[3:], eps)


def test_one_time_means_from_the_start(key):
    tree = _tree(key, 0, t0=-1.0)
    one, two = tree.evaluate(0.25), tree.evaluate(-1.0, 0.25)
    assert jnp.array_equal(one, two)
    assert jnp.array_equal(tree.moments(0.25), tree.moments(-1.0, 0.25))
    assert np.all(np.asarray(tree.evaluate(-1.0)) == 0)
    increment = tree.evaluate(0.25, use_levy=True)
    assert jnp.array_equal(increment.W, one)
    assert increment.dt == 1.25


def test_left_limits_are_ignored(key):
    tree = _tree(key, 0)
    right = tree.evaluate(0.2, 0.7, False)
    assert jnp.array_equal(tree.evaluate(0.2, 0.7, True), right)
    assert jnp.array_equal(tree.evaluate(0.2, 0.7), right)


def test_orientation(key, precision):
    """From later to earlier `L_n` changes by `-(-1)^n`: `W`, `K` flip, `H` does not."""
    tree = _tree(key, 4)
    there = tree.evaluate(0.3, 0.8, use_levy=True)
    back = tree.evaluate(0.8, 0.3, use_levy=True)
    assert back.dt == -there.dt
    for name, sign in [("W", -1), ("H", 1), ("K", -1)]:
        assert jnp.array_equal(getattr(back, name), sign * getattr(there, name))
    signs = -((-1.0) ** np.arange(3, 5))[:, None]
    assert np.array_equal(back.higher, signs * np.asarray(there.higher))
    whole = np.asarray(tree.moments(0.8, 0.3))
    flips = -((-1.0) ** np.arange(5))[:, None]
    assert np.array_equal(whole, flips * np.asarray(tree.moments(0.3, 0.8)))


@pytest.mark.parametrize("t1", [1.0, None])
def test_no_time_no_motion(t1, key, precision):
    tree = _tree(key, 2, t1=t1)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert np.all(np.asarray(tree.moments(t, t)) == 0)


@pytest.mark.parametrize("order", [0, 4])
def test_tiny_intervals_are_finite(order, key, precision):
    """And of the scale that they must have, down to the smallest normal number."""
    tree = _tree(key, order)
    for exponent in (-24, -60, -110):
        moments = np.asarray(tree.moments(0.0, 2.0**exponent), np.float64)
        scaled = moments / 2.0 ** (exponent / 2)
        assert np.all(np.isfinite(scaled))
        assert np.all((np.abs(scaled) > 1e-7) & (np.abs(scaled) < 7))


# Consistency between queries ----------------------------------------------------------


@jax.jit
def _pieces(tree, times):
    return jax.vmap(tree.moments)(times[:-1], times[1:])


@pytest.mark.parametrize("t1", [1.0, None])
def test_parts_add_up(t1, key, rng, precision):
    """Moments of a whole are Chen's sum of those of its parts, up to 64 eps."""
    order, most = 2, 64
    tree = _tree(key, order, t1=t1)
    nodes, weights = lg.gauss(order + 1)
    inner = np.polynomial.legendre.legvander(2 * nodes - 1, order)
    for count in (2, 3, 7, 20, 64):
        leaves = np.sort(rng.choice(2**14 - 1, count + 1, replace=False))
        times = (leaves + rng.uniform(0, 0.99, count + 1)) * TOL
        times = np.pad(times, (0, most - count), mode="edge").astype(precision.dtype)
        whole = np.asarray(tree.moments(times[0], times[-1]), np.float64)
        parts = np.asarray(_pieces(tree, jnp.asarray(times)), np.float64)
        # Joined in float64, at the times as they are.
        times = times.astype(np.float64)
        start, length = times[0], times[-1] - times[0]
        joined = np.zeros_like(whole)
        for i in range(count):
            a, b = times[i : i + 2]
            place = (a - start + (b - a) * nodes) / length
            outer = np.polynomial.legendre.legvander(2 * place - 1, order)
            matrix = np.einsum("ym,y,yn,n->mn", outer, weights, inner, [1, 3, 5])
            joined += matrix @ parts[i]
        assert np.abs(joined - whole).max() < 64 * precision.eps * np.sqrt(length)


def test_same_query_same_bits(key, rng):
    """One compiled function: a query gives the same bits in any company and order."""
    times = rng.uniform(0, 1, (2, 32)).astype(np.float32)
    batch = jax.jit(lambda tree, s, u: jax.vmap(tree.moments)(s, u))
    tree = _tree(key)
    first = np.asarray(batch(tree, *times))
    assert np.array_equal(first, batch(tree, *times))
    shuffle = rng.permutation(32)
    assert np.array_equal(first[shuffle], batch(tree, *times[:, shuffle]))
    one = [np.asarray(tree.moments(*times[:, 3])) for _ in range(3)]
    tree.moments(0.1, 0.9)
    one.append(np.asarray(tree.moments(*times[:, 3])))
    assert all(np.array_equal(x, one[0]) for x in one)


@pytest.mark.parametrize("order", [0, 2])
def test_scalar_batch_and_grid_agree(order, key, rng, precision):
    tree = _tree(key, order)
    times = np.sort(rng.uniform(0, 1, 9)).astype(precision.dtype)
    roots = np.sqrt(np.diff(times))[:, None, None]
    batch = np.asarray(_pieces(tree, jnp.asarray(times)))
    pairs = list(itertools.pairwise(times))
    scalar = np.stack([tree.moments(s, u) for s, u in pairs])
    _close(batch / roots, scalar / roots, precision.eps)
    grid = tree.on_grid(times)
    looked_up = np.stack([grid.moments(s, u) for s, u in pairs])
    _close(looked_up / roots, scalar / roots, precision.eps)


def test_with_and_without_compilation_agree(key):
    tree = Tree(0.0, 1.0, 0.25, (), key, order=0)
    compiled = np.asarray(tree.evaluate(0.2, 0.7))
    with jax.disable_jit():
        plain = np.asarray(tree.evaluate(0.2, 0.7))
    _close(plain, compiled, float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("levels", [1, 14])
def test_cache_changes_no_value(levels, key, precision):
    tree, cached = _tree(key), _tree(key, cache_levels=levels)
    assert cached.cache_levels == levels
    for s, u in [(0.0, 1.0), (0.2, 0.7), (0.3, 0.30001), (0.9, 1.0)]:
        root = np.sqrt(u - s)
        expected = np.asarray(tree.moments(s, u)) / root
        found = np.asarray(cached.moments(s, u)) / root
        _close(found, expected, precision.eps, np.maximum(1, np.abs(expected)))


# No horizon ---------------------------------------------------------------------------


def test_endless_path_is_consistent(key, precision):
    """Pieces far apart in scale add up, and nothing depends on where one looked."""
    tree = _tree(key, 2, t1=None)
    far = float(2**30 * TOL) if precision.eps > 1e-10 else float(2**50 * TOL)
    short = np.asarray(tree.moments(0.25, 0.5))
    values = [tree.evaluate(a, b) for a, b in [(0.25, 0.5), (0.5, 64.0), (64.0, far)]]
    whole = np.asarray(tree.evaluate(0.25, far))
    _close(sum(np.asarray(v) for v in values), whole, precision.eps, np.sqrt(far))
    assert np.array_equal(np.asarray(tree.moments(0.25, 0.5)), short)


def test_endless_solve_in_chunks(key, precision):
    term = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y),
        diffrax.ControlTerm(
            lambda t, y, args: jnp.ones((1, 2), y.dtype), _tree(key, 0, t1=None)
        ),
    )
    dt = 2.0**-6

    @jax.jit
    def solve(t0, t1, y0):
        solution = diffrax.diffeqsolve(term, diffrax.Euler(), t0, t1, dt, y0)
        return solution.ys[0]

    y = jnp.zeros(1)
    for start in range(4):
        y = solve(1.0 * start, start + 1.0, y)
    _close(y, solve(0.0, 4.0, jnp.zeros(1)), precision.eps, 4.0, factor=64)


# Shapes and dtypes --------------------------------------------------------------------


def test_pytrees(key):
    struct = jax.ShapeDtypeStruct
    shape = {
        "a": struct((), jnp.float32),
        "b": [struct((0,), jnp.float32), None, struct((2, 3), jnp.float32)],
        "c": (struct((2, 3), jnp.float32),),
    }
    tree = Tree(0.0, 1.0, TOL, shape, key, order=1)
    increment = tree.evaluate(0.2, 0.7, use_levy=True)
    for field in (increment.W, increment.H):
        assert jax.tree.structure(field) == jax.tree.structure(shape)
        shapes = [x.shape for x in jax.tree.leaves(field)]
        assert shapes == [(), (0,), (2, 3), (2, 3)]
    assert all(x.shape == () for x in jax.tree.leaves(increment.dt))
    values = [np.asarray(x).ravel() for x in jax.tree.leaves(increment.W)]
    assert len(np.unique(np.concatenate(values))) == 1 + 6 + 6  # all different
    assert tree.moments(0.2, 0.7)["b"][2].shape == (2, 2, 3)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2)])
def test_shapes(shape, key):
    tree = Tree(0.0, 1.0, TOL, shape, key)
    assert tree.evaluate(0.2, 0.7).shape == shape


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_dtypes(dtype, key):
    """Values, and lengths in their real dtype; half precision is rounded float32."""
    name = jnp.dtype(dtype)
    real = jnp.finfo(name).dtype
    tree = Tree(0.0, 1.0, TOL, jax.ShapeDtypeStruct(SHAPE, name), key, order=1)
    increment = tree.evaluate(0.2, 0.7, use_levy=True)
    assert increment.W.dtype == increment.H.dtype == name
    assert increment.dt.dtype == real
    assert tree.time_integrals(0.2, 0.7).dtype == name
    assert np.all(np.isfinite(np.asarray(increment.W, np.complex128)))
    if real.itemsize == 2:
        full = Tree(
            0.0, 1.0, TOL, jax.ShapeDtypeStruct(SHAPE, jnp.float32), key, order=1
        )
        _close(
            np.asarray(increment.W, np.float32),
            np.asarray(full.evaluate(0.2, 0.7)),
            float(jnp.finfo(name).eps),
        )


def test_complex_law(getkey):
    """Real and imaginary parts are independent and have half of the variance each."""
    paths = 4000
    struct = jax.ShapeDtypeStruct((4,), jnp.complex64)

    @jax.jit
    @jax.vmap
    def sample(key):
        return Tree(0.0, 1.0, TOL, struct, key).evaluate(0.2, 0.7)

    w = np.asarray(sample(jax.random.split(getkey(), paths))).ravel() / np.sqrt(0.5)
    bound = 6 * np.sqrt(1 / w.size)
    assert abs(np.mean(np.abs(w) ** 2) - 1) < bound
    assert abs(np.mean(w**2)) < bound
    assert abs(np.mean(w)) < bound


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("times", ["float32", "float64"])
@pytest.mark.parametrize("values", ["float32", "float64"])
def test_precision_of_times_and_values_is_free(times, values, key):
    """Both ways round: normals are of the values' dtype, the depth of the times'."""
    struct = jax.ShapeDtypeStruct(SHAPE, jnp.dtype(values))
    cast = jnp.dtype(times).type
    tree = Tree(cast(0), cast(1), TOL, struct, key, order=1)
    assert tree.t0.dtype == tree.time_dtype() == jnp.dtype(times)
    increment = tree.evaluate(cast(0.25), cast(0.75), use_levy=True)
    assert increment.W.dtype == increment.dt.dtype == jnp.dtype(values)
    # Query times of another dtype are taken to the path's.
    other = tree.evaluate(np.float32(0.25), np.float64(0.75), use_levy=True)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, increment, other))
    reference = Tree(0.0, 1.0, TOL, struct, key, order=1).evaluate(0.25, 0.75)
    _close(increment.W, reference, float(np.finfo(values).eps))


def test_finest_tree(key, precision):
    tree = Tree(0.0, 1.0, None, SHAPE, key)
    assert tree.depth == np.finfo(precision.dtype).nmant
    assert Tree(1000.0, 1001.0, None, SHAPE, key).depth < tree.depth
    assert Tree(0.0, 1.0, 0.3, SHAPE, key).depth == 2  # the next power of two
    assert Tree(0.0, 0.3, 0.3, SHAPE, key).depth == 0  # one leaf


@pytest.mark.parametrize("depth", [0, 29, 30, 52])
@pytest.mark.usefixtures("x64")
def test_depths(depth, key):
    """Labels of nodes take 32 bits up to depth 29, and two words below."""
    tree = Tree(0.0, 1.0, 2.0**-depth, SHAPE, key)
    assert tree.depth == depth
    s, r, u = 0.2, 0.2 + 0.3, 0.7
    parts = np.asarray(tree.evaluate(s, r)) + np.asarray(tree.evaluate(r, u))
    whole = np.asarray(tree.evaluate(s, u))
    if depth > 2:  # in one leaf, no two queries are of one path
        _close(parts, whole, np.finfo(np.float64).eps)
    assert np.all(np.abs(whole) < 7)


def test_times_of_any_number_type(key):
    tree = _tree(key, 0, t0=0, t1=4)
    expected = tree.evaluate(1.0, 3.0)
    for s, u in [(1, 3), (np.int32(1), np.float32(3)), (jnp.int32(1), jnp.array(3.0))]:
        assert jnp.array_equal(tree.evaluate(s, u), expected)


def test_traced_ends(key, precision):
    """The deepest tree that the dtype allows, a refinement of any other one's path."""

    @eqx.filter_jit
    def value(t0, t1):
        tree = Tree(t0, t1, TOL, SHAPE, key)
        assert tree.depth == np.finfo(precision.dtype).nmant
        return tree.evaluate(t0 + 0.5, t0 + 1.5)

    got = value(jnp.asarray(1.0), jnp.asarray(3.0))
    static = Tree(1.0, 3.0, 2.0**-14, SHAPE, key)
    # Both times are ends of leaves in both.
    _close(got, static.evaluate(1.5, 2.5), precision.eps)
    with pytest.raises(RuntimeError, match="strictly less"):
        value(jnp.asarray(3.0), jnp.asarray(1.0))


# Keys and streams ---------------------------------------------------------------------


def test_key_styles(seed):
    value = lambda key: _tree(key, 0).evaluate(0.2, 0.7)
    typed = value(jax.random.key(seed))
    assert jnp.array_equal(typed, value(jax.random.PRNGKey(seed)))
    for impl in ("rbg", "unsafe_rbg"):
        other = value(jax.random.key(seed, impl=impl))
        assert not jnp.array_equal(typed, other)


def test_components_are_different(key):
    values = np.asarray(Tree(0.0, 1.0, TOL, (64,), key).evaluate(0.2, 0.7))
    assert len(np.unique(values)) == 64


def test_large_shapes_are_the_same_path_in_groups(key):
    """Above a size, terms are summed in a loop; the first rows are a plain sum's."""
    big = Tree(0.0, 1.0, TOL, (3000,), key, order=0)
    s, r, u = 0.2, 0.4, 0.7
    parts = np.asarray(big.evaluate(s, r)) + np.asarray(big.evaluate(r, u))
    whole = np.asarray(big.evaluate(s, u))
    _close(parts, whole, np.finfo(np.float32).eps, factor=16)
    assert abs(np.std(whole) / np.sqrt(0.5) - 1) < 6 / np.sqrt(2 * 3000)


# `moments(0.2, 0.7)` of `_tree(jax.random.key(0), order)`, last component.
GOLDEN = {
    "float32": [
        [0.648505569],
        [0.0690703243, -0.629512429],
        [0.0869255289, -0.473198742, 0.174770504],
        [0.276248604, -0.339783847, 0.175599217, 0.042810034],
        [0.155838564, -0.378343612, 0.240760922, -0.0495486595, 0.0687397569],
    ],
    "float64": [
        [0.5357750293727259],
        [1.0821319949972144, 0.8336819784604246],
        [0.06407289042226925, 0.6167564564916419, 0.3154619843557338],
        [
            -0.2711057779230336,
            0.4306266743397401,
            -0.009358856435849845,
            -0.04353343737886065,
        ],
        [
            -0.13320229647334778,
            0.3882476203820874,
            -0.2328400022743753,
            -0.08498233522806542,
            -0.07785508983743493,
        ],
    ],
}


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_frozen_streams(order, precision):
    """A key, a dtype and an order give these numbers, in every version to come."""
    expected = GOLDEN[precision.dtype.name][order]
    got = np.asarray(_tree(jax.random.key(0), order).moments(0.2, 0.7))[:, -1]
    _close(got, np.array(expected, precision.dtype), precision.eps, factor=16)


# Iterated integrals and areas ---------------------------------------------------------


@pytest.mark.parametrize("order", [0, 4])
def test_time_integrals(order, key, precision):
    """`J_0 = W`, `J_1 = h (W / 2 + H)`, ..., from both ends, and between pieces."""
    tree = _tree(key, order)
    s, u = 0.25, 0.75
    h = u - s
    for a, b, sign in ((s, u, 1), (u, s, -1)):
        integrals = np.asarray(tree.time_integrals(a, b))
        m = np.asarray(tree.moments(a, b))
        expected = [m[0]]
        if order >= 2:
            expected.append(sign * h * (m[0] - m[1]) / 2)
            expected.append(h**2 * (m[0] / 6 - m[1] / 4 + m[2] / 12))
        if order >= 4:
            cubic = m[0] / 24 - 3 * m[1] / 40 + m[2] / 24 - m[3] / 120
            expected.append(sign * h**3 * cubic)
        _close(integrals[: len(expected)], np.stack(expected), precision.eps)


def test_time_integrals_join(key, precision):
    """`J_1 = J_1' + (u - r) J_0' + J_1''`, the product rule of an iterated integral."""
    tree = _tree(key, 2)
    s, r, u = 0.25, 0.375, 0.75
    first, second = (np.asarray(tree.time_integrals(*x)) for x in ((s, r), (r, u)))
    whole = np.asarray(tree.time_integrals(s, u))
    d = u - r
    _close(whole[1], first[1] + d * first[0] + second[1], precision.eps)
    joined = first[2] + d * first[1] + d**2 / 2 * first[0] + second[2]
    _close(whole[2], joined, precision.eps)


def test_areas_join_exactly(key):
    """Two pieces are what their areas and increments give by Chen's relation."""
    tree, eps = Tree(0.0, 1.0, TOL, (3,), key, order=1), float(np.finfo(np.float32).eps)
    s, r, u = 0.25, 0.5, 0.75
    wedge = lambda a, b: (np.outer(a, b) - np.outer(b, a)) / 2
    areas, moments = [], []
    for interval in ((s, r), (r, u)):
        areas.append(np.asarray(tree.space_space_area(*interval)))
        moments.append(np.asarray(tree.moments(*interval)))
        _close(areas[-1], wedge(*moments[-1]), eps)
    whole = np.asarray(tree.space_space_area(s, u, pieces=2))
    _close(whole, sum(areas) + wedge(moments[0][0], moments[1][0]), eps)
    assert np.array_equal(whole, -whole.T)


def test_areas_are_antisymmetric_in_any_program(key):
    """Compilers fuse products into sums; and an area over no time is zero."""
    tree = Tree(0.0, 1.0, TOL, (5,), key, order=1)

    @jax.jit
    def area(tree, u):
        return tree.space_space_area(0.25, u, pieces=3, tail="moment", key=key)

    for u in (0.75, 0.1):
        value = np.asarray(area(tree, u))
        assert np.array_equal(value, -value.T)
        assert np.all(value[~np.eye(5, dtype=bool)] != 0)
    assert np.array_equal(area(tree, 0.25), np.zeros((5, 5)))
