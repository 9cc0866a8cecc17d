"""Diffrax solves on our tree: every kind of solver, controller, adjoint and output."""

import functools as ft

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import pathax as px


Tree = px.brownian.VirtualBrownianTree
TOL = 2.0**-12
EPS = float(np.finfo(np.float32).eps)
COARSE, FINE = 2.0**-5, 2.0**-10


# Equations ----------------------------------------------------------------------------


def _terms(path, noise: str):
    """Two coupled equations, with noise that commutes."""
    drift = lambda t, y, args: jnp.sin(t) - y + 0.2 * y[::-1]
    if noise == "additive":
        diffusion = lambda t, y, args: jnp.diag(0.3 + 0.1 * t * jnp.ones(2))
    else:
        diffusion = lambda t, y, args: 0.3 * jnp.diag(jnp.cos(y))
    control = diffrax.ControlTerm(diffusion, path)
    return diffrax.MultiTerm(diffrax.ODETerm(drift), control)


def _langevin(path):
    gamma, u = jnp.asarray(1.0), jnp.asarray(0.5)
    return diffrax.MultiTerm(
        diffrax.UnderdampedLangevinDriftTerm(gamma, u, lambda x, args: x + x**3),
        diffrax.UnderdampedLangevinDiffusionTerm(gamma, u, path),
    )


Y0 = np.array([1.0, -0.5])


@ft.partial(eqx.filter_jit, donate="none")
def _solve(path, solver, noise, dt0, **kwargs):
    if noise == "langevin":
        terms, y0 = _langevin(path), (jnp.asarray(Y0), jnp.zeros(2))
    else:
        terms, y0 = _terms(path, noise), jnp.asarray(Y0)
    kwargs = {"max_steps": 2**12, **kwargs}
    return diffrax.diffeqsolve(terms, solver, 0.0, 1.0, dt0, y0, **kwargs)


def _final(solution):
    assert solution.result == diffrax.RESULTS.successful
    return np.concatenate([np.ravel(y[-1]) for y in jax.tree.leaves(solution.ys)])


# Solvers ------------------------------------------------------------------------------

# One path, of more moments than any solver asks for, serves them all: they must then
# find the same solution, to which they converge at their own rates.
SOLVERS = {
    "ito": [(diffrax.Euler, 0.1), (diffrax.ItoMilstein, 0.02)],
    "stratonovich": [
        (diffrax.Heun, 0.02),
        (diffrax.EulerHeun, 0.05),
        (diffrax.SPaRK, 0.01),
        (diffrax.SlowRK, 0.01),
        (diffrax.GeneralShARK, 0.01),
    ],
    "additive": [
        (diffrax.Heun, 0.01),
        (diffrax.SEA, 0.03),
        (diffrax.SRA1, 0.005),
        (diffrax.ShARK, 0.005),
    ],
    "langevin": [
        (diffrax.ALIGN, 0.01),
        (diffrax.QUICSORT, 0.002),
        (diffrax.ShOULD, 0.002),
    ],
}
CASES = [
    pytest.param(noise, solver, limit, id=f"{noise}-{solver.__name__}")
    for noise, members in SOLVERS.items()
    for solver, limit in members
]


def _path(seed, order=3, dtype=jnp.float32):
    struct = jax.ShapeDtypeStruct((2,), dtype)
    return Tree(0.0, 1.0, TOL, struct, jax.random.key(seed), order=order)


@ft.cache
def _reference(noise, seed):
    """By the most accurate solver of the group, at a step that is much finer."""
    solver = SOLVERS[noise][-1][0]()
    return _final(_solve(_path(seed), solver, noise, jnp.asarray(FINE)))


@pytest.mark.parametrize(("noise", "solver", "limit"), CASES)
def test_solvers_agree_on_the_solution(noise, solver, limit):
    """A wrong sign or scale of `H` or `K` would leave an error of another order."""
    seeds = (3, 4)
    error = {}
    for dt0 in (COARSE, FINE):
        differences = [
            _final(_solve(_path(seed), solver(), noise, jnp.asarray(dt0)))
            - _reference(noise, seed)
            for seed in seeds
        ]
        error[dt0] = np.abs(differences).max()
    assert error[COARSE] < limit
    assert error[FINE] < max(limit / 4, 1e-5)


