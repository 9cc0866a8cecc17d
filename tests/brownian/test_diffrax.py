"""Solves by Diffrax on our paths: solvers, controllers, adjoints, what is saved."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


Tree = px.brownian.VirtualBrownianTree
W = diffrax.BrownianIncrement
WH = diffrax.SpaceTimeLevyArea
WHK = diffrax.SpaceTimeTimeLevyArea


def _general(path, scale=0.4):
    """Two components, two noises whose columns don't commute."""

    def diffusion(t, y, args):
        del t
        return scale * args * jnp.array([[1.0, 0.3], [0.0, 1.0]]) * jnp.cos(y)[:, None]

    return diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: jnp.sin(args * y) - y),
        diffrax.ControlTerm(diffusion, path),
    )


def _additive(path):
    def diffusion(t, y, args):
        del t, y
        return args * jnp.array([[0.4, 0.1], [0.0, 0.3]])

    return diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: jnp.sin(args * y) - y),
        diffrax.ControlTerm(diffusion, path),
    )


def _langevin(path):
    gradient = lambda x, args: x + 0.3 * args * jnp.sin(x)
    return diffrax.MultiTerm(
        diffrax.UnderdampedLangevinDriftTerm(jnp.ones(()), jnp.ones(()), gradient),
        diffrax.UnderdampedLangevinDiffusionTerm(jnp.ones(()), jnp.ones(()), path),
    )


SOLVERS = [
    (diffrax.Euler(), W, _general),
    (diffrax.EulerHeun(), W, _general),
    (diffrax.Heun(), W, _general),
    (diffrax.ItoMilstein(), W, None),
    (diffrax.SPaRK(), WH, _general),
    (diffrax.GeneralShARK(), WH, _general),
    (diffrax.SlowRK(), WH, None),
    (diffrax.SRA1(), WH, _additive),
    (diffrax.ShARK(), WH, _additive),
    (diffrax.SEA(), WH, _additive),
    (diffrax.ALIGN(0.1), WH, _langevin),
    (diffrax.ShOULD(0.1), WHK, _langevin),
    (diffrax.QUICSORT(0.1), WHK, _langevin),
]


def _commutative(path):
    """One component, one noise: what Milstein's method and SlowRK are for."""
    return diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -args * y),
        diffrax.ControlTerm(lambda t, y, args: 0.4 * jnp.cos(y), path),
    )


def _problem(solver, levy_area, terms, key, order=None):
    commutative = terms is None
    shape = () if commutative else (2,)
    tree = Tree(0.0, 1.0, 2**-12, shape, key, levy_area, order=order)
    terms = (_commutative if commutative else terms)(tree)
    y0 = jnp.ones(()) if commutative else jnp.array([1.0, 0.5])
    if terms is not None and isinstance(solver, diffrax.AbstractSolver):
        langevin = (diffrax.ALIGN, diffrax.ShOULD, diffrax.QUICSORT)
        y0 = (y0, jnp.zeros_like(y0)) if isinstance(solver, langevin) else y0
    return terms, y0


def _solve(terms, solver, y0, dt0=1 / 32, args=None, **kwargs):
    args = jnp.ones(()) if args is None else args
    return diffrax.diffeqsolve(terms, solver, 0.0, 1.0, dt0, y0, args=args, **kwargs)


@pytest.mark.parametrize(
    ("solver", "levy_area", "terms"), SOLVERS, ids=lambda x: type(x).__name__
)
def test_solvers_converge_on_one_path(solver, levy_area, terms, key):
    """On one key, halving steps brings solutions together."""
    problem, y0 = _problem(solver, levy_area, terms, key)

    @jax.jit
    def ends(y0):
        runs = [_solve(problem, solver, y0, 1 / n).ys for n in (16, 128, 1024)]
        return [jnp.concatenate([x.ravel() for x in jax.tree.leaves(y)]) for y in runs]

    coarse, fine, finest = ends(y0)
    assert jnp.all(jnp.isfinite(finest))
    assert jnp.max(jnp.abs(fine - finest)) < 0.1
    # Not the same to rounding: the steps matter, hence the noise does.
    assert jnp.max(jnp.abs(coarse - finest)) > 0


def test_higher_orders_serve_any_solver(key):
    problem, y0 = _problem(diffrax.QUICSORT(0.1), WHK, _langevin, key, order=4)
    assert problem.terms[1].control.levy_area is px.brownian.HigherOrderLevyArea
    assert all(
        bool(jnp.all(jnp.isfinite(x)))
        for x in jax.tree.leaves(_solve(problem, diffrax.QUICSORT(0.1), y0).ys)
    )


def test_too_low_an_order_is_refused(key):
    problem, y0 = _problem(diffrax.SPaRK(), W, _general, key)
    with pytest.raises(ValueError, match=r"levy_area|Lévy|Brownian"):
        _solve(problem, diffrax.SPaRK(), y0)


def _controller(**kwargs):
    return diffrax.PIDController(1e-2, 1e-2, pcoeff=0.1, icoeff=0.3, dtmin=2**-10)


def test_adaptive_solves(key):
    """Tolerances bring solutions together; rejected times may be revisited."""
    problem, y0 = _problem(diffrax.SPaRK(), WH, _general, key)

    @jax.jit
    def run(y0):
        loose = _controller()
        tight = diffrax.PIDController(1e-3, 1e-3, pcoeff=0.1, icoeff=0.3, dtmin=2**-11)
        clip = diffrax.ClipStepSizeController(loose, store_rejected_steps=100)
        return [
            _solve(problem, diffrax.SPaRK(), y0, stepsize_controller=c)
            for c in (loose, clip, tight)
        ]

    loose, clip, tight = run(y0)
    assert tight.stats["num_steps"] > loose.stats["num_steps"]
    np.testing.assert_allclose(loose.ys, tight.ys, atol=0.1)
    np.testing.assert_allclose(clip.ys, tight.ys, atol=0.1)


