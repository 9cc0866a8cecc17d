"""Langevin samples: the right law, honest accounts, a warm-up that adapts."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.simulation import ConditionalScale
from pathax.simulation._conditional import conditional
from pathax.simulation._mass import adapted


CHAINS, SD = 32, np.array([1.0, 10.0, 0.2])
CORRELATION = 0.9  # of the first two


def covariance():
    rho = np.eye(3)
    rho[0, 1] = rho[1, 0] = CORRELATION
    return rho * SD[:, None] * SD[None]


def potential(x):
    precision = jnp.asarray(np.linalg.inv(covariance()), x.dtype)
    return 0.5 * x @ precision @ x


def sample(f=potential, samples=96, d=3, dtype=jnp.float32, **options):
    initial = jax.random.normal(jax.random.key(1), (CHAINS, d), dtype)
    key = jax.random.key(0)
    return px.simulation.langevin(f, key, initial, samples=samples, **options)


@pytest.fixture(scope="module")
def adaptive():
    return sample(tolerance=0.05, mass="diagonal")


@pytest.fixture(scope="module")
def constant():
    return sample()


def check_law(found, limit):
    """Means and variances within `limit` of their Monte Carlo errors."""
    x = np.asarray(found.samples, np.float64)
    for values, exact in ((x, np.zeros(3)), (x**2, SD**2)):
        ess = px.simulation.diagnose(values).ess_bulk
        error = values.std((0, 1)) / np.sqrt(ess)
        assert (np.abs(values.mean((0, 1)) - exact) < limit * error).all()


@pytest.mark.parametrize("run", ["adaptive", "constant"])
def test_law(run, request):
    """Six errors are a false alarm in 1e8; the bias of the steps is below one."""
    found = request.getfixturevalue(run)
    assert found.samples.shape == (CHAINS, 96, 3)
    check_law(found, 6)
    quality = px.simulation.diagnose(found.samples)
    assert (quality.r_hat < 1.02).all()


def test_the_check_of_the_law_has_power():
    """A spread that is a tenth too large is seen."""
    x = np.random.default_rng(0).normal(size=(CHAINS, 96, 3)) * SD
    wide = px.simulation.LangevinSamples(jnp.asarray(1.1 * x), *(0,) * 10)
    with pytest.raises(AssertionError):
        check_law(wide, 6)


def test_warm_up_learns_scales(adaptive, constant):
    """Ratios of variances, and the covariance; the rest is a unit of time."""
    assert adaptive.scale.shape == (3,)
    ratios = np.asarray(adaptive.scale) / SD
    np.testing.assert_allclose(ratios / ratios[0], 1, rtol=0.3)
    # The slowest direction of what the variances leave.
    np.testing.assert_allclose(ratios**2, 1 + CORRELATION, rtol=0.4)
    square = np.asarray(constant.scale @ constant.scale.T)
    whitened = np.linalg.solve(covariance(), square)
    np.testing.assert_allclose(np.linalg.eigvals(whitened), 1, rtol=0.4)


def test_a_dense_mass_needs_fewer_gradients_for_correlations(adaptive, constant):
    """An effective sample costs less, by the account that is tested below."""
    costs = []
    for found in (adaptive, constant):
        ess = px.simulation.diagnose(found.samples).ess_bulk.min()
        costs.append(found.gradients / ess)
    assert costs[1] < 0.5 * costs[0]
    assert costs[1] < 6  # a Gaussian of unit covariance: two steps a sample


def test_the_warm_up_is_short(constant):
    """From far away, in wrong units, to the law of the target in eight rounds."""
    rounds = np.asarray(constant.warmup_samples, np.float64)
    assert rounds.shape == (CHAINS, 8, 3)
    off = np.sqrt(np.mean((rounds / SD) ** 2, (0, 2)))
    assert abs(off[-1] - 1) < 0.4
    assert constant.warmup_gradients < 100 * CHAINS
    spent = constant.gradients_by_sample
    assert spent.shape == (8 + 96,)
    assert (np.diff(spent) > 0).all()
    assert spent[-1] == constant.gradients + constant.warmup_gradients


def test_gradients_are_counted(adaptive):
    """Every evaluation of the gradient, of all chains, as the host sees them."""
    calls = np.zeros(2, np.int64)

    def seen(_):
        calls[0] += 1

    @jax.custom_jvp
    def f(x):
        return 0.5 * jnp.sum(x**2)

    @f.defjvp
    def _(primals, tangents):
        (x,), (v,) = primals, tangents
        jax.debug.callback(seen, x[0])
        return f(x), jnp.sum(x * v)

    options = {"samples": 3, "spacing": 1.0, "warmup": 0, "mass": "identity"}
    found = sample(f, d=2, step=0.25, **options)
    jax.effects_barrier()
    # One where a chain starts, and two a step.
    assert found.warmup_gradients == CHAINS
    assert found.gradients == CHAINS * 3 * 4 * 2
    # All chains take as many steps here, so a call of one is a call of all. Another one
    # is made where the solver's state has its shape from, and not used.
    assert calls[0] == found.gradients + 2 * CHAINS
    assert found.gradients_per_sample == 8
    assert (found.step, found.rejected_gradients) == (0.25, 0)
    assert adaptive.gradients >= 3 * CHAINS * 96


@pytest.mark.slow
def test_solver_with_its_own_estimate():
    found = sample(solver=dfx.ALIGN(), tolerance=0.03, samples=32)
    assert found.rejected_gradients > 0
    assert found.gradients < 60 * CHAINS * 32
    check_law(found, 6)


@pytest.mark.slow
def test_keys_and_double_precision():
    """The same key gives the same samples, however many."""
    options = {"warmup": 0, "step": 0.5, "dtype": jnp.float64}
    with jax.enable_x64(True):
        few, more = (sample(samples=n, **options).samples for n in (2, 4))
        assert few.dtype == jnp.float64
        np.testing.assert_array_equal(few, more[:, :2])


def test_scales_of_points_far_from_the_law():
    """The covariance of a Gaussian, wherever its gradients are taken."""
    rng, unit = np.random.default_rng(0), np.ones(3)
    x = 5 + 30 * rng.normal(size=(2000, 3)) * [1.0, 2.0, 0.5]
    g = (x - 1.0) @ np.linalg.inv(covariance())
    dense = adapted(adapted(unit, x, g, "dense"), x, g, "dense")
    whitened = np.linalg.solve(covariance(), dense @ dense.T)
    np.testing.assert_allclose(np.linalg.eigvals(whitened), 1, rtol=0.2)
    found = adapted(unit, x, g, "diagonal")
    np.testing.assert_allclose(found, SD * np.sqrt(1 + CORRELATION), rtol=0.3)
    np.testing.assert_array_equal(adapted(unit, x, g, "identity"), unit)


def test_scales_of_heavy_tails_and_few_points():
    rng = np.random.default_rng(0)
    x = rng.standard_cauchy(size=(4000, 2))
    found = adapted(np.ones(2), x, 2 * x / (1 + x**2), "diagonal")
    assert x.std() > 10
    assert (found < 5).all()
    # Three points in ten dimensions change little.
    few = rng.normal(size=(3, 10))
    factor = adapted(np.ones(10), few, few, "dense")
    assert np.linalg.cond(factor) < 10
    np.testing.assert_array_equal(adapted(factor, few[:1], few[:1], "dense"), factor)


# Conditional scales -----------------------------------------------------------------


def a_map(rng, d=4):
    lower = lambda: np.tril(rng.normal(size=(d, d)), -1)
    order = np.array([2, 0, 3, 1])
    a, m = 0.3 * rng.normal(size=d), rng.normal(size=d)
    return ConditionalScale(order, m, lower(), a, 0.3 * lower())


def test_a_map_and_its_parts_agree(rng):
    """Inverse, volume and gradients, against JAX's derivatives."""
    of, z = a_map(rng), rng.normal(size=(5, 4))
    with jax.enable_x64(True):
        traced = of.cast(np.dtype(np.float64))
        x = np.asarray(jax.vmap(traced.to_x)(jnp.asarray(z)))
        jacobians = np.asarray(jax.vmap(jax.jacobian(traced.to_x))(jnp.asarray(z)))
        volumes = np.asarray(jax.vmap(traced.log_volume)(jnp.asarray(z)))
    np.testing.assert_allclose(of.to_z(x), z, atol=1e-12)
    constant = np.linalg.slogdet(jacobians)[1] - volumes
    np.testing.assert_allclose(constant, of.log_scale.sum(), atol=1e-12)
    # Of the potential of `z`: that of `x`, less the log of the volume.
    g = rng.normal(size=(5, 4))
    with jax.enable_x64(True):
        pulled = lambda z, g: traced.to_x(z) @ g - traced.log_volume(z)
        exact = np.asarray(jax.vmap(jax.grad(pulled))(jnp.asarray(z), jnp.asarray(g)))
    np.testing.assert_allclose(of.slopes_to_z(z, g), exact, atol=1e-12)
    np.testing.assert_allclose(of.slopes_to_x(z, exact), g, atol=1e-12)


