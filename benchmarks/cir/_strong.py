"""Errors of paths, beside the same scheme with much shorter steps."""

from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

import pathax as px

from .._case import Case, Config


END, TOL = 4.0, 2**-16
SEED = 5678


class Setting(NamedTuple):
    """Which steps are tried, and those of the references, as published."""

    sigma: float
    constant: tuple[int, ...]  # 2^n steps
    adaptive: tuple[int, ...]  # tolerances 2^-n
    exact: tuple[int, int]  # the exponents of both for the references
    chunk: int  # paths that take their adaptive steps together


MEDIUM = Setting(1.5, tuple(range(3, 12)), tuple(range(9)), (13, 12), 100)
MEDIUM_FAST = Setting(1.5, tuple(range(3, 10)), tuple(range(9)), (13, 12), 100)
# Few steps only, against a reference that is fine enough for them, on more paths: the
# error there is that of a few paths that come close to zero.
COARSE = Setting(1.5, (), (0, 1, 2), (0, 6), 100)
HIGH = Setting(2.2, tuple(range(5, 12)), tuple(range(1, 8)), (14, 11), 25)

# Steps and errors of the published runs, 50,000 paths.
PUBLISHED = {
    "medium/HOStS": {
        "constant": {8: 0.136, 32: 0.0464, 128: 0.0151, 512: 5.35e-3},
        "adaptive": {20: 0.0401, 58: 6.96e-3, 149: 1.14e-3, 522: 1.23e-4},
        "order constant": 0.78,
        "order adaptive": 1.82,
    },
    "medium/DIE": {
        "constant": {8: 0.461, 32: 0.158, 128: 0.0520, 512: 0.0162},
        "adaptive": {27: 0.235, 70: 0.128, 161: 0.0615, 522: 0.0172},
        "order constant": 0.86,
        "order adaptive": 1.03,
    },
    "high/HOStS": {
        "constant": {32: 0.546, 128: 0.302, 512: 0.173},
        "adaptive": {486: 0.142, 1311: 0.0449, 3492: 0.0154},
        "order constant": 0.39,
        "order adaptive": 0.81,
    },
    "high/DIE": {
        "constant": {32: 0.665, 128: 0.362, 512: 0.198},
        "adaptive": {1239: 0.303, 3022: 0.110, 4889: 0.0330},
        "order constant": 0.46,
        "order adaptive": 0.86,
    },
}

PUBLISHED_COARSE = {11: 0.0778, 20: 0.0401, 34: 0.0162}


def _solve(cir: px.solvers.CIR, scheme: str, controller: Any, dt0: Any, times: Any):
    """From a key to states at the times, and numbers of steps."""
    high = scheme == "HOStS"
    solver = px.solvers.HOStS.of(cir) if high else px.solvers.DriftImplicitEuler(cir)
    area = dfx.SpaceTimeLevyArea if high else dfx.BrownianIncrement

    def solve(key):
        path = px.brownian.VirtualBrownianTree(0.0, END, TOL, (), key, area)
        found = dfx.diffeqsolve(
            cir.terms(path),
            solver,
            0.0,
            END,
            dt0,
            jnp.asarray(1.0),
            stepsize_controller=controller,
            saveat=dfx.SaveAt(ts=times),
            max_steps=None,
            adjoint=dfx.ForwardMode(),
        )
        steps = found.stats["num_accepted_steps"], found.stats["num_steps"]
        return found.ys, steps

    return solve


def _ensemble(solve: Any, keys: jax.Array, chunk: int) -> tuple[np.ndarray, ...]:
    """All paths, a chunk at a time; mean numbers of accepted and of all steps."""
    run = jax.jit(lambda keys: jax.lax.map(jax.vmap(solve), keys))
    ys, (accepted, tried) = run(keys.reshape(-1, chunk))
    ys = np.asarray(ys).reshape(len(keys), -1)
    return ys, np.mean(accepted), np.mean(tried)


