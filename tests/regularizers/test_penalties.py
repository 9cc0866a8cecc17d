"""Penalties over all steps: values, derivatives, and steps left as they were."""

import warnings

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from problems import cde, field, imex, inputs, ode, sde, tolerance

from pathax.regularizers import (
    Error,
    StepCost,
    StepCount,
    Stiffness,
    Tolerances,
    _solve,
    solve,
)
from pathax.regularizers._wrapper import RegularizedSolver
from pathax.solvers import counting
from pathax.solvers._augmented import without_extra


ALL = {
    "error": Error(),
    "mean": Error(reduction="mean"),
    "max": Error(reduction="max"),
    "per_time": Error(2, reduction="time_mean"),
    "squared": Error(2),
    "cost": StepCost(),
    "count": StepCount(),
    "stiffness": Stiffness(),
}


def run(terms, solver, controller, y0, args, penalties=ALL, dt0=0.1, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solve(
            terms,
            solver,
            0.0,
            1.0,
            dt0,
            y0,
            args,
            penalties=penalties,
            stepsize_controller=controller,
            **options,
        )


# Steps stay as they were ------------------------------------------------------------

LOOSE = tolerance(1e-2, dtmin=2.0**-9)
SOLVERS = {
    "Tsit5": (dfx.Tsit5(), tolerance(1e-4), ode),
    "Kvaerno3": (dfx.Kvaerno3(), tolerance(1e-3), ode),
    "KenCarp3": (dfx.KenCarp3(), tolerance(1e-3), imex),
    "SPaRK": (dfx.SPaRK(), LOOSE, sde),
    "Half Euler": (dfx.HalfSolver(dfx.Euler()), tolerance(1e-2), ode),
}
MORE_SOLVERS = {
    "Dopri5": (dfx.Dopri5(), tolerance(1e-4), ode),
    "Dopri8": (dfx.Dopri8(), tolerance(1e-4), ode),
    "Bosh3": (dfx.Bosh3(), tolerance(1e-3), ode),
    "Heun": (dfx.Heun(), LOOSE, sde),
    "ReversibleHeun": (dfx.ReversibleHeun(), LOOSE, sde),
    "Kvaerno5": (dfx.Kvaerno5(), tolerance(1e-4), ode),
    "KenCarp5": (dfx.KenCarp5(), tolerance(1e-4), imex),
    "ImplicitEuler": (dfx.ImplicitEuler(), tolerance(1e-2), ode),
    "Half EulerHeun": (dfx.HalfSolver(dfx.EulerHeun()), LOOSE, sde),
}


def _check_transparent(solver, controller, terms, dtype):
    """The same steps; the compiler may round a sum of stages otherwise, by an ulp."""
    y0, args = inputs(dtype)
    terms = terms()
    penalties = {"error": Error(), "cost": StepCost(), "count": StepCount()}

    @jax.jit
    def both(y0, args):
        return run(terms, solver, controller, y0, args, penalties, 0.7)

    @jax.jit
    def bare(y0, args):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dfx.diffeqsolve(
                terms,
                solver,
                0.0,
                1.0,
                0.7,
                y0,
                args,
                stepsize_controller=controller,
            )

    (sol, record), plain = both(y0, args), bare(y0, args)
    eps = jnp.finfo(dtype).eps
    np.testing.assert_allclose(sol.ys, plain.ys, rtol=100 * eps, atol=10 * eps)
    for name in ("num_accepted_steps", "num_rejected_steps"):
        assert sol.stats[name] == plain.stats[name]
    assert int(record.penalties["count"]) == int(plain.stats["num_accepted_steps"])
    assert jnp.isfinite(record.penalties["error"])
    assert record.penalties["error"].dtype == dtype
    assert jax.tree.structure(sol) == jax.tree.structure(plain)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_stay_as_they_were(name):
    _check_transparent(*SOLVERS[name], np.dtype("float32"))


def test_a_controlled_equation_keeps_its_steps():
    controlled = lambda: cde(np.float32)
    _check_transparent(dfx.Tsit5(), tolerance(1e-3), controlled, np.dtype("float32"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS | MORE_SOLVERS)
def test_steps_stay_as_they_were_in_both_precisions(name, precision):
    _check_transparent(*(SOLVERS | MORE_SOLVERS)[name], precision.dtype)


EXACT = {
    "Tsit5": (dfx.Tsit5(), ode),
    "Half Heun": (dfx.HalfSolver(dfx.Heun()), ode),
}
MORE_EXACT = {
    "Bosh3": (dfx.Bosh3(), ode),
    "Dopri8": (dfx.Dopri8(), ode),
    "Kvaerno3": (dfx.Kvaerno3(), ode),
    "Kvaerno5": (dfx.Kvaerno5(), ode),
    "KenCarp4": (dfx.KenCarp4(), imex),
    "SPaRK": (dfx.SPaRK(), sde),
    "Heun": (dfx.Heun(), sde),
    "ReversibleHeun": (dfx.ReversibleHeun(), sde),
    "Half EulerHeun": (dfx.HalfSolver(dfx.EulerHeun()), sde),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("end", [0.1, 30.0])
def test_a_step_is_the_same_to_the_last_bit(name, end, precision):
    _check_exact(*EXACT[name], end, precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_EXACT)
def test_a_step_of_any_kind_is_the_same_to_the_last_bit(name, precision):
    _check_exact(*MORE_EXACT[name], 0.1, precision)


def _check_exact(solver, terms, end, precision):
    """Operation by operation; a step that would be rejected, too."""
    y0, args = inputs(precision.dtype)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        solver = _solve._with_tolerances(solver, tolerance(1e-4))
    counted, _ = counting(solver, tolerance(1e-4))
    wrapper = RegularizedSolver(
        counted,
        (Error(), StepCost()),
        (),
        Tolerances(1e-4, 1e-4),
        None,
        ("error", "cost"),
    )
    times, terms = [jnp.asarray(t, precision.dtype) for t in (0.0, end)], terms()

    def step(solver):
        state = solver.init(terms, *times, y0, args)
        return solver.step(terms, *times, y0, args, state, False)

    ours, plain = step(wrapper), step(solver)
    assert jnp.array_equal(ours[0], plain[0])
    assert jnp.array_equal(ours[1].error, plain[1])
    assert eqx.tree_equal(ours[2], plain[2])
    assert eqx.tree_equal(without_extra(ours[3].inner.inner), plain[3])


# Values -----------------------------------------------------------------------------


def by_hand(solver, y0, args, rtol, dt0):
    """An accept-reject loop of its own: steps, and the scaled errors of those rejected.

    The controller's rules are those of its documentation: safety factor 0.9, factors
    from 0.2 to 10, never more than 0.9 after a rejection nor less than 1 otherwise.
    """
    terms, t, h = dfx.ODETerm(field), 0.0, dt0
    step = jax.jit(
        lambda t0, t1, y: solver.step(
            terms, t0, t1, y, args, solver.init(terms, t0, t1, y, args), False
        )[:2]
    )
    steps, rejected = [], []
    while t < 1.0:
        end = min(t + h, 1.0)
        y1, error = step(jnp.asarray(t, y0.dtype), jnp.asarray(end), y0)
        size = rtol + rtol * np.maximum(np.abs(y0), np.abs(y1))
        q = float(np.sqrt(np.mean((np.asarray(error) / size) ** 2)))
        factor = 0.9 * q ** (-1 / 5)
        if q < 1:
            steps.append((end - t, q))
            h, t, y0 = (end - t) * np.clip(factor, 1.0, 10.0), end, y1
        else:
            rejected.append((end - t, q))
            h = (end - t) * np.clip(factor, 0.2, 0.9)
    return np.array(steps).T, np.array(rejected).T


def test_values_are_those_of_a_loop_by_hand():
    """With a rejected first step, and the last one cut at the end."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        controller = tolerance(1e-3)
        _, record = run(ode(), dfx.Tsit5(), controller, y0, args, dt0=0.5)
        (h, q), rejected = by_hand(dfx.Tsit5(), y0, args, 1e-3, 0.5)
        assert len(rejected[0]) > 0
        attempts = int(record.attempted_steps) - int(record.accepted_steps)
        assert attempts == len(rejected[0])
        expected = {
            "error": np.sum(q * h),
            "mean": np.mean(q * h),
            "max": np.max(q * h),
            "per_time": np.sum(q**2),
            "squared": np.sum(q**2),
            "cost": np.sum(q ** (1 / 5)),
            "count": len(q),
        }
        # The estimate is a difference of stages, so its rounding is that of the state
        # in units of the tolerance.
        rtol = 1e-16 / 1e-3 * 10
        for name, value in expected.items():
            np.testing.assert_allclose(record.penalties[name], value, rtol=rtol)
        np.testing.assert_allclose(record.mean_error, q.mean(), rtol=rtol)
        np.testing.assert_allclose(record.largest_error, q.max(), rtol=rtol)
        # A loop that adds rejected steps, too, gives another number.
        wrong = np.sum(q * h) + np.sum(np.prod(rejected, 0))
        assert abs(record.penalties["error"] / wrong - 1) > 1e-2


def test_batch_equals_a_loop(precision):
    y0, args = inputs(precision.dtype)
    batch = jnp.stack([y0, 3 * y0, -5 * y0])
    controller = tolerance(1e-4)
    one = jax.jit(lambda y: run(ode(), dfx.Tsit5(), controller, y, args)[1])
    together = jax.jit(jax.vmap(one))(batch)
    # An estimate of the error is a difference, so rounding weighs more than its eps.
    rtol = 5e-2 if precision.dtype == np.float32 else 1e-9
    for i, y in enumerate(batch):
        alone = one(y)
        for name in ALL:
            np.testing.assert_allclose(
                together.penalties[name][i], alone.penalties[name], rtol=rtol
            )
        assert together.evaluations.total.drift[i] == alone.evaluations.total.drift
    assert len(set(together.attempted_steps.tolist())) > 1


def test_penalties_evaluate_nothing():
    """A count on the host, with rejected steps, is what the record says."""
    y0, args = inputs(np.float32)
    seen = []

    def counted(t, y, matrix):
        jax.debug.callback(lambda: seen.append(1))
        return field(t, y, matrix)

    @jax.jit
    def record(y0, args):
        terms = dfx.ODETerm(counted)
        return run(terms, dfx.Dopri5(), tolerance(1e-4), y0, args, ALL, 0.7)[1]

    out = jax.block_until_ready(record(y0, args))
    jax.effects_barrier()
    assert out.attempted_steps > out.accepted_steps
    assert int(out.evaluations.total.drift) == len(seen)


def test_a_joint_batch_is_one_equation():
    """Errors are averaged over a batch that is solved together."""
    y0, args = inputs(np.float32)
    batch = jnp.stack([y0, 3 * y0], axis=1)
    together = dfx.ODETerm(jax.vmap(field, (None, 1, None), 1))
    penalties = {"error": Error()}
    _, joint = run(together, dfx.Tsit5(), tolerance(1e-4), batch, args, penalties)
    assert joint.penalties["error"].shape == ()
    _, alone = run(ode(), dfx.Tsit5(), tolerance(1e-4), 3 * y0, args, penalties)
    assert abs(joint.penalties["error"] - alone.penalties["error"]) > 1e-3


# Derivatives ------------------------------------------------------------------------


def test_derivative_at_frozen_steps():
    """By finite differences, replaying the steps that were taken."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        names = ("error", "squared", "cost", "stiffness")
        penalties = {name: ALL[name] for name in names}
        saveat = dfx.SaveAt(t0=True, steps=True)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

        def adaptive(args):
            sol, record = run(
                ode(),
                dfx.Tsit5(),
                tolerance(1e-5),
                y0,
                args,
                penalties,
                saveat=saveat,
                max_steps=64,
            )
            return record.penalties, sol.ts

        @jax.jit
        def frozen(args, ts):
            _, record = run(
                ode(),
                dfx.Tsit5(),
                dfx.StepTo(ts=ts),
                y0,
                args,
                penalties,
                None,
                tolerances=Tolerances(1e-5, 1e-5),
            )
            return record.penalties

        gradients, ts = jax.jit(jax.jacrev(adaptive, has_aux=True))(args)
        ts = ts[jnp.isfinite(ts)]
        h = 2e-4
        at = {s: frozen(args + s * h * direction, ts) for s in (-2, -1, 1, 2)}
        for name in names:
            near, far = (at[s][name] - at[-s][name] for s in (1, 2))
            differences = (8 * near - far) / (12 * h)
            exact = jnp.sum(gradients[name] * direction)
            np.testing.assert_allclose(exact, differences, rtol=1e-6)


def test_derivatives_are_finite_where_errors_are_not():
    """A zero error, a rejected step with an infinite one, and a failed root finder."""
    penalties = {"error": Error(), "cost": StepCost(), "squared": Error(2)}

    def total(scale, function, solver, dt0):
        _, record = solve(
            dfx.ODETerm(function),
            solver,
            0.0,
            1.0,
            dt0,
            jnp.ones(2),
            scale,
            penalties=penalties,
            stepsize_controller=tolerance(1e-4),
        )
        return sum(record.penalties.values()), record

    gradient = jax.value_and_grad(total, has_aux=True)
    constant = lambda t, y, s: jnp.full(2, s)
    (value, _), slope = gradient(1.0, constant, dfx.Tsit5(), 0.1)
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope)
    blows_up = lambda t, y, s: (
        s * jnp.where(y < 30, y**2 * (1 - y), jnp.inf) + 1 / (1 + t)
    )
    (value, record), slope = gradient(40.0, blows_up, dfx.ImplicitEuler(), 1.0)
    assert record.attempted_steps > record.accepted_steps
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope)


def test_the_norm_without_care_fails():
    """The root mean square by itself has no derivative at infinity."""
    error = jnp.array([1.0, jnp.inf])
    wrong = lambda s: jnp.where(False, optx.rms_norm(s * error), 0.0)
    assert not jnp.isfinite(jax.grad(wrong)(1.0))


# Stiffness --------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [dfx.Tsit5(), dfx.Dopri5(), dfx.Dopri8()], ids=str)
def test_stiffness_is_the_spectral_radius(solver, precision):
    rates = jnp.asarray([-50.0, -1.0], precision.dtype)
    penalties = {
        "stages": Stiffness(reduction="time_mean"),
        "field": Stiffness(form="field", reduction="mean", weighted=False),
        "scaled": Stiffness(reduction="max", weighted=False, scale="stability"),
    }
    _, record = solve(
        dfx.ODETerm(lambda t, y, args: rates * y),
        solver,
        0.0,
        0.02,
        0.02,
        jnp.ones(2, precision.dtype),
        penalties=penalties,
    )
    # Stages differ by high powers of the step, so rounding weighs more than its eps.
    rtol = 2e-2 if precision.dtype == np.float32 else 1e-6
    np.testing.assert_allclose(record.penalties["stages"], 50.0, rtol=rtol)
    np.testing.assert_allclose(record.penalties["field"], 50.0, rtol=2e-2)
    scale = {"Tsit5": 3.5068, "Dopri5": 3.3066, "Dopri8": 5.8641}
    expected = 50.0 / scale[type(solver).__name__]
    np.testing.assert_allclose(record.penalties["scaled"], expected, rtol=rtol)


def test_stages_at_different_times_are_no_estimate():
    """What would come out of the last two stages of Bosh3 on a forced equation."""
    with pytest.raises(ValueError, match='form="field"'):
        solve(
            dfx.ODETerm(lambda t, y, args: -y + jnp.sin(50 * t)),
            dfx.Bosh3(),
            0.0,
            1.0,
            0.1,
            jnp.ones(2),
            penalties={"stiffness": Stiffness(form="stages")},
        )
    _, record = solve(
        dfx.ODETerm(lambda t, y, args: -y + jnp.sin(50 * t)),
        dfx.Bosh3(),
        0.0,
        1.0,
        0.1,
        jnp.ones(2),
        penalties={"stiffness": Stiffness(reduction="time_mean")},
    )
    np.testing.assert_allclose(record.penalties["stiffness"], 1.0, rtol=1e-4)


def test_stiffness_of_a_constant_field_is_zero():
    def value(scale):
        _, record = solve(
            dfx.ODETerm(lambda t, y, s: jnp.full(2, s)),
            dfx.Tsit5(),
            0.0,
            1.0,
            0.1,
            jnp.ones(2),
            scale,
            penalties={"stiffness": Stiffness()},
        )
        return record.penalties["stiffness"]

    assert jax.value_and_grad(value)(2.0) == (0.0, 0.0)


# What is refused --------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [Error(), Stiffness(), StepCost()], ids=repr)
def test_backsolve_is_refused(penalty):
    y0, args = inputs(np.float32)
    with pytest.raises(ValueError, match="RecursiveCheckpointAdjoint"):
        run(
            ode(),
            dfx.Tsit5(),
            tolerance(1e-4),
            y0,
            args,
            {"penalty": penalty},
            adjoint=dfx.BacksolveAdjoint(),
        )


def test_why_backsolve_is_refused(monkeypatch):
    """Diffrax gives a zero derivative of what a solver accumulates, without a word."""
    monkeypatch.setattr(_solve, "check_adjoint", lambda *_: None)
    y0, args = inputs(np.float32)

    def value(args):
        options = {"adjoint": dfx.BacksolveAdjoint()}
        penalties = {"error": Error()}
        controller = tolerance(1e-4)
        _, record = run(ode(), dfx.Tsit5(), controller, y0, args, penalties, **options)
        return record.penalties["error"]

    found, gradient = jax.value_and_grad(value)(args)
    assert found > 0.1
    assert jnp.all(gradient == 0)


def test_other_misuse_is_refused():
    y0, args = inputs(np.float32)
    with pytest.raises(ValueError, match="HalfSolver"):
        run(
            ode(),
            dfx.Euler(),
            dfx.ConstantStepSize(),
            y0,
            args,
            {"error": Error()},
            tolerances=Tolerances(1e-3, 1e-3),
        )
    with pytest.raises(ValueError, match="tolerances="):
        run(ode(), dfx.Tsit5(), dfx.ConstantStepSize(), y0, args, {"error": Error()})
    with pytest.raises(ValueError, match="has its own"):
        run(
            ode(),
            dfx.Tsit5(),
            tolerance(1e-3),
            y0,
            args,
            {"error": Error()},
            tolerances=Tolerances(1e-3, 1e-3),
        )
    with pytest.raises(TypeError):
        run(ode(), dfx.Tsit5(), tolerance(1e-3), y0, args, {"error": "Error"})
    with pytest.raises(ValueError, match="ImplicitAdjoint"):
        run(
            ode(),
            dfx.Tsit5(),
            tolerance(1e-3),
            y0,
            args,
            {"count": StepCount()},
            adjoint=dfx.ImplicitAdjoint(),
        )
    for wrong in (
        lambda: Error(3),
        lambda: Error(reduction="median"),
        lambda: Stiffness(form="some"),
        lambda: Stiffness(scale="big"),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


# Where a solve starts and ends ------------------------------------------------------


def test_chained_solves_add():
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        penalties = {"error": Error(), "cost": StepCost()}
        controller = dfx.ClipStepSizeController(
            tolerance(1e-6), step_ts=jnp.array([0.5])
        )
        saveat = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)

        def part(t0, t1, y0, dt0, **options):
            return solve(
                ode(),
                dfx.Tsit5(),
                t0,
                t1,
                dt0,
                y0,
                args,
                penalties=penalties,
                stepsize_controller=controller,
                saveat=saveat,
                **options,
            )

        _, whole = part(0.0, 1.0, y0, 0.1)
        first, one = part(0.0, 0.5, y0, 0.1)
        # The step that the controller would have taken is the one to go on with.
        second, two = part(0.5, 1.0, first.ys[-1], 0.1, solver_state=first.solver_state)
        evaluations = two.evaluations.total.drift
        assert int(evaluations) == 6 * int(two.attempted_steps)
        saved = saveat.solver_state and first.solver_state[1].shape == (3,)
        assert saved
        plain = dfx.diffeqsolve(
            ode(),
            dfx.Tsit5(),
            0.5,
            1.0,
            0.1,
            first.ys[-1],
            args,
            stepsize_controller=controller,
            solver_state=first.solver_state,
        )
        assert jnp.array_equal(plain.ys, second.ys)
        total = one.penalties["cost"] + two.penalties["cost"]
        steps = one.accepted_steps + two.accepted_steps
        assert abs(float(total - whole.penalties["cost"])) <= int(steps)


def test_backwards_in_time(precision):
    y0, args = inputs(precision.dtype)
    penalties = {"error": Error(), "cost": StepCost(), "stiffness": Stiffness()}
    zero = jnp.zeros((), precision.dtype)

    def record(function, t0, t1, dt0):
        return solve(
            dfx.ODETerm(function),
            dfx.Tsit5(),
            zero + t0,
            zero + t1,
            zero + dt0,
            y0,
            args,
            penalties=penalties,
            stepsize_controller=tolerance(1e-4),
        )[1]

    mirrored = lambda t, y, m: -field(-t, y, m)
    forward = record(mirrored, 0.0, 1.0, 0.1)
    backward = record(field, 0.0, -1.0, -0.1)
    for name in penalties:
        np.testing.assert_allclose(
            forward.penalties[name],
            backward.penalties[name],
            rtol=precision.tolerance(5e4),
        )
    assert backward.time == 1


def test_an_event_cuts_the_last_step():
    """Only the part of the step before it counts."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        penalties = {"error": Error(), "count": StepCount(), "max": ALL["max"]}
        at = lambda t, y, args, **_: t - 0.35

        def record(event, controller=None, t1=1.0, **options):
            return solve(
                ode(),
                dfx.Tsit5(),
                0.0,
                t1,
                0.1,
                y0,
                args,
                penalties=penalties,
                event=event,
                stepsize_controller=controller,
                tolerances=Tolerances(1e-3, 1e-3),
                **options,
            )

        event = dfx.Event(at, optx.Newton(1e-10, 1e-10))
        sol, cut = record(event)
        _, whole = record(None, t1=0.4)
        _, before = record(None, t1=0.3)
        np.testing.assert_allclose(cut.time, 0.35, rtol=1e-9)
        np.testing.assert_allclose(sol.ts[-1], 0.35, rtol=1e-9)
        half = (whole.penalties["error"] + before.penalties["error"]) / 2
        np.testing.assert_allclose(cut.penalties["error"], half, rtol=1e-8)
        np.testing.assert_allclose(cut.penalties["count"], 3.5, rtol=1e-8)
        assert cut.penalties["max"] == whole.penalties["max"]
        assert cut.complete


def test_an_unfinished_solve_says_so():
    y0, args = inputs(np.float32)
    _, record = run(
        ode(),
        dfx.Tsit5(),
        tolerance(1e-6),
        y0,
        args,
        {"error": Error()},
        max_steps=3,
        throw=False,
    )
    assert not record.complete


def test_forced_steps_are_clipped():
    y0, args = inputs(np.float32)
    controller = tolerance(1e-6, dtmin=0.2, force_dtmin=True)
    _, record = run(ode(), dfx.Tsit5(), controller, y0, args, {"error": Error()}, 0.2)
    assert record.clipped
    assert record.largest_error == 10
    assert 1 < record.penalties["error"] <= 10


def test_every_way_to_save_gives_the_same():
    y0, args = inputs(np.float32)
    ways = [
        dfx.SaveAt(steps=True),
        dfx.SaveAt(dense=True),
        dfx.SaveAt(
            subs=[
                dfx.SubSaveAt(t0=True, t1=True),
                dfx.SubSaveAt(ts=jnp.array([0.5]), fn=lambda t, y, args: y[0]),
            ]
        ),
    ]
    penalties, controller = {"error": Error()}, tolerance(1e-3)

    @jax.jit
    def all_ways(y0, args):
        out = []
        for saveat in ways:
            options = {"saveat": saveat, "max_steps": 32}
            given = (y0, args, penalties)
            sol, record = run(ode(), dfx.Tsit5(), controller, *given, **options)
            plain = dfx.diffeqsolve(
                ode(),
                dfx.Tsit5(),
                0.0,
                1.0,
                0.1,
                y0,
                args,
                stepsize_controller=controller,
                **options,
            )
            pair = [(s.ts, s.ys) for s in (sol, plain)]
            if saveat.dense:
                pair = [s.evaluate(0.4) for s in (sol, plain)]
            out.append((pair, record.penalties["error"]))
        return out

    values = []
    for (own, plain), value in all_ways(y0, args):
        assert eqx.tree_equal(own, plain, rtol=1e-3, atol=1e-3)
        values.append(float(value))
    np.testing.assert_allclose(values, values[0], rtol=2e-2)


def test_a_changed_weight_compiles_nothing(no_retrace):
    y0, args = inputs(np.float32)

    def loss(args, weight):
        _, record = run(ode(), dfx.Tsit5(), tolerance(1e-4), y0, args)
        return weight * record.penalties["error"]

    no_retrace(jax.grad(loss), (args, jnp.array(0.1)), (args, jnp.array(0.2)))