def test_save_specifications_and_batches(getkey):
    problem = lambda key: _problem(diffrax.SPaRK(), WH, _general, key)
    ts = jnp.linspace(0, 1, 5)
    saveat = diffrax.SaveAt(t0=True, ts=ts, dense=True)

    def run(key):
        terms, y0 = problem(key)
        out = _solve(terms, diffrax.SPaRK(), y0, saveat=saveat, max_steps=64)
        return out.ys, out.evaluate(0.3)

    keys = jnp.stack([getkey() for _ in range(3)])
    batch = jax.jit(jax.vmap(run))(keys)
    single = jax.jit(run)(keys[1])
    for x, y in zip(batch, single, strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-4, atol=1e-5)


def test_max_steps_changes_nothing(key):
    problem, y0 = _problem(diffrax.SPaRK(), WH, _general, key)
    run = eqx.filter_jit(
        lambda max_steps: _solve(problem, diffrax.SPaRK(), y0, max_steps=max_steps).ys
    )
    np.testing.assert_allclose(run(64), run(200), atol=1e-5)


ADJOINTS = [
    diffrax.RecursiveCheckpointAdjoint(),
    diffrax.DirectAdjoint(),
    diffrax.BacksolveAdjoint(),
]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda x: type(x).__name__)
def test_reverse_gradients_against_finite_differences(adjoint, key):
    """With respect to a parameter and the initial state, on the same key."""
    with jax.enable_x64(True):
        backsolve = isinstance(adjoint, diffrax.BacksolveAdjoint)
        solver = diffrax.Heun()
        steps = 2000 if backsolve else 50

        @jax.jit
        def loss(x):
            tree = Tree(0.0, 1.0, 2**-14, (), key)
            terms = _commutative(tree)
            out = _solve(terms, solver, x[1], 1 / steps, args=x[0], adjoint=adjoint)
            return out.ys[0] ** 2

        x = jnp.array([0.7, 1.2])
        gradient = jax.grad(loss)(x)
        step = 1e-5 * jnp.eye(2)
        numeric = jnp.array([(loss(x + e) - loss(x - e)) / 2e-5 for e in step])
        # Backsolve differentiates the SDE and not its discretization.
        tolerance = 2e-2 if backsolve else 1e-7
        np.testing.assert_allclose(gradient, numeric, rtol=tolerance)


def test_forward_gradients(key):
    with jax.enable_x64(True):

        def loss(x):
            terms = _commutative(Tree(0.0, 1.0, 2**-10, (), key))
            out = _solve(
                terms, diffrax.Heun(), x, 1 / 20, adjoint=diffrax.ForwardMode()
            )
            return out.ys[0] ** 2

        _, forward = jax.jvp(loss, (jnp.array(1.2),), (jnp.array(1.0),))
        numeric = (loss(jnp.array(1.2 + 1e-5)) - loss(jnp.array(1.2 - 1e-5))) / 2e-5
        np.testing.assert_allclose(forward, numeric, rtol=1e-7)


def test_adaptive_gradient_holds_the_steps_fixed(key):
    """The gradient through an adaptive solve is that on the steps it accepted."""
    with jax.enable_x64(True):

        def end(x, controller, dt0, saveat=None):
            terms, _ = _problem(diffrax.SPaRK(), WH, _general, key)
            y0 = x * jnp.array([1.0, 0.5])
            return _solve(
                terms,
                diffrax.SPaRK(),
                y0,
                dt0,
                stepsize_controller=controller,
                saveat=saveat or diffrax.SaveAt(t1=True),
                max_steps=128,
            )

        x = jnp.array(1.0)
        every = diffrax.SaveAt(t0=True, steps=True)
        ts = end(x, _controller(), 1 / 32, every).ts
        fixed = diffrax.StepTo(ts[jnp.isfinite(ts)])
        loss = lambda x, *how: jnp.sum(end(x, *how).ys)
        adaptive = jax.grad(loss)(x, _controller(), 1 / 32)
        np.testing.assert_allclose(adaptive, jax.grad(loss)(x, fixed, None), rtol=1e-8)


@pytest.mark.slow
def test_quicsort_keeps_order_three_in_float32(getkey):
    """Errors against a four times finer solution, down to the rounding floor."""
    steps = np.array([1, 2, 4, 8])

    def errors(key):
        problem, y0 = _problem(diffrax.QUICSORT(0.2), WHK, _langevin, key)
        run = lambda n: _solve(problem, diffrax.QUICSORT(0.2), y0, 1 / n).ys[0][-1]
        return jnp.stack([jnp.sum((run(n) - run(4 * n)) ** 2) for n in steps.tolist()])

    keys = jnp.stack([getkey() for _ in range(200)])
    rms = np.sqrt(np.asarray(jax.jit(jax.vmap(errors))(keys), np.float64).mean(0))
    fit = rms > 1e-6  # above rounding
    slope = -np.polyfit(np.log2(steps[fit]), np.log2(rms[fit]), 1)[0]
    assert fit.sum() >= 2
    assert 2.5 < slope < 3.5, rms
