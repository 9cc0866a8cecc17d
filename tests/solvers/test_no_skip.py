"""Steps that are nodes of the tree: places, law of the path, the right limit."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


def _wedge(x, y):
    return x[0] * y[1] - x[1] * y[0]


class _Area(dfx.AbstractStratonovichSolver):
    """Lévy area of two components by chords; its error estimates set a trap.

    In each period of two long steps `[0, h], [h, 2h]` the first is rejected if
    `W_2 > 0`. Then comes `[0, h/2]`, and `[h/2, 3h/2]`, which skips `h` and is accepted
    if `W_1 > 0`. The chord over it misses an area whose mean is `-h / (4 pi)`.
    """

    long: float
    term_structure = dfx.AbstractTerm
    interpolation_cls = dfx.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def strong_order(self, terms):
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return y0

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        w = terms.contr(t0, t1)
        y1 = (y0[0] + w, y0[1] + _wedge(y0[0], w) / 2)
        phase = jnp.round(2 * t0 / self.long).astype(jnp.int32) % 4
        trap = jnp.stack([w[1] > 0, w[0] <= 0, False, True])[phase]
        rejected = trap & (t1 - t0 > 0.75 * self.long)
        error = jnp.where(rejected, 100.0, 0.01).astype(w.dtype)
        y_error = (jnp.full(2, error), error)
        return y1, y_error, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


def _mean_error_of_area(long, dyadic, keys):
    """Mean and standard error of the area's error over independent paths."""
    fine = round(2 / long)
    pid = dfx.PIDController(
        rtol=0, atol=1, factormin=0.5, factormax=2, safety=1, dtmax=long, error_order=1
    )

    @jax.jit
    @jax.vmap
    def errors(key):
        path = px.brownian.VirtualBrownianTree(0.0, 1.0, 1 / fine, (2,), key)
        controller = px.solvers.DyadicController(pid, path) if dyadic else pid
        solution = dfx.diffeqsolve(
            dfx.ControlTerm(lambda t, y, args: y, path),
            _Area(long),
            0.0,
            1.0,
            long,
            (jnp.zeros(2), jnp.zeros(())),
            stepsize_controller=controller,
            max_steps=None,
        )
        times = jnp.arange(fine) / fine
        w = jax.vmap(path.evaluate)(times, times + 1 / fine)
        before = jnp.cumsum(w, axis=0) - w
        area = jnp.sum(jax.vmap(_wedge)(before, w)) / 2
        return solution.ys[1][0] - area

    x = np.asarray(errors(keys), np.float64)
    return x.mean(), x.std() / math.sqrt(x.size)


def test_right_limit_where_skipping_has_a_wrong_one(key):
    """Skipping leaves a bias of `1 / (32 pi)` however short the steps are."""
    keys = jax.random.split(key, 4096)
    bias = 1 / (32 * math.pi)
    mean, sd = _mean_error_of_area(2.0**-6, True, keys)
    assert abs(mean) < 5 * sd
    mean, sd = _mean_error_of_area(2.0**-6, False, keys)
    assert abs(mean - bias) < 5 * sd
    assert mean > 5 * sd


class _Increments(dfx.AbstractStratonovichSolver):
    """`W` and its time integral, by what the path says of each step."""

    term_structure = dfx.AbstractTerm
    interpolation_cls = dfx.LocalLinearInterpolation
    order = _Area.order
    strong_order = _Area.strong_order
    init = _Area.init
    func = _Area.func

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        levy = terms.contr(t0, t1, use_levy=True)
        dt = t1 - t0
        y1 = (y0[0] + levy.W, y0[1] + dt * (y0[0] + levy.W / 2 + levy.H))
        # What the controller is to look at: the trial's own noise, standardised.
        w, h = levy.W / jnp.sqrt(dt), levy.H * jnp.sqrt(12 / dt)
        return y1, (w, h), {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


class _Adversary(dfx.AbstractAdaptiveStepSizeController):
    """Rejects what it doesn't like of the noise, and proposes wild lengths."""

    which: int = eqx.field(static=True)
    rtol: float = 0.0
    atol: float = 1.0
    norm = staticmethod(jnp.max)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + dt0, None

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        seen = y_error[self.which]
        keep = seen < 0.3
        dt = (t1 - t0) * jnp.where(keep, 1 + jnp.abs(seen) * 3, 0.7)
        begin = jnp.where(keep, t1, t0)
        return keep, begin, begin + dt, False, None, dfx.RESULTS.successful


@pytest.mark.parametrize("which", [0, 1], ids=["W", "H"])
def test_adversary_cannot_change_the_path(key, which):
    """Accepted steps add up to the tree's own `W` and `H`, which stay standard."""
    n = 4096

    @jax.jit
    @jax.vmap
    def solve(key):
        path = px.brownian.VirtualBrownianTree(
            0.0, 1.0, 2**-8, (), key, dfx.SpaceTimeLevyArea
        )
        solution = dfx.diffeqsolve(
            dfx.ControlTerm(lambda t, y, args: y, path),
            _Increments(),
            0.0,
            1.0,
            None,
            (jnp.zeros(()), jnp.zeros(())),
            stepsize_controller=px.solvers.DyadicController(_Adversary(which), path),
            max_steps=None,
        )
        whole = path.evaluate(0.0, 1.0, use_levy=True)
        w, j = solution.ys[0][0], solution.ys[1][0]
        return jnp.stack([w, j]), jnp.stack([whole.W, whole.W / 2 + whole.H])

    ours, trees = solve(jax.random.split(key, n))
    np.testing.assert_allclose(ours, trees, atol=2e-5)
    w, h = ours[:, 0], (ours[:, 1] - ours[:, 0] / 2) * math.sqrt(12)
    for z in (w, h):
        assert abs(jnp.mean(z)) < 5 / math.sqrt(n)
        assert abs(jnp.mean(z**2) - 1) < 5 * math.sqrt(2 / n)
    assert abs(jnp.mean(w * h)) < 5 / math.sqrt(n)


def _recorded(solve_t0, solve_t1, path, controller, dt0):
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: -y),
        dfx.ControlTerm(lambda t, y, args: jnp.outer(jnp.sin(5 * y[::-1]), y), path),
    )
    return dfx.diffeqsolve(
        terms,
        dfx.SPaRK(),
        solve_t0,
        solve_t1,
        dt0,
        jnp.ones(2),
        stepsize_controller=controller,
        saveat=dfx.SaveAt(t0=True, steps=True),
        max_steps=512,
    )