@pytest.mark.parametrize(
    ("solver", "levy_area"),
    [
        (diffrax.SPaRK, diffrax.BrownianIncrement),
        (diffrax.QUICSORT, diffrax.SpaceTimeLevyArea),
    ],
)
def test_solver_asks_for_more_than_the_path_has(solver, levy_area, key):
    path = Tree(0.0, 1.0, TOL, (2,), key, levy_area)
    noise = "langevin" if solver is diffrax.QUICSORT else "stratonovich"
    with pytest.raises((ValueError, RuntimeError), match=r"[Ll]evy|Brownian"):
        _solve(path, solver(), noise, jnp.asarray(COARSE))


def test_levy_area_is_what_the_solver_asks_for(key):
    """The drop-in form: the class of increments that the solver needs."""
    path = Tree(0.0, 1.0, TOL, (2,), key, diffrax.SpaceTimeTimeLevyArea)
    solution = _solve(path, diffrax.QUICSORT(), "langevin", jnp.asarray(COARSE))
    assert np.all(np.isfinite(_final(solution)))


# Controllers --------------------------------------------------------------------------

PID = diffrax.PIDController(
    rtol=0, atol=1e-3, pcoeff=0.1, icoeff=0.3, dtmin=2.0**-10, dtmax=0.25
)


def test_adaptive_steps():
    """Rejected steps revisit times; the solution is that of the same path."""
    controller = diffrax.ClipStepSizeController(PID, store_rejected_steps=512)
    kwargs = {"stepsize_controller": controller}
    solution = _solve(
        _path(3), diffrax.SPaRK(), "stratonovich", jnp.asarray(0.25), **kwargs
    )
    assert solution.stats["num_rejected_steps"] > 0
    error = np.abs(_final(solution) - _reference("stratonovich", 3)).max()
    assert error < 0.01


def test_jumps():
    controller = diffrax.ClipStepSizeController(PID, jump_ts=jnp.asarray([0.3, 0.55]))
    kwargs = {"stepsize_controller": controller}
    solution = _solve(
        _path(3), diffrax.SPaRK(), "stratonovich", jnp.asarray(0.25), **kwargs
    )
    error = np.abs(_final(solution) - _reference("stratonovich", 3)).max()
    assert error < 0.01


def test_accepted_steps_add_up():
    """Whatever another equation made it reject, `dw = dW` ends at the tree's value."""
    path = _path(3, order=1)
    scales = lambda y: jnp.stack([jnp.ones(()), jnp.cos(9 * y[1])])
    diffusion = lambda t, y, args: jnp.diag(scales(y))

    @eqx.filter_jit
    def solve(path):
        return diffrax.diffeqsolve(
            diffrax.MultiTerm(
                diffrax.ODETerm(lambda t, y, args: jnp.zeros(2)),
                diffrax.ControlTerm(diffusion, path),
            ),
            diffrax.SPaRK(),
            0.0,
            1.0,
            0.25,
            jnp.zeros(2),
            stepsize_controller=PID,
        )

    solution = solve(path)
    assert solution.stats["num_rejected_steps"] > 5
    walk = _final(solution)[0]
    assert abs(walk - path.evaluate(1.0)[0]) < solution.stats["num_steps"] * EPS


def test_result_does_not_depend_on_max_steps():
    path, dt0 = _path(3), jnp.asarray(COARSE)
    plain = _final(_solve(path, diffrax.Heun(), "additive", dt0))
    other = _solve(path, diffrax.Heun(), "additive", dt0, max_steps=64)
    assert np.array_equal(_final(other), plain)


# Outputs ------------------------------------------------------------------------------


def test_saved_values():
    """All forms of `SaveAt` see one solution."""
    path, ts = _path(3), jnp.linspace(0, 1, 9)
    save = diffrax.SaveAt
    subs = {
        "at": diffrax.SubSaveAt(ts=ts),
        "steps": diffrax.SubSaveAt(steps=True, t0=True),
        "end": diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: jnp.sum(y)),
    }
    solution = _solve(
        path, diffrax.Heun(), "additive", 0.125, saveat=save(subs=subs), max_steps=16
    )
    at, steps, end = (solution.ys[name] for name in ("at", "steps", "end"))
    assert np.abs(at - steps[:9]).max() < 16 * EPS
    assert abs(end[0] - jnp.sum(at[-1])) < 16 * EPS
    dense = _solve(
        path, diffrax.Heun(), "additive", 0.125, saveat=save(dense=True), max_steps=16
    )
    assert np.abs(jax.vmap(dense.evaluate)(ts) - at).max() < 16 * EPS


