"""The Cox-Ingersoll-Ross process: steps by their formulas, the rule for steps."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


S = px.solvers
ROOT = np.sqrt(3)


def _path(key, area=dfx.SpaceTimeLevyArea, end=1.0):
    return px.brownian.VirtualBrownianTree(0.0, end, end * 2**-10, (), key, area)


def _cir(dtype, sigma=2.2):
    return S.CIR(*(jnp.asarray(x, dtype) for x in (1.0, 1.0, sigma)))


def _steps(cir, solver, key, x, count):
    """States after each of so many equal steps, and the noise of each."""
    path = _path(key)
    times = jnp.linspace(0.0, 1.0, count + 1)
    found = dfx.diffeqsolve(
        cir.terms(path),
        solver,
        0.0,
        1.0,
        None,
        x,
        stepsize_controller=dfx.StepTo(times),
        saveat=dfx.SaveAt(ts=times),
        max_steps=count,
    )
    area = lambda a, b: path.evaluate(a, b, use_levy=True)
    noise = jax.vmap(area)(times[:-1], times[1:])
    return np.asarray(found.ys), np.asarray(noise.W), np.asarray(noise.H)


def _strang(x, w, h_area, h, a=1.0, b=1.0, sigma=2.2):
    """The closed form of a step."""
    level = b - sigma**2 / (4 * a)
    c1, c2 = np.exp(-a * h * (3 - ROOT) / 6), np.exp(-a * h / ROOT)
    move = lambda z, w: (np.sqrt(max(z, 0)) + sigma / 2 * w) ** 2
    z = move(c1 * x + (1 - c1) * level, w / 2 + ROOT * h_area)
    z = move(c2 * z + (1 - c2) * level, w / 2 - ROOT * h_area)
    return c1 * z + (1 - c1) * level


def test_strang_steps_are_the_closed_form(key, precision):
    cir = _cir(precision.dtype)
    x, w, area = _steps(cir, S.HOStS.of(cir), key, jnp.array(1.0), 8)
    for i in range(8):
        wanted = _strang(float(x[i]), float(w[i]), float(area[i]), 1 / 8)
        assert abs(x[i + 1] - wanted) < precision.tolerance(100)
        other = _strang(float(x[i]), float(w[i]), -float(area[i]), 1 / 8)
        assert abs(x[i + 1] - other) > precision.tolerance(1000)  # its sign matters


def test_implicit_steps_solve_the_equation(key, precision):
    """The root of the end of a step meets its drift there, at any sign of the root."""
    cir = _cir(precision.dtype)
    x, w, _ = _steps(cir, S.DriftImplicitEuler(cir), key, jnp.array(0.05), 64)
    y, h, level, negative = np.sqrt(0.05), 1 / 64, 1 - 2.2**2 / 4, 0
    for i in range(64):
        moved = y + 1.1 * float(w[i])
        square = moved**2 + (2 + h) * level * h
        y = (moved + np.sqrt(max(square, 0))) / (2 + h)
        if square > 0:
            assert abs(y - moved - h / 2 * (level / y - y)) < 1e-9
        negative += y < 0
        assert abs(x[i + 1] - y**2) < precision.tolerance(2000)
    assert np.all(x >= 0)


def test_a_negative_root_goes_on():
    """It is kept as it is; the positive root of the state would go elsewhere."""
    cir = _cir(jnp.float32)
    solver = S.DriftImplicitEuler(cir)
    terms = cir.terms(_path(jax.random.key(0)))
    step = lambda root: solver.step(
        terms, 0.0, 0.25, jnp.array(0.3), None, jnp.array(root), False
    )[0]
    assert abs(step(0.55) - step(-0.55)) > 1e-3


# Splitting in general -----------------------------------------------------------------


def _geometric(key, solver):
    """`dX = 0.3 X dt + 0.5 X o dW` in ten steps, over its solution."""
    path = _path(key)
    terms = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: 0.3 * y),
        dfx.ControlTerm(lambda t, y, args: 0.5 * y, path),
    )
    found = dfx.diffeqsolve(terms, solver, 0.0, 1.0, 0.1, jnp.array(1.0)).ys[0]
    return found / jnp.exp(0.3 + 0.5 * path.evaluate(0.0, 1.0))


def test_flows_that_commute_are_exact(key):
    with jax.enable_x64(True):
        flows = S.HOStS(
            lambda t0, t1, y, args: y * jnp.exp(0.3 * (t1 - t0)),
            lambda t, w, y, args: y * jnp.exp(0.5 * w),
        )
        assert abs(_geometric(key, flows) - 1) < 1e-14
        assert abs(_geometric(key, S.HOStS()) - 1) < 1e-4


@pytest.fixture(scope="module")
def smooth():
    """Errors of `dX = sin X dt + cos X o dW` at steps of 1/4 and 1/16."""

    class WithoutArea(S.HOStS):
        """What a wrong noise would do."""

        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            class Flat(dfx.ControlTerm):
                def contr(self, t0, t1, **options):
                    found = super().contr(t0, t1, **options)
                    return dfx.SpaceTimeLevyArea(found.dt, found.W, 0 * found.H)

            drift, noise = terms.terms
            flat = Flat(noise.term.vector_field, noise.term.control)
            terms = dfx.MultiTerm(drift, flat)
            return super().step(terms, t0, t1, y0, args, solver_state, made_jump)

    def run(solver, n):
        def one(key):
            terms = dfx.MultiTerm(
                dfx.ODETerm(lambda t, y, args: jnp.sin(y)),
                dfx.ControlTerm(lambda t, y, args: jnp.cos(y), _path(key)),
            )
            steps = dfx.ConstantStepSize()
            return dfx.diffeqsolve(
                terms,
                solver,
                0.0,
                1.0,
                1 / n,
                jnp.array(0.5),
                stepsize_controller=steps,
            ).ys[0]

        keys = jax.random.split(jax.random.key(7), 512)
        return np.asarray(jax.jit(jax.vmap(one))(keys))

    with jax.enable_x64(True):
        exact = run(S.HOStS(), 256)
        rms = lambda solver, n: np.sqrt(np.mean((run(solver, n) - exact) ** 2))
        return [
            [rms(solver, n) for n in (4, 16)] for solver in (S.HOStS(), WithoutArea())
        ]


def test_strong_order(smooth):
    """3/2 with the area, and 1 without."""
    orders = [np.log(a / b) / np.log(4) for a, b in smooth]
    assert 1.3 < orders[0] < 1.9
    assert orders[1] < 1.2


def test_evaluations_are_those_of_the_flows(key):
    counts = {"drift": 0, "noise": 0}

    def tell(name):
        counts[name] += 1

    def field(name, value):
        def evaluate(t, y, args):
            jax.debug.callback(tell, name)
            return value * y

        return evaluate

    terms = dfx.MultiTerm(
        dfx.ODETerm(field("drift", 0.3)),
        dfx.ControlTerm(field("noise", 0.5), _path(key)),
    )
    solver, controller = S.counting(S.HOStS(), dfx.ConstantStepSize())
    saveat = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)
    found = dfx.diffeqsolve(
        terms,
        solver,
        0.0,
        1.0,
        0.25,
        jnp.array(1.0),
        stepsize_controller=controller,
        saveat=saveat,
    )
    jax.effects_barrier()
    total = S.evaluations(found).total
    assert (int(total.drift), int(total.diffusion)) == (
        counts["drift"],
        counts["noise"],
    )
    assert int(total.noise) == 4


# Steps --------------------------------------------------------------------------------


def test_steps_by_the_rule(key):
    """No accepted step is longer than what either end asks for, by a tenth."""
    with jax.enable_x64(True):
        cir, controller = _cir(jnp.float64, 1.5), S.CIRController(2.0**-4)
        found = dfx.diffeqsolve(
            cir.terms(_path(key, end=4.0)),
            S.HOStS.of(cir),
            0.0,
            4.0,
            None,
            jnp.array(1.0),
            stepsize_controller=controller,
            saveat=dfx.SaveAt(t0=True, steps=True),
            max_steps=4096,
        )
        kept = np.isfinite(found.ts)
        t, x = np.asarray(found.ts)[kept], np.asarray(found.ys)[kept]
    asked = np.clip((2.0**-4 * np.maximum(x, 0)) ** (2 / 3), 2**-15, 1)
    assert np.all(np.diff(t) <= 1.1 * np.minimum(asked[1:], asked[:-1]))
    assert np.ptp(np.diff(t)) > 0.01


def test_the_smallest_of_several_decides():
    controller = S.CIRController(0.5, dtmin=1e-3)
    alone = [float(controller.desired(x)) for x in (2.0, 0.2, -1.0)]
    assert alone == pytest.approx([1.0, 0.1 ** (2 / 3), 1e-3])
    assert float(controller.desired(jnp.array([2.0, 0.2]))) == pytest.approx(alone[1])


def test_bad_rules():
    with pytest.raises(ValueError, match="positive"):
        S.CIRController(0.0)
    with pytest.raises(ValueError, match="at most `dtmax`"):
        S.CIRController(0.1, dtmin=2.0)
    with pytest.raises(ValueError, match="stratonovich"):
        S.CIR(1.0, 1.0, 1.0).terms(_path(jax.random.key(0)), "Ito")


# Closed forms -------------------------------------------------------------------------


def test_closed_forms_solve_their_equations():
    """Moments their ordinary equations, prices the partial one."""
    with jax.enable_x64(True):
        cir = S.CIR(0.7, 0.9, 0.6)
        x, t = jnp.array(0.5), jnp.array(1.3)
        of_time = lambda f: jax.grad(lambda t: f(x, t))(t)
        mean, variance = cir.mean(x, t), cir.variance(x, t)
        assert abs(of_time(cir.mean) - 0.7 * (0.9 - mean)) < 1e-12
        wanted = 0.36 * mean - 1.4 * variance
        assert abs(of_time(cir.variance) - wanted) < 1e-12
        price = lambda x: cir.bond_price(x, t)
        slope, bend = jax.grad(price)(x), jax.grad(jax.grad(price))(x)
        wanted = 0.7 * (0.9 - x) * slope + 0.18 * x * bend - x * price(x)
        assert abs(of_time(cir.bond_price) - wanted) < 1e-12
        assert cir.bond_price(x, 0.0) == 1.0
        assert jnp.isfinite(cir.bond_price(x, 1e4))


def test_copies_and_gradients(key):
    """Several independent copies in one state; derivatives where it touches zero."""
    path = px.brownian.VirtualBrownianTree(
        0.0, 1.0, 2**-10, (3,), key, dfx.SpaceTimeLevyArea
    )

    def end(sigma):
        cir = S.CIR(jnp.float32(1.0), jnp.float32(0.1), sigma)
        start = jnp.array([0.0, 0.1, 1.0])
        return dfx.diffeqsolve(
            cir.terms(path), S.HOStS.of(cir), 0.0, 1.0, 1 / 16, start
        ).ys[0]

    value, grad = jax.jit(lambda s: (end(s), jax.jacrev(end)(s)))(jnp.float32(1.0))
    assert value.shape == (3,)
    assert np.all(np.isfinite(grad))
