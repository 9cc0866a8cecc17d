"""Solver by adjoint by what is saved by batching: finite values and derivatives."""

import itertools
import warnings

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import imex, inputs, ode, sde, tolerance

from pathax.regularizers import Error, Local, StepCost, Tolerances, solve


LOOSE = tolerance(1e-1, dtmin=2.0**-8)
FIXED = dfx.ConstantStepSize()
SOLVERS = {
    "Tsit5": (dfx.Tsit5(), tolerance(1e-3), ode),
    "Dopri8": (dfx.Dopri8(), tolerance(1e-3), ode),
    "Tsit5, fixed": (dfx.Tsit5(), FIXED, ode),
    "Kvaerno3": (dfx.Kvaerno3(), tolerance(1e-2), ode),
    "KenCarp3": (dfx.KenCarp3(), tolerance(1e-2), imex),
    "Half Euler": (dfx.HalfSolver(dfx.Euler()), tolerance(1e-1), ode),
    "SPaRK": (dfx.SPaRK(), LOOSE, sde),
    "Heun": (dfx.Heun(), LOOSE, sde),
}
ADJOINTS = {
    "checkpoints": dfx.RecursiveCheckpointAdjoint(),
    "direct": dfx.DirectAdjoint(),
    "forward": dfx.ForwardMode(),
}
SAVES = {
    "end": dfx.SaveAt(t1=True),
    "times": dfx.SaveAt(ts=jnp.array([0.25, 1.0])),
}
BATCHES = ("alone", "vmap")
MATRIX = list(itertools.product(SOLVERS, ADJOINTS, SAVES, BATCHES))
FAST = [
    ("Tsit5", "checkpoints", "times", "vmap"),
    ("SPaRK", "checkpoints", "end", "alone"),
]


def test_the_matrix_is_large():
    assert len(MATRIX) >= 60


def _check(solver, adjoint, save, batch):
    method, controller, terms = SOLVERS[solver]
    y0, args = inputs(np.float32)
    options = {} if controller is not FIXED else {"tolerances": Tolerances(1e-3, 1e-3)}
    penalties = {"error": Error(), "cost": StepCost(), "local": Local()}
    if is_noisy := terms is sde:
        penalties["cost"] = Error(2)

    def value(args, y0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sol, record = solve(
                terms(),
                method,
                0.0,
                1.0,
                0.25,
                y0,
                args,
                penalties=penalties,
                stepsize_controller=controller,
                saveat=SAVES[save],
                adjoint=ADJOINTS[adjoint],
                key=jax.random.key(0),
                max_steps=128,
                **options,
            )
        return sum(record.penalties.values()), (record, sol.ys)

    derivative = jax.jacfwd if adjoint == "forward" else jax.grad
    both = derivative(value, has_aux=True)
    if batch == "vmap":
        both, y0 = jax.vmap(both, (None, 0)), jnp.stack([y0, -y0])
    gradient, (record, ys) = jax.jit(both)(args, y0)
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.any(gradient != 0)
    assert jnp.all(jnp.isfinite(ys))
    assert jnp.all(record.evaluations.total.drift > 0)
    assert jnp.all(
        record.evaluations.total.noise == record.attempted_steps * int(is_noisy)
    )


@pytest.mark.parametrize("case", FAST, ids=" ".join)
def test_combinations(case):
    _check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MATRIX, ids=" ".join)
def test_all_combinations(case):
    _check(*case)