@pytest.mark.parametrize("interval", [(0.0, 3.0), (0.375, 2.25), (3.0, 0.75)])
def test_steps_are_nodes(precision, key, interval):
    """Also inside of the path's interval, and backward in time."""
    path = px.brownian.VirtualBrownianTree(
        0.0, 3.0, 3 / 2**9, (2,), key, dfx.SpaceTimeLevyArea
    )
    pid = dfx.PIDController(rtol=1e-2, atol=1e-2, pcoeff=0.1, icoeff=0.3)
    t0, t1 = (precision.dtype.type(t) for t in interval)
    dt0 = math.copysign(0.1, t1 - t0)
    solution = _recorded(t0, t1, path, px.solvers.DyadicController(pid, path), dt0)
    times = np.asarray(solution.ts[np.isfinite(solution.ts)])
    leaves = times / 3 * 2**9
    assert np.abs(leaves - np.round(leaves)).max() < 1e-3
    leaves = np.sort(np.round(leaves).astype(int))
    sizes = np.diff(leaves)
    assert (sizes & (sizes - 1) == 0).all()
    assert times[0] == t0
    assert times[-1] == t1
    start = leaves[:-1] if t1 > t0 else 2**9 - leaves[1:]
    assert (start % sizes == 0).all()
    assert len(set(sizes)) > 1
    assert np.isfinite(solution.ys[: times.size]).all()


def test_leaf_accepted_or_error(key):
    path = px.brownian.VirtualBrownianTree(
        0.0, 1.0, 1 / 4, (2,), key, dfx.SpaceTimeLevyArea
    )
    pid = dfx.PIDController(rtol=0, atol=1e-9)
    forced = px.solvers.DyadicController(pid, path)
    solution = _recorded(0.0, 1.0, path, forced, None)
    assert solution.stats["num_accepted_steps"] == 4
    strict = px.solvers.DyadicController(pid, path, depth=1, force_leaf=False)
    with pytest.raises(eqx.EquinoxRuntimeError, match="minimum step size"):
        _recorded(0.0, 1.0, path, strict, None)
    with pytest.raises(eqx.EquinoxRuntimeError, match="multiples"):
        _recorded(0.0, 0.3, path, forced, None)


def test_wrong_arguments(key):
    path = px.brownian.VirtualBrownianTree(0.0, 1.0, 1 / 4, (2,), key)
    endless = px.brownian.VirtualBrownianTree(0.0, None, 1 / 4, (2,), key)
    pid = dfx.PIDController(rtol=0, atol=1)
    controller = px.solvers.DyadicController
    with pytest.raises(TypeError, match="accept and reject"):
        controller(dfx.ClipStepSizeController(pid, step_ts=jnp.ones(1)), path)
    with pytest.raises(ValueError, match="finite interval"):
        controller(pid, endless)
    with pytest.raises(ValueError, match="at most 2"):
        controller(pid, path, depth=3)
    with pytest.raises(ValueError, match="integer"):
        controller(pid, path, depth=-1)
    other = dfx.VirtualBrownianTree(0.0, 1.0, 1 / 8, (2,), key)
    assert controller(pid, other).depth == 3
