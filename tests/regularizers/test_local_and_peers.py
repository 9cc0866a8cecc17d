"""Sampled steps, integrals along the path, random times, and weights."""

import warnings

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import field, inputs, ode, sde, tolerance

from pathax.regularizers import (
    DualAscent,
    Error,
    JacobianNorm,
    KineticEnergy,
    Local,
    PublishedLocal,
    StepCost,
    TaylorDerivative,
    gradient_ratio,
    solve,
    steer_end,
    steer_times,
    total_derivative,
)
from pathax.training import Batches, fit


def run(terms, solver, controller, y0, args, penalties, dt0=0.1, **options):
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
        )[1]


LOOSE = tolerance(1e-3)

# Sampled steps ----------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["time", "step"])
def test_estimates_are_unbiased(sampling):
    """The mean of 10^4 draws, within four standard errors; the published one is not."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        keys = jax.random.split(jax.random.key(7), 10_000)
        penalties = {
            "all": Error(),
            "one": Local(sampling=sampling),
            "published": PublishedLocal(),
        }
        controller = tolerance(1e-5)
        one = lambda key: (
            run(ode(), dfx.Tsit5(), controller, y0, args, penalties, key=key).penalties
        )
        found = jax.jit(jax.vmap(one))(keys)
        exact = found["all"][0]
        error = jnp.std(found["one"]) / 100
        assert abs(jnp.mean(found["one"]) - exact) < 4 * error
        biased = jnp.mean(found["published"])
        assert abs(biased - exact) > 10 * jnp.std(found["published"]) / 100


def test_a_stochastic_step_is_made_again():
    """The step sees the same path: in one with two draws q is that of the solve."""
    y0, args = inputs(np.float32)
    controller = dfx.ClipStepSizeController(
        tolerance(10.0, dtmin=2.0**-9), step_ts=jnp.array([1.0])
    )
    penalties = {"all": Error(), "time": Local(), "step": Local(sampling="step")}
    options = {"dt0": 1.0, "key": jax.random.key(0)}
    record = run(sde(), dfx.SPaRK(), controller, y0, args, penalties, **options)
    assert record.accepted_steps == 1  # so every sample is this step
    expected = float(record.penalties["all"])
    for name in ("time", "step"):
        np.testing.assert_allclose(record.penalties[name], expected, rtol=1e-5)


@pytest.mark.parametrize("solver", [dfx.ReversibleHeun(), dfx.Kvaerno3()], ids=str)
def test_steps_with_memory_are_made_again(solver):
    y0, args = inputs(np.float32)
    penalties = {"all": Error(), "step": Local(sampling="step", draws=400)}
    key = jax.random.key(0)
    record = run(ode(), solver, tolerance(1e-2), y0, args, penalties, key=key)
    one, whole = record.penalties["step"], record.penalties["all"]
    np.testing.assert_allclose(one, whole, rtol=0.15)


def test_local_penalties_go_with_backsolve():
    """The same derivative, for the solve's own steps are constants."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        penalties = {"step": Local(StepCost(), sampling="step")}

        def value(args, adjoint):
            options = {"adjoint": adjoint, "key": jax.random.key(1)}
            found = run(
                ode(), dfx.Tsit5(), tolerance(1e-5), y0, args, penalties, **options
            )
            return sum(found.penalties.values())

        discrete = jax.grad(value)(args, dfx.RecursiveCheckpointAdjoint())
        backwards = jax.grad(value)(args, dfx.BacksolveAdjoint())
        assert jnp.any(discrete != 0)
        np.testing.assert_allclose(discrete, backwards, rtol=1e-10)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    """A sampled penalty is that of a step; one over all steps keeps some of them."""
    y0, args = inputs(np.float32)

    def memory(penalty, adjoint, max_steps):
        def value(args):
            options = {"adjoint": adjoint, "max_steps": max_steps}
            penalties = {"one": penalty}
            key = jax.random.key(0)
            record = run(
                ode(), dfx.Tsit5(), LOOSE, y0, args, penalties, key=key, **options
            )
            return record.penalties["one"]

        compiled = jax.jit(jax.grad(value)).lower(args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = (64, 4096)
    local = [memory(Local(), dfx.BacksolveAdjoint(), n) for n in sizes]
    assert local[0] == local[1]
    whole = [memory(Error(), dfx.RecursiveCheckpointAdjoint(), n) for n in sizes]
    assert whole[1] > 2 * whole[0]


def test_an_event_before_every_draw_is_told():
    y0, args = inputs(np.float32)
    event = dfx.Event(lambda t, y, args, **_: t > 0.05)
    penalties = {"late": Local()}
    key = next(
        k for k in jax.random.split(jax.random.key(0), 20) if _time_drawn(k) > 0.3
    )
    record = run(
        ode(),
        dfx.Tsit5(),
        tolerance(1e-3),
        y0,
        args,
        penalties,
        key=key,
        event=event,
    )
    assert not record.found["late"]
    assert record.penalties["late"] == 0


def _time_drawn(key):
    (own,) = jax.random.split(key, 1)
    return jax.random.uniform(own, (1,), jnp.float32)[0]


# Integrals --------------------------------------------------------------------------


def test_integrals_have_closed_forms(precision):
    """For a linear field, and for one whose derivatives all are its negative."""
    dtype = precision.dtype
    rates = jnp.asarray([1.0, 0.5], dtype)
    y0 = jnp.ones(2, dtype)
    penalties = {
        "energy": KineticEnergy(),
        "half": KineticEnergy(normalize="mean", half=True),
        "vjp": JacobianNorm(),
        "jvp": JacobianNorm(mode="jvp"),
        "third": TaylorDerivative(3, normalize="sum"),
    }
    linear = dfx.ODETerm(lambda t, y, args: -rates * y)
    key = jax.random.key(0)
    record = run(
        linear, dfx.Tsit5(), tolerance(1e-5), y0, None, penalties, key=key
    ).penalties
    r = np.asarray(rates, np.float64)
    square = lambda power: np.sum(r**power * (1 - np.exp(-2 * r)) / (2 * r))
    rtol = 2e-4  # of the solve, whose steps the state alone chooses
    np.testing.assert_allclose(record["energy"], square(2), rtol=rtol)
    np.testing.assert_allclose(record["half"], square(2) / 4, rtol=rtol)
    np.testing.assert_allclose(record["vjp"], np.sum(r**2), rtol=rtol)
    np.testing.assert_allclose(record["jvp"], np.sum(r**2), rtol=rtol)
    np.testing.assert_allclose(record["third"], square(6), rtol=rtol)


def test_integrals_leave_steps_and_states_alone():
    y0, args = inputs(np.float32)
    saveat = dfx.SaveAt(ts=jnp.array([0.3, 1.0]), dense=True)
    options = {
        "saveat": saveat,
        "max_steps": 64,
        "stepsize_controller": tolerance(1e-4),
    }
    sol, _ = solve(
        ode(),
        dfx.Tsit5(),
        0.0,
        1.0,
        0.1,
        y0,
        args,
        penalties={"energy": KineticEnergy()},
        **options,
    )
    plain = dfx.diffeqsolve(ode(), dfx.Tsit5(), 0.0, 1.0, 0.1, y0, args, **options)
    assert sol.stats["num_steps"] == plain.stats["num_steps"]
    np.testing.assert_allclose(sol.ys, plain.ys, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        sol.evaluate(0.6), plain.evaluate(0.6), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_adjoints_agree():
    """Derivatives of all kinds of penalties, by each adjoint that they go with."""
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)
        anywhere = {
            "time": Local(draws=2),
            "step": Local(StepCost(), sampling="step"),
            "unbiased": PublishedLocal(),
            "biased": PublishedLocal("biased"),
        }
        steps = {"error": Error(), "squared": Error(2), "cost": StepCost()}
        integrals = {"jacobian": JacobianNorm(), "third": TaylorDerivative(3)}
        everything = anywhere | steps | integrals

        def values(args, penalties, adjoint):
            options = {"adjoint": adjoint, "key": jax.random.key(1)}
            found = run(
                ode(), dfx.Tsit5(), tolerance(1e-5), y0, args, penalties, **options
            )
            return found.penalties

        reverse = lambda penalties, adjoint: jax.jit(
            jax.jacrev(lambda a: values(a, penalties, adjoint))
        )(args)
        exact = reverse(everything, dfx.RecursiveCheckpointAdjoint())
        direct = reverse(everything, dfx.DirectAdjoint())
        forward = jax.jit(
            jax.jacfwd(lambda a: values(a, everything, dfx.ForwardMode()))
        )(args)
        for name in everything:
            scale = float(jnp.max(jnp.abs(exact[name])))
            assert scale > 0
            for other in (direct, forward):
                assert jnp.max(jnp.abs(other[name] - exact[name])) < 1e-8 * scale


@pytest.mark.slow
def test_integrals_go_backwards_too():
    with jax.enable_x64(True):
        y0, args = inputs(np.float64)

        def value(args, adjoint):
            return run(
                ode(),
                dfx.Tsit5(),
                tolerance(1e-7),
                y0,
                args,
                {"energy": KineticEnergy()},
                adjoint=adjoint,
            ).penalties["energy"]

        discrete = jax.grad(value)(args, dfx.RecursiveCheckpointAdjoint())
        backwards = jax.grad(value)(args, dfx.BacksolveAdjoint())
        np.testing.assert_allclose(discrete, backwards, rtol=1e-3, atol=1e-4)


def test_random_directions_have_the_right_mean():
    matrix = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    keys = jax.random.split(jax.random.key(0), 4000)
    y = jnp.zeros(2)
    for noise in ("rademacher", "normal"):
        penalty = JacobianNorm(noise=noise)

        def one(key, penalty=penalty):
            direction = penalty.direction(key, y)
            at = lambda t, y: matrix @ y
            return penalty.rate(at, jnp.zeros(()), y, direction)

        found = jax.vmap(one)(keys)
        error = jnp.std(found) / jnp.sqrt(4000.0)
        assert abs(jnp.mean(found) - jnp.sum(matrix**2)) < 4 * error


def test_taylor_and_nested_derivatives_agree(precision):
    y0, args = inputs(precision.dtype)
    at = lambda t, y: field(t, y, args / 4)
    ways = [total_derivative(at, 0.3, y0, 3, mode=m) for m in ("taylor", "nested")]
    np.testing.assert_allclose(*ways, rtol=precision.tolerance(1e4))


# Random times and weights -----------------------------------------------------------


def test_random_times():
    ends = jax.vmap(lambda k: steer_end(k, 0.0, 1.0, 0.5))(
        jax.random.split(jax.random.key(0), 1000)
    )
    assert jnp.min(ends) >= 0.5
    assert jnp.max(ends) <= 1.5
    assert jnp.max(ends) - jnp.min(ends) > 0.9
    ts = jnp.linspace(0.0, 1.0, 11)
    moved = steer_times(jax.random.key(0), ts)
    assert moved[0] == 0
    assert moved[-1] <= 1
    assert jnp.all(jnp.diff(moved) >= 0)
    assert jnp.all(jnp.abs(moved - ts) <= 0.05 + 1e-6)
    with pytest.raises(ValueError, match="less than"):
        steer_end(jax.random.key(0), 0.0, 1.0, 1.0)


def test_dual_ascent_comes_to_its_target():
    """In `fit`, on a toy where the number goes down as a parameter does."""

    def loss(model, batch, key, weights):
        count = 100 * jnp.exp(jax.lax.stop_gradient(model))
        return (model - 1) ** 2 + weights["cost"] * model, {"evaluations": count}

    result = fit(
        jnp.zeros(()),
        loss,
        Batches(np.zeros((4, 1), np.float32), 4),
        optax.sgd(0.1),
        steps=1500,
        key=jax.random.key(0),
        has_aux=True,
        weights={"cost": DualAscent(150.0, initial=0.1)},
    )
    last = result.history[-1]
    np.testing.assert_allclose(last["evaluations"], 150, rtol=0.02)
    assert last["weight_cost"] > 0.5


def test_the_ratio_of_gradients():
    weight = gradient_ratio({"a": jnp.ones(4)}, {"a": jnp.zeros(4)}, 0.1)
    assert weight == 0
    np.testing.assert_allclose(gradient_ratio(jnp.ones(4), jnp.full(4, 4.0)), 0.025)


def test_misuse_is_refused():
    y0, args = inputs(np.float32)
    with pytest.raises(ValueError, match="key="):
        run(ode(), dfx.Tsit5(), tolerance(1e-3), y0, args, {"one": Local()})
    for wrong in (
        lambda: Local(Error(reduction="max")),
        lambda: Local(sampling="often"),
        lambda: Local(draws=0),
        lambda: PublishedLocal("fair"),
        lambda: TaylorDerivative(1),
        lambda: KineticEnergy(normalize="max"),
        lambda: DualAscent(-1.0),
    ):
        with pytest.raises(ValueError, match="`"):
            wrong()