def _slope(steps: np.ndarray, errors: np.ndarray) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def _order(steps: list[float], squares: np.ndarray) -> tuple[float, list[float]]:
    """Slope of the error over the steps, with a 95% interval over paths."""
    rng = np.random.default_rng(0)
    counts = np.asarray(steps)
    of = lambda part: _slope(counts, np.sqrt(part.mean(axis=1)))
    paths = squares.shape[1]
    again = [of(squares[:, rng.integers(paths, size=paths)]) for _ in range(400)]
    return of(squares), [float(x) for x in np.quantile(again, [0.025, 0.975])]


KINDS = ("constant", "constant, at the end", "adaptive")


def _measure(name: str, setting: Setting, paths: int, index: int = 0) -> dict[str, Any]:
    """Of so many paths; other ones in every further run."""
    scheme = name.split("/")[1]
    cir = px.solvers.CIR(1.0, 1.0, setting.sigma)
    with jax.enable_x64(True):
        key = jax.random.key(SEED)
        key = key if index == 0 else jax.random.fold_in(key, index)
        keys = jax.random.split(key, paths)
        constant = _constant(cir, scheme, setting, keys)
        adaptive, tried = _adaptive(cir, scheme, setting, keys)
    figures: dict[str, Any] = {"paths": paths, "tried over accepted": tried}
    for kind, (steps, squares) in {**constant, "adaptive": adaptive}.items():
        errors = np.sqrt(squares.mean(axis=1))
        figures[kind] = [
            [float(n), float(e)] for n, e in zip(steps, errors, strict=True)
        ]
        first = _first(kind)
        order, interval = _order(steps[first:], squares[first:])
        figures |= {f"order {kind}": order, f"order {kind} interval": interval}
    return figures | _beside(name, setting, figures)


def _first(kind: str) -> int:
    """The first point that an order is fitted to."""
    return 1 if kind == "adaptive" else 0  # the longest steps are cut at 1


def _beside(name: str, setting: Setting, figures: dict) -> dict[str, Any]:
    """Errors at certain numbers of steps."""
    at = lambda kind, n: _at(figures[kind], n)
    found: dict[str, Any] = {}
    if setting.sigma == MEDIUM.sigma:
        found["gain at 520"] = float(at("constant", 520) / at("adaptive", 520))
        last = float(at("constant, at the end", 520) / at("adaptive", 520))
        found["gain at 520, both at the end"] = last
    found["beside published"] = {
        kind: [
            [n, error, at(kind, n)]
            for n, error in PUBLISHED[name][kind].items()
            if min(x for x, _ in figures[kind]) <= n <= max(x for x, _ in figures[kind])
        ]
        for kind in ("constant", "adaptive")
    }
    return found


def _pooled(name: str, setting: Setting, paths: int, old: dict, new: dict) -> dict:
    """Figures of all paths of two runs: mean squares are added up, orders are fitted
    anew, and squares of the widths of intervals fall with the number of paths.
    """
    counts = old.get("paths", paths), new["paths"]
    total = sum(counts)
    weight = [n / total for n in counts]
    mean = lambda a, b: weight[0] * a + weight[1] * b
    out: dict[str, Any] = {"paths": total}
    key = "tried over accepted"
    out[key] = mean(old[key], new[key])
    for kind in KINDS:
        pairs = zip(old[kind], new[kind], strict=True)
        points = [[mean(m, n), mean(d**2, e**2) ** 0.5] for (m, d), (n, e) in pairs]
        steps, errors = np.asarray(points[_first(kind) :]).T
        order = _slope(steps, errors)
        spans = [figures[f"order {kind} interval"] for figures in (old, new)]
        halves = [(high - low) / 2 for low, high in spans]
        half = float(np.hypot(weight[0] * halves[0], weight[1] * halves[1]))
        out |= {kind: points, f"order {kind}": order}
        out[f"order {kind} interval"] = [order - half, order + half]
    return out | _beside(name, setting, out)