def funnel(x):
    """Six entries whose scale is the exponential of the last, over two."""
    y, log_variance = x[:-1], x[-1]
    scaled = 0.5 * jnp.sum(y**2) * jnp.exp(-log_variance)
    return scaled + 3 * log_variance + log_variance**2 / 18


def test_a_funnel_is_known_from_points_that_are_nowhere_near_its_law(rng):
    """The entry that rules the others is found, and half of its spread as their rate:
    from the normal law, where none of them is wide.
    """
    x = rng.normal(size=(200, 7))
    g = np.asarray(jax.vmap(jax.grad(funnel))(jnp.asarray(x, jnp.float32)))
    found = conditional(x, g.astype(np.float64), capacity=256)
    assert found.order[0] == 6
    np.testing.assert_allclose(np.exp(found.log_scale[0]), 3.0, rtol=0.2)
    np.testing.assert_allclose(found.rates[1:, 0], 1.5, rtol=0.2)
    assert np.abs(found.rates[:, 1:]).max() < 0.1
    z = found.to_z(x)
    left = found.slopes_to_z(z, g) - z
    assert np.sqrt(np.mean(left**2)) < 0.1
    # No linear map comes near.
    factor = adapted(np.ones(7), x, g, "dense")
    z = np.linalg.solve(factor, x.T).T
    assert np.sqrt(np.mean((g @ factor - z) ** 2)) > 0.5


