"""Solvers of underdamped Langevin diffusion: coefficients, orders, estimates."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.solvers import _langevin as langevin


S = px.solvers
SOLVERS = {
    "euler": (S.ExponentialEuler(), 1),
    "ubu": (S.UBU(), 2),
    "quicsort": (S.QUICSORT(), 3),
    "should": (S.ShOULD(), 3),
}
THEIRS = {"quicsort": dfx.QUICSORT(0.01), "should": dfx.ShOULD(0.01)}


def _terms(path, gamma=1.3, u=0.7):
    force = lambda x, args: jax.tree.map(lambda x: jnp.sin(x) + x**3, x)
    return dfx.MultiTerm(
        dfx.UnderdampedLangevinDriftTerm(gamma, u, force),
        dfx.UnderdampedLangevinDiffusionTerm(gamma, u, path),
    )


def _path(key, shape=(2,), end=1.0):
    area = dfx.SpaceTimeTimeLevyArea
    return px.brownian.VirtualBrownianTree(0.0, end, end * 2**-14, shape, key, area)


@eqx.filter_jit
def _solve(keys, solver, dt):
    """Ends of one path a key; `dt` an array, so that steps compile once."""

    def one(key):
        start = jnp.array([0.5, -1.0]), jnp.array([0.0, 0.3])
        found = dfx.diffeqsolve(_terms(_path(key)), solver, 0.0, 1.0, dt, start)
        return jnp.concatenate([found.ys[0][0], found.ys[1][0]])

    return jax.vmap(one)(keys)


# Coefficients -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("phi", lambda s, a: np.exp(-a * (1 - s))),
        ("psi", lambda s, a: -np.expm1(-a * (1 - s)) / a),
        ("chi", lambda s, a: -np.expm1(-a * (1 - s)) / a * 6 * (1 - 2 * s)),
        ("chi_half", lambda s, a: -np.expm1(-a / 2 * (1 - s)) / a * 3 * (1 - s)),
    ],
)
def test_coefficients_are_integrals_of_the_noise(name, kernel):
    """What the best path, given W and H, does to velocity and position."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, weights = (nodes + 1) / 2, weights / 2
    with jax.enable_x64(True):
        for alpha in (1e-6, 0.01, 0.3, 0.99, 1.01, 3.0, 20.0):
            wanted = weights @ kernel(s, alpha)
            found = float(getattr(langevin, name)(jnp.array(alpha)))
            assert abs(found - wanted) < 1e-13


def test_coefficients_join(precision):
    """Series and closed form, at the friction where one takes over from the other."""
    for name in ("phi", "psi", "chi", "chi_half", "omega"):
        function = getattr(langevin, name)
        below, above = (function(jnp.array(x)) for x in (1 - 1e-5, 1 + 1e-5))
        slope = jax.grad(function)(jnp.array(0.999))
        assert abs(below - above + slope * 2e-5) < precision.tolerance(4e3) + 1e-7
        assert jnp.isfinite(jax.grad(function)(jnp.array(0.0)))


# Steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEIRS)
def test_steps_are_those_of_diffrax(name, key):
    with jax.enable_x64(True):
        ours, theirs = SOLVERS[name][0], THEIRS[name]
        np.testing.assert_allclose(
            *(_solve(key[None], solver, jnp.array(1 / 8)) for solver in (ours, theirs)),
            rtol=1e-9,
        )


