"""Strong errors on a funnel in ten dimensions."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config


END, FRICTION = 32.0, 2.0
DEPTH = 14


def _gradient(x, args):
    """Of `z^2 / 6 + |y|^2 / (2 e^{z / 4})`, the exponential held fixed."""
    z, y = x[:1], x[1:]
    return jnp.concatenate([z / 3, y * jnp.exp(-z / 4)])


def _terms(key):
    path = px.brownian.VirtualBrownianTree(
        0.0, END, END * 2.0**-DEPTH, (10,), key, dfx.SpaceTimeTimeLevyArea
    )
    return dfx.MultiTerm(
        dfx.UnderdampedLangevinDriftTerm(FRICTION, 1.0, _gradient),
        dfx.UnderdampedLangevinDiffusionTerm(FRICTION, 1.0, path),
    )


def _run(solver, controller, keys, dt):
    """Ends of all paths, and the mean numbers of gradients."""

    @jax.jit
    def run(keys, dt):
        def one(key):
            counted = px.solvers.counting(solver, controller)
            found = dfx.diffeqsolve(
                _terms(key),
                counted.solver,
                0.0,
                END,
                dt,
                (jnp.zeros(10), jnp.zeros(10)),
                stepsize_controller=counted.controller,
                saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
                max_steps=None,
                adjoint=dfx.ForwardMode(),
            )
            return found.ys[0][0], px.solvers.evaluations(found).total.drift

        return jax.vmap(one)(keys)

    x, gradients = run(keys, jnp.asarray(dt))
    return np.asarray(x, np.float64), float(jnp.mean(gradients))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(x**2, axis=-1))))


def _measure(double: bool, paths: int, levels: tuple[int, ...]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    constant, keys = dfx.ConstantStepSize(), None
    with jax.enable_x64(double):
        keys = jax.random.split(jax.random.key(0), paths)
        run = lambda n: _run(dfx.QUICSORT(), constant, keys, END / 2**n)
        points = {n: run(n) for n in levels}
        exact, _ = run(levels[-1] + 2)
        if double:
            figures |= _adaptive(keys, exact)
    errors = [_rms(points[n][0] - exact) for n in levels]
    figures["constant"] = [
        [points[n][1], error] for n, error in zip(levels, errors, strict=True)
    ]
    # What lies well above rounding: the reference has some of its own.
    kept = [i for i, error in enumerate(errors) if double or error > 30 * 1e-6]
    steps = np.array([2.0 ** levels[i] for i in kept])
    fit = np.polyfit(np.log(steps), np.log([errors[i] for i in kept]), 1)
    figures["order"] = -float(fit[0])
    figures["levels in the order"] = len(kept)
    return figures


def _adaptive(keys, exact) -> dict[str, Any]:
    """Gradients and errors of the three ways to adapt."""
    ways = {
        "halves": dfx.HalfSolver(dfx.QUICSORT()),
        "QUICSORT": px.solvers.QUICSORT(),
        "ShOULD": px.solvers.ShOULD(),
    }
    figures = {}
    for name, solver in ways.items():
        points = []
        for level in (5, 8, 11):
            controller = dfx.PIDController(
                0.0, 2.0**-level, pcoeff=0.1, icoeff=0.3, dtmin=END * 2.0**-12
            )
            x, gradients = _run(solver, controller, keys, 0.1)
            points.append([gradients, _rms(x - exact)])
        figures[f"adaptive {name}"] = points
    return figures


def order_cases(config: Config) -> list[Case]:
    """Both precisions."""
    paths = 32 if config.fast else 100
    levels = {"float32": tuple(range(6, 10)), "float64": tuple(range(6, 11))}
    return [
        Case(
            name=f"order/{dtype}",
            parameters={"paths": paths, "levels": list(levels[dtype])},
            measure=lambda _, dtype=dtype: _measure(
                dtype == "float64", paths, levels[dtype]
            ),
        )
        for dtype in levels
    ]