def test_batch_of_solves_is_a_loop(getkey):
    keys = jax.random.split(getkey(), 4)

    def final(key):
        path = Tree(0.0, 1.0, TOL, (2,), key, order=1)
        solution = _solve(
            path,
            diffrax.SPaRK(),
            "stratonovich",
            jnp.asarray(0.1),
            stepsize_controller=PID,
        )
        return solution.ys[-1], solution.stats["num_steps"]

    batch, steps = jax.jit(jax.vmap(final))(keys)
    assert len(set(np.asarray(steps).tolist())) > 1  # each path has its own steps
    single = jax.jit(final)
    for i in range(2):
        value, count = single(keys[i])
        # A rounding may move a step, and a moved step is another approximation.
        if count == steps[i]:
            assert np.abs(value - batch[i]).max() < 1e-3


# Gradients ----------------------------------------------------------------------------

ADJOINTS = {
    "recursive": diffrax.RecursiveCheckpointAdjoint(),
    "direct": diffrax.DirectAdjoint(),
    "forward": diffrax.ForwardMode(),
    "backsolve": diffrax.BacksolveAdjoint(),
}


def _loss(parameters, path, adjoint):
    """Of the drift, the diffusion and the initial state."""
    a, b, y0 = parameters
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -args[0] * y),
        diffrax.ControlTerm(
            lambda t, y, args: args[1] * jnp.diag(jnp.sin(y) + 2), path
        ),
    )
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.Heun(),
        0.0,
        1.0,
        2.0**-7,
        y0,
        args=(a, b),
        adjoint=adjoint,
        max_steps=256,
    )
    return jnp.sum(solution.ys[-1] ** 2)


def _parameters():
    return jnp.asarray(0.7), jnp.asarray(0.3), jnp.asarray([1.0, -0.5])


@ft.cache
def _differences():
    """Central differences of the loss, on one path."""
    loss = eqx.filter_jit(_loss)
    path, adjoint = _path(7, order=0, dtype=jnp.float64), ADJOINTS["recursive"]
    flat, unravel = ravel_pytree(_parameters())
    step, out = 1e-5, []
    for i in range(flat.size):
        ends = [unravel(flat.at[i].add(sign * step)) for sign in (1, -1)]
        up, down = (loss(end, path, adjoint) for end in ends)
        out.append(float(up - down) / (2 * step))
    return np.array(out)


@pytest.mark.parametrize("name", list(ADJOINTS))
@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_differences(name):
    """With the noise held fixed: the same key, hence the same path."""
    path = _path(7, order=0, dtype=jnp.float64)
    transform = jax.jacfwd if name == "forward" else jax.grad
    gradient = jax.jit(transform(lambda p: _loss(p, path, ADJOINTS[name])))
    got, _ = ravel_pytree(gradient(_parameters()))
    # Solving backward in time has a discretisation error of its own.
    tolerance = 2e-2 if name == "backsolve" else 1e-7
    assert np.abs(got - _differences()).max() < tolerance


def test_gradient_of_a_batch(getkey):
    """The mean over paths: what training a neural SDE does."""
    keys = jax.random.split(getkey(), 3)

    def loss(parameters, key):
        path = Tree(0.0, 1.0, TOL, (2,), key, order=1)
        return _loss(parameters, path, ADJOINTS["recursive"])

    mean = lambda p: jnp.mean(jax.vmap(loss, in_axes=(None, 0))(p, keys))
    together = jax.jit(jax.grad(mean))(_parameters())
    one = jax.jit(jax.grad(loss))
    apart = [one(_parameters(), key) for key in keys]
    for i, got in enumerate(together):
        expected = np.mean([np.asarray(g[i]) for g in apart], axis=0)
        assert np.abs(got - expected).max() < 1e-4 * (1 + np.abs(expected).max())
