"""Parameters from noisy frames: beside a fit through a solver, and coverage."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from pathax.operators._responses import reached
from pathax.operators._smoother import Chain, smooth


ops = px.operators
TIMES = np.array([0.4, 0.7, 1.0])
NOISE = 0.02
GRID = ops.Grid((24,), (2 * np.pi,))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def start(theta):
    (x,) = GRID.points()
    return theta["height"] * jnp.sin(x) + 0.3 * jnp.cos(2 * x)


def equation(theta):
    return ops.Burgers(jnp.exp(theta["log_viscosity"]))


def make(theta):
    return ops.SpaceTimeProblem(equation(theta), GRID, start(theta), 1.0, degree=8)


def observe(w):
    return w[::3]


def march(theta):
    """The same frames by a solver."""
    step = ops.stepper(equation(theta), GRID, 1 / 200)
    w = GRID.rfft(start(theta)) * GRID.mask("2/3", complex)

    def advance(w, _):
        w = step(w)
        return w, w

    _, all_of_them = jax.lax.scan(advance, w, None, length=200)
    at = np.round(TIMES * 200).astype(int) - 1
    return jax.vmap(lambda w: observe(GRID.irfft(w)))(all_of_them[at])


@pytest.fixture(scope="module")
def study():
    """Truth, frames with noise, and guesses, of many seeds at once."""
    with jax.enable_x64(True):
        truth = {"height": jnp.array(1.0), "log_viscosity": jnp.log(jnp.array(0.15))}
        guess = {"height": jnp.array(0.7), "log_viscosity": jnp.log(jnp.array(0.25))}
        clean = jax.jit(march)(truth)
        noise = np.random.default_rng(0).normal(size=(64, *clean.shape))
        frames = clean[None] + NOISE * noise
        fit = lambda y: ops.infer(make, guess, TIMES, y, noise=NOISE, observe=observe)
        return truth, frames, jax.vmap(fit)(frames)


def test_the_same_as_through_a_solver(study):
    """The misfit of the solver's own frames is stationary, and curved as is said."""
    _, frames, found = study
    theta = jax.tree.map(lambda x: x[0], found.parameters)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    seen = lambda flat: ((march(unravel(flat)) - frames[0]) / NOISE).reshape(-1)
    jacobian = jax.jit(jax.jacfwd(seen))(flat)
    precision = jacobian.T @ jacobian
    gradient = jacobian.T @ seen(flat)
    covariance = found.covariance[0]
    step = np.linalg.solve(precision, gradient)
    assert np.sqrt(step @ precision @ step) < 3e-3  # in standard deviations
    np.testing.assert_allclose(
        np.linalg.inv(covariance), precision, rtol=1e-4, atol=1e-4 * precision.max()
    )


def test_intervals_cover(study):
    """95% of them, for 64 seeds and two parameters; misfits are those of the noise."""
    truth, _, found = study
    assert bool(found.converged.all())
    assert float(found.eta.max()) < 1e-4
    inside = [
        np.abs(found.parameters[k] - truth[k]) < 1.96 * found.deviation[k]
        for k in truth
    ]
    assert 0.89 < np.mean(inside) < 0.995
    small = [
        np.abs(found.parameters[k] - truth[k]) < 0.98 * found.deviation[k]
        for k in truth
    ]
    assert np.mean(small) < 0.8  # half the interval does not cover as often
    assert abs(float(np.mean(found.misfit)) - 1) < 0.1


def waves(theta, slabs=4, degree=5):
    """Unknown viscosity and start; three modes of it."""
    (x,) = GRID.points()
    first = sum(a * jnp.sin((i + 1) * x) for i, a in enumerate(theta["start"]))
    args = ops.Burgers(jnp.exp(theta["log_viscosity"])), GRID, first, 1.0
    return ops.SpaceTimeProblem(*args, degree=degree, slabs=slabs)


