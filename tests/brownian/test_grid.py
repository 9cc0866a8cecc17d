"""Paths on grids: the tree's values, looked up; and the times that solvers visit."""

import diffrax
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.brownian import step_times
from pathax.brownian._grid import _Search


Tree = px.brownian.VirtualBrownianTree
TOL = 2.0**-14
EPS = float(np.finfo(np.float32).eps)
COUNT = 41  # times of a grid


def _tree(key, order=1):
    return Tree(0.0, 1.0, TOL, (2,), key, order=order)


def _grid(kind: str) -> np.ndarray:
    if kind == "uniform":
        ts = np.linspace(0, 1, COUNT)
    elif kind == "uneven":
        ts = np.cumsum(np.r_[0.0, 1 + 0.8 * np.sin(np.arange(COUNT - 1.0))])
        ts = 0.1 + 0.8 * ts / ts[-1]
    else:  # steps over four orders of magnitude: too many in one bucket
        ts = np.geomspace(1e-4, 1, COUNT)
    return ts.astype(np.float32)


KINDS = ["uniform", "uneven", "wild"]


@jax.jit
def _all_moments(path, s, u):
    return jax.vmap(path.moments)(s, u)


# Look-up ------------------------------------------------------------------------------


def test_grids_are_searched_in_three_ways():
    runs = {kind: _Search(_grid(kind)).run for kind in KINDS}
    assert runs["uniform"] == 0
    assert 0 < runs["uneven"] <= 8
    assert runs["wild"] > 8


