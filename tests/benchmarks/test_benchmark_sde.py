"""The subject `sde`: well formed, its equation and its solution belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px
from benchmarks import sde
from benchmarks._case import Config
from benchmarks._report import Results
from benchmarks.sde import _adaptive
from benchmarks.sde._report import sections


KEYS = {"time_over_diffrax", "time_over_torchsde"}
KEYS |= {"evals_over_torchsde", "error_over_torchsde", "counting"}


def row(**values):
    return {
        "error": 0.1,
        "evaluations": 60.0,
        "time": 1.0,
        "q1": 1.0,
        "q3": 1.0,
    } | values


def record(tolerance):
    rows = {
        "pathax": row(),
        "diffrax": row(time=3.0),
        "torchsde": row(time=9.0, evaluations=240.0, error=0.2),
    }
    figures = {"tolerance": tolerance, "seconds pathax": 0.01, "rows": rows}
    return {"status": "ok", "figures": figures}


def test_names_and_keys():
    for config in (Config(), Config(fast=True)):
        names = [case.name for case in sde.cases(config)]
        assert len(set(names)) == len(names)
    assert sde.headline({}) == dict.fromkeys(KEYS)
    found = sde.headline({"adaptive/a": record(0.1), "adaptive/b": record(0.01)})
    assert found == {
        "time_over_diffrax": 3.0,
        "time_over_torchsde": 9.0,
        "evals_over_torchsde": 4.0,
        "error_over_torchsde": 0.5,
        "counting": None,
    }


def test_the_solution_solves_the_equation():
    """Itô's formula, with derivatives in time and in the path by automatic ones."""
    a, b = _adaptive.A, _adaptive.B
    x = lambda t, w: jnp.tanh(-a * t + b * w)
    t, w = 0.7, 0.4
    at = x(t, w)
    slope = jax.grad(x, 0)(t, w) + jax.grad(jax.grad(x, 1), 1)(t, w) / 2
    np.testing.assert_allclose(slope, -(a + b**2 * at) * (1 - at**2), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(x, 1)(t, w), b * (1 - at**2), rtol=1e-5)


def test_report(tmp_path):
    data = {"cases": {"adaptive/a": record(0.1), "adaptive/b": record(0.01)}}
    text = "\n".join(sections(Results("sde", "cpu", data), tmp_path))
    assert "torchsde" in text
    assert len(list(tmp_path.glob("*.svg"))) == 2
    assert sections(Results("sde", "cpu", {"cases": {}}), tmp_path) == []


@pytest.mark.slow
def test_errors_follow_the_tolerance():
    keys = jax.random.split(jax.random.key(0), 16)
    errors = []
    for tolerance in (2.0**-3, 2.0**-8):
        run = _adaptive._by_jax(
            px.brownian.VirtualBrownianTree, px.solvers.SRIW1(), True, tolerance, keys
        )
        off, made, steps = run()
        np.testing.assert_array_equal(made, 6 * steps)
        errors.append(float(jnp.sqrt(jnp.mean(off**2))))
    assert errors[1] < errors[0] / 4
