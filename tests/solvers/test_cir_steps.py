"""Steps of CIR with other controllers and counters, in float32, and refused inputs."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


END = 4.0
CIR = px.solvers.CIR(1.0, 1.0, 1.5)
SOLVERS = (px.solvers.HOStS.of(CIR), px.solvers.DriftImplicitEuler(CIR))


def _path(key, tol=2.0**-12, area=dfx.SpaceTimeLevyArea):
    return px.brownian.VirtualBrownianTree(0.0, END, tol, (), key, area)


def _solve(key, solver, controller, saveat):
    return dfx.diffeqsolve(
        CIR.terms(_path(key)),
        solver,
        0.0,
        END,
        None,
        jnp.array(1.0),
        stepsize_controller=controller,
        saveat=saveat,
        max_steps=1024,
    )


def test_rejected_steps_are_counted(key):
    """Though these solvers have no estimate of the error to send the numbers with."""
    controller = px.solvers.CIRController(0.5, dtmin=2.0**-8)
    saveat = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)
    for solver, drift in zip(SOLVERS, (3, 1), strict=True):
        found = _solve(key, *px.solvers.counting(solver, controller), saveat)
        counts = px.solvers.evaluations(found)
        accepted, rejected = (
            int(found.stats[f"num_{kind}_steps"]) for kind in ("accepted", "rejected")
        )
        assert rejected > 0
        assert int(counts.accepted.drift) == drift * accepted
        assert int(counts.rejected.drift) == drift * rejected
        assert int(counts.rejected.noise) == rejected


def test_nodes_of_the_tree(key):
    """Inside of the dyadic controller every step is a node: nothing is skipped."""
    inner = px.solvers.CIRController(2.0**-3, dtmin=2.0**-10)
    saveat = dfx.SaveAt(steps=True)
    sizes = []
    for controller in (px.solvers.DyadicController(inner, _path(key)), inner):
        found = _solve(key, SOLVERS[0], controller, saveat)
        ends = np.asarray(found.ts[: int(found.stats["num_accepted_steps"])]) * 2**10
        sizes.append(np.diff(np.concatenate([[0], ends])))
    steps = sizes[0]
    ends = np.cumsum(steps)
    assert np.all(np.log2(steps) % 1 == 0)
    assert np.all(ends % steps == 0)
    assert len(set(steps)) > 1
    assert not np.all(np.log2(sizes[1]) % 1 == 0)


def test_every_step_accepted(key):
    """Then lengths are exactly those of the formula at the start of the step."""
    with jax.enable_x64(True):
        controller = px.solvers.CIRController(0.25, 2.0**-10, accept=None)
        saveat = dfx.SaveAt(t0=True, steps=True)
        found = _solve(key, SOLVERS[0], controller, saveat)
        assert int(found.stats["num_rejected_steps"]) == 0
    count = int(found.stats["num_accepted_steps"])
    t, x = (np.asarray(a)[: count + 1] for a in (found.ts, found.ys))
    asked = np.clip((0.25 * np.maximum(x, 0)) ** (2 / 3), 2.0**-10, 1)
    np.testing.assert_allclose(np.diff(t)[:-1], asked[:-2], rtol=1e-10)


def test_gradients_do_not_reach_the_times():
    """The power of the rule has an infinite slope at zero."""
    controller = px.solvers.CIRController(0.25)
    for x in (0.0, 0.5):
        assert jax.grad(controller.desired)(x) == 0


def _step(w, precise):
    """One implicit step from `X = 0.01` with a given increment."""
    dtype = np.float64 if precise else np.float32

    class Given(dfx.AbstractPath):
        t0 = 0.0
        t1 = 1.0

        def evaluate(self, t0, t1=None, left=True, **options):
            return jnp.asarray(w, dtype)

    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, x, args: x),
        dfx.ControlTerm(lambda t, x, args: x, Given()),
    )
    h, root = jnp.asarray(2.0**-12, dtype), jnp.asarray(0.1, dtype)
    solver = SOLVERS[1]
    return solver.step(terms, 0 * h, h, root**2, None, root, jnp.array(False))


def test_no_cancellation():
    """Far below zero the root keeps its digits, which the plain formula loses."""
    w = -1.2
    found = float(_step(w, False)[3])
    with jax.enable_x64(True):
        exact = float(_step(w, True)[3])
    moved, h = np.float32(0.1 + 0.75 * w), np.float32(2.0**-12)
    inside = moved**2 + (2 + h) * np.float32(0.4375) * h
    plain = float((moved + np.sqrt(inside)) / (2 + h))
    assert abs(found / exact - 1) < 1e-6
    assert abs(plain / exact - 1) > 1e-5


def test_the_root_after_a_jump():
    """What was carried is of the state before, and is not used."""
    with jax.enable_x64(True):
        x, h = jnp.array(0.5), jnp.array(0.25)
        terms = CIR.terms(_path(jax.random.key(0)))
        step = lambda kept, jump: SOLVERS[1].step(
            terms, 0 * h, h, x, None, jnp.array(kept), jnp.array(jump)
        )[0]
        assert step(9.0, True) == step(9.5, True) == step(float(np.sqrt(0.5)), False)
        assert step(9.0, False) != step(9.5, False)


def test_positive(key):
    """Both keep the process positive if `4 a b > sigma^2`, which Euler does not."""
    saveat, equal = dfx.SaveAt(t1=True), dfx.StepTo(jnp.linspace(0.0, END, 9))
    keys = jax.random.split(key, 256)
    smallest = [
        jnp.min(jax.vmap(lambda k, s=s: _solve(k, s, equal, saveat).ys)(keys))
        for s in (*SOLVERS, dfx.Euler())
    ]
    assert smallest[0] > 0
    assert smallest[1] > 0
    assert smallest[2] <= 0


def test_refused(key):
    with pytest.raises(TypeError, match="cir"):
        px.solvers.DriftImplicitEuler(dfx.Euler())
    with pytest.raises(ValueError, match="accept"):
        px.solvers.CIRController(0.1, accept=1.0)
    terms = CIR.terms(_path(key, area=dfx.BrownianIncrement))
    with pytest.raises(TypeError, match="space-time area"):
        dfx.diffeqsolve(terms, SOLVERS[0], 0.0, END, 0.5, jnp.array(1.0))