def test_a_fit_of_few_points_is_finite():
    x = np.random.default_rng(0).normal(size=(3, 10))
    found = conditional(x, x, capacity=8)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(found))


@pytest.fixture(scope="module")
def hierarchy():
    return sample(funnel, d=7, mass="conditional", tolerance=0.1)


def test_the_law_of_a_funnel(hierarchy):
    """Means and variances of the ruling entry, and of the others in its units."""
    x = np.asarray(hierarchy.samples, np.float64)
    rule = x[..., -1:]
    units = np.concatenate([x[..., :-1] * np.exp(-rule / 2), rule / 3], axis=-1)
    for values, exact in ((units, 0.0), (units**2, 1.0)):
        ess = px.simulation.diagnose(values).ess_bulk
        error = values.std((0, 1)) / np.sqrt(ess)
        assert (np.abs(values.mean((0, 1)) - exact) < 6 * error).all()
    assert (px.simulation.diagnose(x).r_hat < 1.02).all()
    assert isinstance(hierarchy.scale, ConditionalScale)


def test_a_funnel_costs_what_a_normal_density_does(hierarchy):
    ess = px.simulation.diagnose(hierarchy.samples).ess_bulk.min()
    assert hierarchy.gradients / ess < 15
    assert hierarchy.warmup_gradients < 150 * CHAINS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 0}, "at least 1"),
        ({"spacing": 0.0}, "must be positive"),
        ({"mass": "full"}, "one of diagonal, dense, conditional, identity"),
        ({"step": 0.1, "tolerance": 0.1}, "either adaptive"),
        ({"step": 5.0}, "at most `spacing`"),
    ],
)
def test_misuse(options, says):
    with pytest.raises(ValueError, match=says):
        sample(**options)
    with pytest.raises(ValueError, match=r"shape \(chains, d\)"):
        px.simulation.langevin(potential, jax.random.key(0), jnp.zeros(3), samples=1)


@pytest.mark.slow
def test_chains_that_leave_the_numbers():
    with pytest.raises(RuntimeError, match="left the numbers"):
        sample(lambda x: -jnp.sum(x**4), samples=4, warmup=1, max_steps=64, d=2)


# Diagnostics ------------------------------------------------------------------------


def test_r_hat_sees_chains_that_do_not_mix(rng):
    x = rng.normal(size=(4, 200, 2))
    x[0, :, 1] += 3
    found = px.simulation.diagnose(x)
    assert found.r_hat[0] < 1.02
    assert found.r_hat[1] > 1.2
    assert found.ess_bulk[1] < 50 < found.ess_bulk[0]
    assert found.ess_tail.shape == (2,)
    with pytest.raises(ValueError, match="chains, samples, d"):
        px.simulation.diagnose(x[0])


def test_energy_distance(rng, precision):
    """Against all pairs; and it sees a wrong spread."""
    x, y = rng.normal(size=(40, 3)), 0.5 + rng.normal(size=(30, 3))
    far = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2).sum()
    want = 2 * far(x, y) / 1200 - far(x, x) / (40 * 39) - far(y, y) / (30 * 29)
    a, b = (jnp.asarray(v, precision.dtype) for v in (x, y))
    for rows in (512, 7):
        got = px.simulation.energy_distance(a, b, rows=rows)
        np.testing.assert_allclose(got, want, atol=precision.tolerance(64))
    same = px.simulation.energy_distance(a[:20], a[20:])
    assert abs(float(same)) < 0.3 < float(px.simulation.energy_distance(a, 3 * a))
    with pytest.raises(ValueError, match="the same d"):
        px.simulation.energy_distance(a, b[:, :2])