@pytest.mark.parametrize("span", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_trees(kind, span, key):
    tree, ts = _tree(key), _grid(kind)
    path = tree.on_grid(ts, span=span)
    assert path.order == tree.order
    assert path.shape == tree.shape
    assert path.levy_area is tree.levy_area
    pairs = [(i, i + k) for k in range(span + 1) for i in range(COUNT - k)]
    i, j = np.array(pairs).T
    roots = np.sqrt(np.maximum(ts[j] - ts[i], 1e-9))[:, None, None]
    for first, last in ((i, j), (j, i)):
        got = np.asarray(_all_moments(path, ts[first], ts[last]))
        expected = np.asarray(_all_moments(tree, ts[first], ts[last]))
        assert np.abs((got - expected) / roots).max() < 8 * EPS


def test_increments_and_integrals(key):
    tree, ts = _tree(key, 2), _grid("uneven")
    path = tree.on_grid(ts)
    s, u = ts[3], ts[4]
    ours = path.evaluate(s, u, use_levy=True)
    theirs = tree.evaluate(s, u, use_levy=True)
    assert type(ours) is type(theirs)
    assert eqx.tree_equal(ours, theirs, rtol=0, atol=8 * EPS)
    integrals = [x.time_integrals(s, u) for x in (path, tree)]
    assert np.abs(integrals[0] - integrals[1]).max() < 8 * EPS
    # Each alone, from the start of the tree.
    assert jnp.array_equal(path.evaluate(0.33), tree.evaluate(0.33))
    assert path.t0 == tree.t0
    assert path.t1 == tree.t1


def test_grid_of_a_pytree(key):
    struct = jax.ShapeDtypeStruct
    shape = {"a": struct((), jnp.float32), "b": (struct((2,), jnp.complex64), None)}
    tree = Tree(0.0, 1.0, TOL, shape, key)
    path = tree.on_grid(_grid("uniform"))
    out = path.evaluate(0.25, 0.275)
    assert jax.tree.structure(out) == jax.tree.structure(shape)
    assert eqx.tree_equal(out, tree.evaluate(0.25, 0.275), rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_times_that_a_solver_adds_up(kind, key):
    """Within rounding of a grid time is on it."""
    path, ts = _tree(key).on_grid(_grid(kind)), _grid(kind)
    for shift in (-1.0, 1.0):
        shifted = np.nextafter(ts, np.float32(shift * np.inf))
        got = _all_moments(path, shifted[:-1], shifted[1:])
        assert jnp.array_equal(got, _all_moments(path, ts[:-1], ts[1:]))


def test_a_grid_traced(key):
    tree, ts = _tree(key), _grid("uneven")

    @eqx.filter_jit
    def value(ts):
        return tree.on_grid(ts).moments(ts[3], ts[4])

    expected = tree.on_grid(ts).moments(ts[3], ts[4])
    assert np.abs(value(jnp.asarray(ts)) - expected).max() < 8 * EPS
    with pytest.raises(RuntimeError, match="must increase"):
        value(jnp.asarray(ts[::-1].copy()))


def test_grids_of_one_length_compile_once(key, no_retrace, getkey):
    """The grid itself is data, and so is the key."""
    ts = jnp.asarray(_grid("uniform"))
    paths = [_tree(getkey()).on_grid(ts * scale) for scale in (1.0, 0.5)]
    calls = [(path, path.ts[2], path.ts[3]) for path in paths]
    no_retrace(lambda path, s, u: path.moments(s, u), *calls)


@pytest.mark.parametrize("kind", KINDS)
def test_every_time_is_found_on_long_grids(kind):
    """Divisions in float32 are off by steps of a grid as fine as this."""
    count = 400_000
    ts = np.linspace(0, 0.7, count + 1)
    if kind == "uneven":
        ts = ts + 0.3 * ts**2
    elif kind == "wild":
        ts = np.geomspace(1e-3, 1, count + 1)
    ts = np.unique(ts.astype(np.float32))
    search = _Search(ts)
    index, near = jax.jit(jax.vmap(lambda t: search(jnp.asarray(ts), t)))(ts)
    assert np.array_equal(index, np.arange(ts.size))
    assert np.all(near)


# Off the grid -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_off_the_grid(kind, key):
    ts = _grid(kind)
    strict = _tree(key).on_grid(ts, span=2)
    loose = _tree(key).on_grid(ts, span=2, check=False)
    middle = (ts[3] + ts[4]) / 2
    queries = [
        (ts[3], middle),
        (middle, ts[4]),
        (ts[3], ts[6]),
        (ts[6], ts[3]),
        (ts[0] - 0.5, ts[1]),
        (ts[-2], ts[-1] + 0.5),
        (np.float32(np.nan), ts[1]),
    ]
    for s, u in queries:
        with pytest.raises(RuntimeError, match="not two grid times at most `span`"):
            strict.moments(s, u)
        assert np.all(np.isnan(loose.moments(s, u)))
    assert np.all(np.isfinite(loose.moments(ts[3], ts[5])))


@pytest.mark.parametrize(
    ("ts", "kwargs", "message"),
    [
        ([0.0, 0.5, 0.5], {}, r"must increase; got ts\[1\] = 0.5 and ts\[2\] = 0.5"),
        ([0.5, 0.1], {}, "must increase"),
        ([0.0, float("nan"), 1.0], {}, "must increase"),
        ([0.5], {}, "at least two times; got one of shape"),
        ([[0.0, 1.0]], {}, "one-dimensional"),
        ([0.0, 0.5, 1.0], {"span": 0}, "`span` must be an integer >= 1; got 0"),
        ([0.0, 0.5, 1.0], {"span": 1.5}, "`span` must be an integer >= 1; got 1.5"),
        ([0.0, 0.5, 1.0], {"span": 3}, "less than the number of grid times, 3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_grids(ts, kwargs, message, key):
    with pytest.raises(ValueError, match=message):
        _tree(key).on_grid(ts, **kwargs)


def test_grid_outside_of_the_tree(key):
    with pytest.raises(RuntimeError, match="outside of its range"):
        _tree(key).on_grid(np.linspace(0, 1.5, 4))


# Step times ---------------------------------------------------------------------------


@eqx.filter_jit
def _visited(t0, t1, dt0):
    """Ends of the steps that Diffrax takes, then infinities."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: y),
        diffrax.Euler(),
        t0,
        t1,
        dt0,
        jnp.zeros(()),
        saveat=diffrax.SaveAt(t0=True, steps=True),
        max_steps=600,
    )
    return solution.ts


def _check_steps(t0, t1, dt0, dtype):
    visited = np.asarray(_visited(*(jnp.asarray(x, dtype) for x in (t0, t1, dt0))))
    visited = visited[np.isfinite(visited)]
    ts = np.asarray(step_times(t0, t1, dt0))
    assert ts.dtype == dtype
    assert len(ts) == len(visited)
    # Diffrax's own rounding depends on what the compiler fuses.
    spacing = np.finfo(dtype).eps * max(abs(t0), abs(t1))
    assert np.abs(ts - visited).max() <= 2 * spacing
    assert ts[0] == dtype.type(t0)
    assert ts[-1] == dtype.type(t1)


@pytest.mark.parametrize(
    ("t0", "t1", "dt0"),
    [
        (0.0, 1.0, 0.1),
        (0.0, 1.0, 0.01),
        (0.0, 1.0, 0.3),
        (0.0, 1.0, 1 / 3),
        (0.0, 1.0, 1.0),
        (0.0, 1.0, 2.5),
        (0.1, 1.7, 0.07),
        (-2.0, 3.0, 0.9),
        (5.0, 5.001, 1e-4),
        (0.0, 1.0, 0.5000001),
        (0.0, 3.0, 0.75),
    ],
)
def test_step_times_are_those_of_diffrax(t0, t1, dt0, precision):
    _check_steps(t0, t1, dt0, precision.dtype)


@hypothesis.given(
    t0=st.floats(-3, 3, width=32),
    length=st.floats(0.125, 5, width=32),
    steps=st.floats(0.3125, 500, width=32),
)
def test_step_times_of_any_step(t0, length, steps):
    single = np.float32
    t1 = single(t0) + single(length)
    dt0 = single(length) / single(steps)
    _check_steps(float(t0), float(t1), float(dt0), np.dtype(single))


@pytest.mark.parametrize(
    ("t0", "t1", "dt0"),
    [
        (0.0, 0.0, 0.1),
        (1.0, 0.0, 0.1),
        (0.0, 1.0, 0.0),
        (0.0, 1.0, -0.1),
        (1.0, 2.0, 1e-9),
        (0.0, 1.0, float("nan")),
    ],
)
def test_bad_steps(t0, t1, dt0):
    with pytest.raises(ValueError, match="needs `t0 < t1` and a `dt0 > 0`"):
        step_times(t0, t1, dt0)


# Solves -------------------------------------------------------------------------------


def _solve(path, solver, dt0, **kwargs):
    drift = diffrax.ODETerm(lambda t, y, args: -y)
    noise = diffrax.ControlTerm(lambda t, y, args: 0.5 * jnp.diag(1 + y**2), path)
    return eqx.filter_jit(diffrax.diffeqsolve)(
        diffrax.MultiTerm(drift, noise), solver, 0.0, 1.0, dt0, jnp.ones(2), **kwargs
    )


@pytest.mark.parametrize("check", [True, False])
def test_euler_solve(check, key):
    """A solve on the grid is the solve on the tree, up to rounding.

    With times that are exact: one unit in the last place of a time is a visible
    difference in a Brownian path.
    """
    tree, dt0 = _tree(key, 0), 2**-4
    path = tree.on_grid(step_times(0.0, 1.0, dt0), check=check)
    on_grid = _solve(path, diffrax.Euler(), dt0).ys
    on_tree = _solve(tree, diffrax.Euler(), dt0).ys
    assert np.abs(on_grid - on_tree).max() < 64 * EPS


def test_solve_with_step_to(key):
    tree, ts = _tree(key, 0), jnp.asarray(_grid("uneven"))
    solves = [
        diffrax.diffeqsolve(
            diffrax.ControlTerm(lambda t, y, args: jnp.diag(jnp.cos(y)), path),
            diffrax.Euler(),
            ts[0],
            ts[-1],
            None,
            jnp.ones(2),
            stepsize_controller=diffrax.StepTo(ts),
        ).ys
        for path in (tree, tree.on_grid(ts))
    ]
    assert np.abs(solves[0] - solves[1]).max() < 64 * EPS


def test_half_solver(key):
    """Two half steps and a whole one: a grid with midpoints and `span=2`."""
    tree, dt0 = _tree(key, 0), 0.125
    solver = diffrax.HalfSolver(diffrax.Heun())
    ts = step_times(0.0, 1.0, dt0 / 2)
    on_grid = _solve(tree.on_grid(ts, span=2), solver, dt0).ys
    on_tree = _solve(tree, solver, dt0).ys
    assert np.abs(on_grid - on_tree).max() < 64 * EPS