@pytest.fixture(scope="module")
def seen():
    """Frames of waves, the first at time zero, and a guess."""
    with jax.enable_x64(True):
        truth = {"log_viscosity": jnp.log(0.15), "start": jnp.array([1.0, 0.3, -0.2])}
        problem = waves(truth)
        args = problem.equation, GRID, GRID.irfft(problem.initial), TIMES
        later = ops.integrate(*args, dt=0.005)
        clean = jnp.concatenate([GRID.irfft(problem.initial)[None], later])
        frames = clean + NOISE * np.random.default_rng(1).normal(size=clean.shape)
        guess = {"log_viscosity": jnp.log(0.25), "start": jnp.array([0.8, 0.0, 0.0])}
        return truth, guess, np.concatenate([[0.0], TIMES]), frames


def test_slabs_in_turn_at_once_and_after_jumps_agree(seen):
    """One answer, however the linear problems are solved, and wherever steps begin."""
    truth, guess, times, frames = seen
    run = lambda **options: ops.infer(
        waves, guess, times, frames, noise=NOISE, tolerance=1e-6, **options
    )
    turn = run(together=False)
    once = run(together=True, start=(times, frames), jumps=[0.1, 0.01])
    for found in (turn, once):
        assert bool(found.converged)
        for name, true in truth.items():
            z = (found.parameters[name] - true) / found.deviation[name]
            assert float(jnp.abs(z).max()) < 4.5
            np.testing.assert_allclose(
                found.parameters[name], turn.parameters[name], atol=1e-6
            )
    ends = once.trajectory(jnp.array([0.25 - 1e-9, 0.25 + 1e-9]))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)  # slabs are joined
    deviations = [f.deviation["start"] for f in (once, turn)]
    np.testing.assert_allclose(deviations[0], deviations[1], rtol=1e-3)


def test_only_what_the_equation_needs(seen):
    """The start's parameters are known not to reach the equation."""
    _, guess, _, _ = seen
    equation = lambda v, a: waves({"log_viscosity": v, "start": a}).equation.viscosity
    assert reached(equation, guess["log_viscosity"], guess["start"]) == [True, False]


def test_smoothing_is_least_squares(rng):
    """Elimination in turn beside a dense matrix of all unknowns."""
    slabs, n, p, data, jump = 4, 3, 2, 5, 0.3
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    chain = Chain(
        start=draw(n, p),
        seen=draw(slabs, data, n),
        seen_theta=draw(slabs, data, p),
        left=draw(slabs, data),
        move=draw(slabs, n, n),
        move_theta=draw(slabs, n, p),
        moved=draw(slabs, n),
    )
    prior = draw(p, p), draw(p)
    found = smooth(chain, prior, jnp.asarray(jump))
    theta, states = np.eye(p, p + slabs * n), np.eye(p + slabs * n)[p:]
    states = states.reshape(slabs, n, -1)
    states[0] = chain.start @ theta
    rows, right = [prior[0] @ theta], [-prior[1]]
    for i in range(slabs):
        rows.append(chain.seen[i] @ states[i] + chain.seen_theta[i] @ theta)
        right.append(-chain.left[i])
        if i + 1 < slabs:
            moved = chain.move[i] @ states[i] + chain.move_theta[i] @ theta
            rows.append((states[i + 1] - moved) / jump)
            right.append(chain.moved[i] / jump)
    rows, right = np.concatenate(rows), np.concatenate(right)
    kept = np.r_[:p, p + n : p + slabs * n]  # the first state is no unknown
    wanted = np.linalg.lstsq(rows[:, kept], right)[0]
    np.testing.assert_allclose(found.theta, wanted[:p], rtol=1e-9)
    np.testing.assert_allclose(found.states[1:].reshape(-1), wanted[p:], rtol=1e-8)
    covariance = np.linalg.inv(rows[:, kept].T @ rows[:, kept])[:p, :p]
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