def _at(points: list[list[float]], n: float) -> float:
    """The error at so many steps, between the points that lie on both sides of it."""
    steps, errors = np.log(np.asarray(points)).T
    first = np.argmin(steps)  # a loose tolerance can take more steps than a tighter one
    return float(np.exp(np.interp(np.log(n), steps[first:], errors[first:])))


def _constant(cir, scheme, setting, keys) -> dict[str, tuple]:
    """Squared errors at the worst time of the coarsest grid, and at the end."""
    levels = setting.constant
    times = jnp.linspace(0.0, END, 2 ** levels[0] + 1)
    chunk = min(len(keys), 500)
    run = lambda n: _ensemble(
        _solve(cir, scheme, dfx.ConstantStepSize(), END / 2**n, times), keys, chunk
    )[0]
    exact = run(setting.exact[0])
    worst, last = [], []
    for n in levels:
        off = np.abs(run(n) - exact)
        worst.append(off.max(axis=1) ** 2)
        last.append(off[:, -1] ** 2)
    steps = [2.0**n for n in levels]
    return {
        "constant": (steps, np.stack(worst)),
        "constant, at the end": (steps, np.stack(last)),
    }


def _adaptive(cir, scheme, setting, keys) -> tuple[tuple, float]:
    """Squared errors at the end; steps tried over steps accepted."""
    levels = setting.adaptive
    run = lambda n: _ensemble(
        _solve(cir, scheme, px.solvers.CIRController(2.0**-n), None, jnp.array([END])),
        keys,
        setting.chunk,
    )
    exact = run(setting.exact[1])[0]
    steps, tried, squares = [], [], []
    for n in levels:
        found, accepted, every = run(n)
        steps.append(float(accepted))
        tried.append(float(every / accepted))
        squares.append((found - exact)[:, -1] ** 2)
    return (steps, np.stack(squares)), float(np.mean(tried))


def _interval(squares: np.ndarray) -> list[float]:
    """95% of the root of a mean, over paths."""
    rng = np.random.default_rng(0)
    paths = len(squares)
    again = [squares[rng.integers(paths, size=paths)].mean() for _ in range(400)]
    return [float(x) for x in np.sqrt(np.quantile(again, [0.025, 0.975]))]


def _coarse(setting: Setting, paths: int) -> dict[str, Any]:
    """Adaptive steps of `HOStS`, beside the published points of few steps."""
    cir = px.solvers.CIR(1.0, 1.0, setting.sigma)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(SEED + 1), paths)
        (steps, squares), _ = _adaptive(cir, "HOStS", setting, keys)
    errors = np.sqrt(squares.mean(axis=1))
    points = [[float(n), float(e)] for n, e in zip(steps, errors, strict=True)]
    return {
        "adaptive": points,
        "intervals": [_interval(row) for row in squares],
        # How much of the mean square is of the worst hundredth of the paths.
        "of the worst 1%": [
            float(np.sort(row)[-paths // 100 :].sum() / row.sum()) for row in squares
        ],
    }


def coarse_cases(config: Config) -> list[Case]:
    """In a full run."""
    paths = 20_000
    if config.fast:
        return []
    return [
        Case(
            name="coarse/HOStS",
            parameters={**COARSE._asdict(), "paths": paths},
            measure=lambda _: _coarse(COARSE, paths),
        )
    ]


def strong_cases(config: Config) -> list[Case]:
    """Medium volatility by both schemes; high volatility as well in a full run."""
    settings = {"medium": MEDIUM_FAST if config.fast else MEDIUM}
    paths = {"medium": 500 if config.fast else 2_000}
    if not config.fast:
        settings["high"], paths["high"] = HIGH, 250
    return [
        _case(f"{volatility}/{scheme}", setting, paths[volatility])
        for volatility, setting in settings.items()
        for scheme in ("HOStS", "DIE")
    ]


def _case(name: str, setting: Setting, paths: int) -> Case:
    return Case(
        name=name,
        parameters={**setting._asdict(), "paths": paths},
        measure=lambda index: _measure(name, setting, paths, index),
        merge=lambda old, new: _pooled(name, setting, paths, old, new),
    )
