"""One equation, many paths, one tolerance: by pathax, Diffrax and torchsde."""

import time
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config, SkippedError


# dX = -(A + B^2 X) (1 - X^2) dt + B (1 - X^2) dW from zero, in the sense of Itô, has
# the solution tanh(-A t + B W); Stratonovich's drift is -A (1 - X^2).
A, B, END = 0.5, 0.7, 2.0
FIRST, LEAF, SHORTEST = 2.0**-4, 2.0**-16, 2.0**-14


def _exact(w: Any, tanh: Any = jnp.tanh) -> Any:
    return tanh(-A * END + B * w)


def _by_jax(tree: Any, solver: Any, ito: bool, tolerance: float, keys: Any) -> Callable:
    """A compiled solve of all paths: errors, evaluations and steps of each."""

    def one(key):
        path = tree(0.0, END, LEAF, (), key, dfx.SpaceTimeLevyArea)
        slope = lambda x: A + B**2 * x if ito else A
        terms = dfx.MultiTerm(
            dfx.ODETerm(lambda t, x, args: -slope(x) * (1 - x**2)),
            dfx.ControlTerm(lambda t, x, args: B * (1 - x**2), path),
        )
        pid = dfx.PIDController(
            rtol=0.0, atol=tolerance, pcoeff=0.1, icoeff=0.3, dtmin=SHORTEST
        )
        counted = px.solvers.counting(solver, pid)
        found = dfx.diffeqsolve(
            terms,
            counted.solver,
            0.0,
            END,
            FIRST,
            jnp.zeros(()),
            stepsize_controller=counted.controller,
            saveat=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
            max_steps=None,
            adjoint=dfx.ForwardMode(),
        )
        made = px.solvers.evaluations(found).total
        off = found.ys[0] - _exact(path.evaluate(0.0, END))
        return off, made.drift + made.diffusion, found.stats["num_steps"]

    compiled = jax.jit(jax.vmap(one)).lower(keys).compile()
    return lambda: jax.block_until_ready(compiled(keys))


def _by_torch(tolerance: float, paths: int) -> Callable:
    """The same by torchsde, which takes one step size for all paths of a batch."""
    try:
        import torch
        import torchsde
    except ImportError:
        raise SkippedError("needs `pip install torch torchsde`") from None

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self):
            super().__init__()
            self.calls = 0

        def f(self, t, x):
            self.calls += 1
            return -(A + B**2 * x) * (1 - x**2)

        def g(self, t, x):
            self.calls += 1
            return B * (1 - x**2)

    equation = Equation()
    times, start = torch.tensor([0.0, END]), torch.zeros(paths, 1)

    def run():
        path = torchsde.BrownianInterval(
            0.0,
            END,
            size=(paths, 1),
            entropy=0,
            levy_area_approximation="space-time",
        )
        equation.calls = 0
        with torch.no_grad():
            found = torchsde.sdeint(
                equation,
                start,
                times,
                bm=path,
                method="srk",
                dt=FIRST,
                adaptive=True,
                rtol=0.0,
                atol=tolerance,
                dt_min=SHORTEST,
            )
            off = found[-1] - _exact(path(0.0, END), torch.tanh)
        return off.numpy(), np.full(paths, equation.calls), np.zeros(paths)

    return run


def _measure(tolerance: float, paths: int, rounds: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), paths)
    ours, theirs = px.brownian.VirtualBrownianTree, dfx.VirtualBrownianTree
    sriw1, spark = px.solvers.SRIW1(), dfx.SPaRK()
    by_jax = lambda *choice: _by_jax(*choice, tolerance, keys)
    sides = {
        "pathax": by_jax(ours, sriw1, True),
        "pathax, SPaRK": by_jax(ours, spark, False),
        "diffrax": by_jax(theirs, spark, False),
        "diffrax, SRIW1": by_jax(theirs, sriw1, True),
        "torchsde": _by_torch(tolerance, paths),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, run in sides.items():  # once for the numbers, and to warm up
        off, evaluations, steps = (np.asarray(x, np.float64) for x in run())
        rows[name] = {
            "error": float(np.sqrt(np.mean(off**2))),
            "evaluations": float(np.mean(evaluations)),
            "steps": float(np.mean(steps)),
        }
    clocks: dict[str, list[float]] = {name: [] for name in sides}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(sides)):
            begin = time.perf_counter()
            sides[name]()
            clocks[name].append(time.perf_counter() - begin)
    # Only ratios mean anything on another machine; taken round by round.
    for name in sides:
        ratios = np.divide(clocks[name], clocks["pathax"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows[name] |= {"time": float(middle), "q1": float(low), "q3": float(high)}
    pace = float(np.median(clocks["pathax"]))
    return {"tolerance": tolerance, "seconds pathax": pace, "rows": rows}


def adaptive_cases(config: Config) -> list[Case]:
    """A case a tolerance."""
    levels = (4, 8) if config.fast else (2, 4, 6, 8, 10)
    paths, rounds = (256, 3) if config.fast else (256, 9)
    return [
        Case(
            name=f"adaptive/2^-{n}",
            parameters={"paths": paths, "rounds": rounds, "shortest": SHORTEST},
            measure=lambda _, n=n: _measure(2.0**-n, paths, rounds),
            packages=("torch", "torchsde"),
        )
        for n in levels
    ]