@pytest.fixture(scope="module")
def errors():
    """Root mean squares at steps of 1/8 and 1/32."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 64)
        run = lambda solver, n: np.asarray(_solve(keys, solver, jnp.array(1 / n)))
        exact = run(S.QUICSORT(), 256)
        rms = lambda x: np.sqrt(np.mean((x - exact) ** 2))
        return {
            name: [rms(run(solver, n)) for n in (8, 32)]
            for name, (solver, _) in SOLVERS.items()
        }


@pytest.mark.parametrize("name", SOLVERS)
def test_strong_orders(name, errors):
    coarse, fine = errors[name]
    order = np.log(coarse / fine) / np.log(4)
    assert abs(order - SOLVERS[name][1]) < 0.25


def test_states_are_trees(key, precision):
    """Friction a number a leaf, or an array a leaf; the same as one array."""
    shape = {"a": jax.ShapeDtypeStruct((2,), precision.dtype)}
    x = {"a": jnp.array([0.5, -1.0])}
    v = {"a": jnp.array([0.0, 0.3])}
    for solver, _ in SOLVERS.values():
        path = _path(key, shape)
        ends = []
        for gamma in (1.3, {"a": jnp.array([1.3, 1.3])}):
            u = 0.7 if isinstance(gamma, float) else {"a": jnp.array([0.7, 0.7])}
            terms = _terms(path, gamma, u)
            state = solver.init(terms, 0.0, 0.25, (x, v), None)
            y, *_ = solver.step(terms, 0.0, 0.25, (x, v), None, state, False)
            ends.append(y[0]["a"])
        assert ends[0].dtype == precision.dtype
        assert np.array_equal(*ends)


def test_without_areas(key):
    path = px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-8, (2,), key)
    start = jnp.zeros(2), jnp.zeros(2)
    with pytest.raises(ValueError, match="SpaceTimeTimeLevyArea"):
        dfx.diffeqsolve(_terms(path), S.QUICSORT(), 0.0, 1.0, 0.1, start)


# Estimates ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEIRS)
def test_the_estimate_falls_as_it_says(name):
    """Like the power 5/2 of the step, from one state on many paths."""
    solver = SOLVERS[name][0]
    start = jnp.array([0.5, -1.0]), jnp.array([0.0, 0.3])

    def estimate(key, h):
        terms = _terms(_path(key))
        state = solver.init(terms, 0.0, h, start, None)
        _, (_, error), *_ = solver.step(terms, 0.0, h, start, None, state, False)
        return jnp.sum(error**2)

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), 256)
        sizes = jax.jit(jax.vmap(jax.vmap(estimate, (None, 0)), (0, None)))(
            keys, jnp.array([2.0**-4, 2.0**-7])
        )
        coarse, fine = jnp.sqrt(sizes.mean(axis=0))
    assert abs(np.log2(coarse / fine) / 3 - 2.5) < 0.15


@pytest.mark.parametrize("name", THEIRS)
def test_adaptive_steps_follow_the_tolerance(name, key):
    """Tighter is better; every gradient is counted."""
    calls = {"n": 0}

    def tell():
        calls["n"] += 1

    def force(x, args):
        jax.debug.callback(tell)
        return jnp.sin(x) + x**3

    @jax.jit
    def run(tolerance):
        path = _path(key, end=4.0)
        terms = dfx.MultiTerm(
            dfx.UnderdampedLangevinDriftTerm(1.3, 0.7, force),
            dfx.UnderdampedLangevinDiffusionTerm(1.3, 0.7, path),
        )
        pid = dfx.PIDController(0.0, tolerance, pcoeff=0.1, icoeff=0.3, dtmin=2**-10)
        counted = S.counting(SOLVERS[name][0], pid)
        found = dfx.diffeqsolve(
            terms,
            counted.solver,
            0.0,
            4.0,
            0.1,
            (jnp.array([2.0, -1.0]), jnp.zeros(2)),
            stepsize_controller=counted.controller,
            saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
        )
        steps = found.stats["num_accepted_steps"]
        return found.ys[0][0], steps, S.evaluations(found).total.drift

    def counted(tolerance):
        calls["n"] = 0
        end, steps, gradients = run(jnp.array(tolerance))
        jax.effects_barrier()
        assert int(gradients) == calls["n"]
        return end, int(steps)

    with jax.enable_x64(True):
        (exact, _), (rough, few), (good, many) = map(counted, (1e-7, 1e-2, 1e-4))
    assert many > 2 * few
    assert np.abs(good - exact).max() < 0.1 * np.abs(rough - exact).max()