@pytest.mark.slow
def test_chaos():
    """Waves over five times in which errors grow by e: viscosity and start."""
    line = ops.Grid((64,), (64.0,))
    times = np.arange(0.0, 41.0, 2.0)
    rough = 0.3 * jax.random.normal(jax.random.key(0), (64,))
    first = ops.integrate(ops.KuramotoSivashinsky(), line, rough, [200.0], dt=0.2)[0]
    first = first - first.mean()
    later = ops.integrate(ops.KuramotoSivashinsky(), line, first, times[1:], dt=0.05)
    clean = jnp.concatenate([first[None], later])
    noise = np.random.default_rng(0).normal(size=(times.size, 16))
    frames = clean[:, ::4] + 0.1 * noise
    coarse = ops.Grid((16,), (64.0,))
    fill = lambda y: line.irfft(coarse.resample(coarse.rfft(y), line))
    between = jax.vmap(fill)(frames)

    def chaotic(theta):
        modes = jnp.zeros(33, complex)
        modes = modes.at[1:22].set(jax.lax.complex(*theta["start"]))
        args = ops.KuramotoSivashinsky(theta["viscosity"]), line, line.irfft(modes)
        return ops.SpaceTimeProblem(*args, 40.0, degree=6, slabs=20)

    modes = line.rfft(between[0])[1:22]
    guess = {"viscosity": jnp.array(1.2), "start": jnp.stack([modes.real, modes.imag])}
    size = 0.2 / (1 + (np.arange(1, 22) / 11) ** 8)
    prior = jax.tree.map(jnp.zeros_like, guess) | {"viscosity": jnp.array(1.2)}
    spread = {
        "viscosity": jnp.array(0.5),
        "start": jnp.broadcast_to(size, guess["start"].shape),
    }
    run = lambda **options: ops.infer(
        chaotic,
        guess,
        times,
        frames,
        noise=0.1,
        observe=lambda w: w[::4],
        prior=(prior, spread),
        sweep_steps=8,
        **options,
    )
    found = run(start=(times, between), jumps=jnp.geomspace(0.3, 3e-3, 24))
    assert bool(found.converged)
    assert abs(float(found.misfit) - 1) < 0.15
    z = (found.parameters["viscosity"] - 1.0) / found.deviation["viscosity"]
    assert abs(float(z)) < 4.5
    error = found.trajectory(jnp.asarray(times)) - clean
    assert float(jnp.sqrt(jnp.mean(error**2))) < 0.1
    alone = run()  # from the solution of the guess, which soon has left the frames
    assert not (bool(alone.converged) and float(alone.misfit) < 1.15)


def test_a_prior_pulls_and_narrows():
    """With one frame that says little, the answer is the prior's."""
    problem = make({"height": jnp.array(1.0), "log_viscosity": jnp.array(-2.0)})
    guess = jnp.array(-1.0)
    fit = lambda prior: ops.infer(
        lambda v: ops.SpaceTimeProblem(
            ops.Burgers(jnp.exp(v)), GRID, GRID.irfft(problem.initial), 1.0, degree=8
        ),
        guess,
        [1.0],
        jnp.zeros((1, 1)),
        noise=1e3,
        observe=lambda w: w[:1],
        prior=prior,
    )
    found = fit((jnp.array(-1.5), jnp.array(0.1)))
    np.testing.assert_allclose(found.parameters, -1.5, atol=1e-3)
    np.testing.assert_allclose(found.deviation, 0.1, rtol=1e-3)


def test_bad_calls():
    theta = {"height": jnp.array(1.0), "log_viscosity": jnp.array(-2.0)}
    with pytest.raises(ValueError, match="one frame a time"):
        ops.infer(make, theta, TIMES, jnp.zeros((2, 24)), noise=1.0)

    with pytest.raises(ValueError, match="at least three"):
        ops.infer(make, theta, TIMES, jnp.zeros((3, 24)), noise=1.0, jumps=[0.1])
    with pytest.raises(ValueError, match="at least the degree"):
        ops.infer(make, theta, TIMES, jnp.zeros((3, 24)), noise=1.0, sweep_steps=3)
    with jax.enable_x64(False):
        single = jax.tree.map(jnp.float32, theta)
        with pytest.raises(ValueError, match="jax_enable_x64"):
            ops.infer(make, single, TIMES, jnp.zeros((3, 24)), noise=1.0)
