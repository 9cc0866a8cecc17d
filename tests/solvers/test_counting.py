"""Numbers of evaluations, beside those that the host counts."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathax.solvers import Evaluations, counting, evaluations


class Host:
    """Counts calls of vector fields, and tells points apart."""

    def __init__(self):
        self.drift, self.points = 0, []

    def count(self, *_):
        self.drift += 1

    def note(self, *point):
        self.points.append(tuple(np.concatenate([np.ravel(x) for x in point])))


class Problem(NamedTuple):
    """Terms of an equation and its initial state."""

    terms: Callable
    y0: object


MATRIX = np.array([[0.0, 1.0, 2.0], [-1.0, 0.0, 0.5], [1.0, -2.0, 0.0]], np.float32)
Y0 = np.array([1.0, 0.5, -0.3], np.float32)


def _field(host, scale=2.0):
    def field(t, y, args):
        jax.debug.callback(host.count)
        return scale * (jnp.tanh(jnp.asarray(MATRIX) @ y) - y) + jnp.cos(t)

    return field


def _path(shape=(3,)):
    area = dfx.SpaceTimeTimeLevyArea
    key = jax.random.key(3)
    return dfx.VirtualBrownianTree(0.0, 1.0, 2.0**-10, shape, key, levy_area=area)


def _ode(host):
    return dfx.ODETerm(_field(host))


def _two(host):
    return dfx.MultiTerm(_ode(host), dfx.ODETerm(_field(host, 1.0)))


def _sde(host, path=None):
    def diffusion(t, y, args):
        jax.debug.callback(host.note, t, y)
        return jnp.diag(0.1 + 0.1 * y)

    path = _path() if path is None else path
    return dfx.MultiTerm(_ode(host), dfx.ControlTerm(diffusion, path))


def _simple_sde(host):
    path = dfx.VirtualBrownianTree(0.0, 1.0, 2.0**-10, (3,), jax.random.key(3))
    return _sde(host, path)


def _additive(host):
    def diffusion(t, y, args):
        jax.debug.callback(host.note, t, jnp.zeros(()))
        return (0.3 + t) * jnp.eye(3)

    return dfx.MultiTerm(_ode(host), dfx.ControlTerm(diffusion, _path()))


def _langevin(host):
    def gradient(x, args):
        jax.debug.callback(host.count)
        return x

    drift = dfx.UnderdampedLangevinDriftTerm(1.0, 1.0, gradient)
    noise = dfx.UnderdampedLangevinDiffusionTerm(1.0, 1.0, _path())
    return dfx.MultiTerm(drift, noise)


def _separable(host):
    field = lambda t, y, args: (jax.debug.callback(host.count), y)[1]
    return dfx.ODETerm(field), dfx.ODETerm(field)


LOOSE = dfx.PIDController(rtol=1e-2, atol=1e-2, dtmin=2.0**-9)
TIGHT = dfx.PIDController(rtol=1e-4, atol=1e-4)
FIXED = dfx.ConstantStepSize()
JUMPS = dfx.ClipStepSizeController(TIGHT, jump_ts=jnp.array([0.3, 0.6]))

# Solver, controller, terms, first step.
FAST = {
    "Tsit5": (dfx.Tsit5(), TIGHT, _ode, 1.0),
    "Tsit5, jumps": (dfx.Tsit5(), JUMPS, _ode, 0.2),
    "Kvaerno3": (dfx.Kvaerno3(), TIGHT, _ode, 1.0),
    "KenCarp3": (dfx.KenCarp3(), LOOSE, _two, 1.0),
    "ImplicitEuler": (dfx.ImplicitEuler(), LOOSE, _ode, 1.0),
    "Half Tsit5": (dfx.HalfSolver(dfx.Tsit5()), TIGHT, _ode, 1.0),
    "SPaRK": (dfx.SPaRK(), LOOSE, _sde, 0.5),
    "ShARK": (dfx.ShARK(), LOOSE, _additive, 0.5),
    "ReversibleHeun": (dfx.ReversibleHeun(), LOOSE, _sde, 0.5),
    "ALIGN": (dfx.ALIGN(), LOOSE, _langevin, 0.5),
}
SLOW = {
    "Bosh3": (dfx.Bosh3(), TIGHT, _ode, 1.0),
    "Dopri5": (dfx.Dopri5(), TIGHT, _ode, 1.0),
    "Dopri8": (dfx.Dopri8(), TIGHT, _ode, 1.0),
    "Euler": (dfx.Euler(), FIXED, _ode, 0.1),
    "Heun": (dfx.Heun(), LOOSE, _sde, 0.5),
    "Midpoint": (dfx.Midpoint(), LOOSE, _ode, 0.5),
    "Ralston": (dfx.Ralston(), LOOSE, _ode, 0.5),
    "LeapfrogMidpoint": (dfx.LeapfrogMidpoint(), FIXED, _ode, 0.1),
    "SemiImplicitEuler": (dfx.SemiImplicitEuler(), FIXED, _separable, 0.1),
    "Kvaerno4": (dfx.Kvaerno4(), TIGHT, _ode, 1.0),
    "Kvaerno5": (dfx.Kvaerno5(), TIGHT, _ode, 1.0),
    "KenCarp4": (dfx.KenCarp4(), LOOSE, _two, 1.0),
    "KenCarp5": (dfx.KenCarp5(), LOOSE, _two, 1.0),
    "Sil3": (dfx.Sil3(), LOOSE, _two, 1.0),
    "Half Euler": (dfx.HalfSolver(dfx.Euler()), LOOSE, _ode, 1.0),
    "Half Kvaerno3": (dfx.HalfSolver(dfx.Kvaerno3()), TIGHT, _ode, 1.0),
    "Half EulerHeun": (dfx.HalfSolver(dfx.EulerHeun()), LOOSE, _sde, 0.5),
    "SlowRK": (dfx.SlowRK(), FIXED, _sde, 0.1),
    "GeneralShARK": (dfx.GeneralShARK(), FIXED, _sde, 0.1),
    "SRA1": (dfx.SRA1(), LOOSE, _additive, 0.5),
    "SEA": (dfx.SEA(), FIXED, _additive, 0.1),
    "EulerHeun": (dfx.EulerHeun(), FIXED, _sde, 0.1),
    "ItoMilstein": (dfx.ItoMilstein(), FIXED, _simple_sde, 0.1),
    "StratonovichMilstein": (dfx.StratonovichMilstein(), FIXED, _simple_sde, 0.1),
    "ShOULD": (dfx.ShOULD(), FIXED, _langevin, 0.1),
    "QUICSORT": (dfx.QUICSORT(), FIXED, _langevin, 0.1),
}
# These evaluate at one point twice: once for the value, once for its derivative, or
# once for each integral of the noise. The rest evaluate each point once.
AT_ONE_POINT = {"SPaRK": 2, "SlowRK": 2, "GeneralShARK": 2}
SAVE = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)


def _initial(terms):
    y0 = jnp.asarray(Y0)
    pairs = {_langevin, _separable}
    return (y0, y0) if terms in pairs else y0


def _solve(terms, solver, controller, y0, dt0, saveat=SAVE):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # solvers of unknown calculus
        return dfx.diffeqsolve(
            terms,
            solver,
            0.0,
            1.0,
            dt0,
            y0,
            stepsize_controller=controller,
            saveat=saveat,
            max_steps=400,
        )


def _diffusion_of_host(name, host):
    if name == "SlowRK":  # the Lévy area's stage is at a point of its own
        return None
    return len(host.points) // AT_ONE_POINT.get(name, 1)


def _check(name, solver, controller, terms, dt0):
    host = Host()
    counted = counting(solver, controller)
    y0 = _initial(terms)
    sol = _solve(terms(host), *counted, y0, dt0)
    jax.block_until_ready(sol.ys)
    jax.effects_barrier()
    counts = evaluations(sol)
    assert int(counts.total.drift) == host.drift
    diffusion = _diffusion_of_host(name, host)
    if diffusion is not None:
        assert int(counts.total.diffusion) == diffusion
    steps = int(sol.stats["num_steps"])
    per_step = {dfx.HalfSolver: 3}.get(type(solver), 1)
    noisy = terms not in (_ode, _two, _separable)
    assert int(counts.total.noise) == per_step * steps * noisy
    rejected = int(sol.stats["num_rejected_steps"])
    assert (int(counts.rejected.drift) > 0) == (rejected > 0)
    return counts, sol


@pytest.mark.parametrize("name", FAST)
def test_equals_the_host(name):
    _check(name, *FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_equals_the_host_for_the_rest(name):
    _check(name, *SLOW[name])


@pytest.mark.parametrize("name", ["Tsit5", "Kvaerno3"])
def test_steps_stay_the_same(name):
    solver, controller, terms, dt0 = FAST[name]
    terms, y0 = terms(Host()), _initial(terms)
    ours = _solve(terms, *counting(solver, controller), y0, dt0)
    plain = _solve(terms, solver, controller, y0, dt0, dfx.SaveAt(t1=True))
    assert jnp.array_equal(ours.ys, plain.ys)
    for name in ("num_accepted_steps", "num_rejected_steps"):
        assert ours.stats[name] == plain.stats[name]


def test_formula_without_rejections_fails_with_them():
    """A first step that is rejected evaluates its first stage again."""
    counts, sol = _check("Tsit5", dfx.Tsit5(), TIGHT, _ode, 5.0)
    assert int(sol.stats["num_rejected_steps"]) > 0
    assert int(counts.total.drift) > 6 * int(sol.stats["num_steps"]) + 1


def test_each_solve_of_a_batch_has_its_own():
    solver, controller = counting(dfx.Tsit5(), TIGHT)

    def solve(y0):
        term = dfx.ODETerm(lambda t, y, args: -y * y)
        sol = _solve(term, solver, controller, y0, 0.5)
        return evaluations(sol).total.drift, sol.stats["num_steps"]

    starts = jnp.array([[0.1], [1.0], [20.0]])
    drift, steps = jax.jit(jax.vmap(solve))(starts)
    alone = [int(solve(start)[0]) for start in starts]
    assert drift.tolist() == alone
    assert len(set(steps.tolist())) == 3


def test_refuses_what_it_cannot_count():
    class Unknown(dfx.AbstractSolver):
        term_structure = dfx.AbstractTerm
        interpolation_cls = dfx.LocalLinearInterpolation

        def init(self, terms, t0, t1, y0, args):
            return None

        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            info = {"y0": y0, "y1": y0}
            return y0, None, info, None, dfx.RESULTS.successful

        func = None

    term = dfx.ODETerm(lambda t, y, args: y)
    with pytest.raises(ValueError, match="Unknown are not known"):
        _solve(term, *counting(Unknown()), jnp.ones(2), 0.5)
    with pytest.raises(TypeError):
        counting("Tsit5")  # pyright: ignore
    plain = _solve(term, dfx.Heun(), FIXED, jnp.ones(2), 0.5)
    with pytest.raises(ValueError, match="holds no numbers"):
        evaluations(plain)
    saveat = dfx.SaveAt(t1=True, solver_state=True)
    half = _solve(term, *counting(dfx.Heun(), TIGHT), jnp.ones(2), 0.5, saveat)
    with pytest.raises(ValueError, match="controller_state=True"):
        evaluations(half)


def test_a_solver_can_tell_its_own():
    class Told(dfx.AbstractSolver):
        term_structure = dfx.AbstractTerm
        interpolation_cls = dfx.LocalLinearInterpolation

        def init(self, terms, t0, t1, y0, args):
            return None

        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            info = {"y0": y0, "y1": y0}
            return y0, None, info, None, dfx.RESULTS.successful

        def evaluations(self, terms, solver_state, made_jump):
            return Evaluations(drift=7)

        func = None

    term = dfx.ODETerm(lambda t, y, args: y)
    sol = _solve(term, *counting(Told()), jnp.ones(2), 0.25)
    assert int(evaluations(sol).total.drift) == 28
