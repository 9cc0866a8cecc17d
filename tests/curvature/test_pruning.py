"""Optimal brain surgeon in the quadratic model that it is optimal for."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


SIZE, DAMPING = 8, 0.2
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


# One program for all tests of a type.
@functools.partial(
    jax.jit, static_argnames=("sparsity", "joint"), compiler_options=QUICK
)
def _prune(weights, rows, mask, sparsity, joint):
    inverse = px.curvature.mfac_ihvp(rows, DAMPING, mask=mask)
    pruned, kept = px.curvature.optimal_brain_surgeon(
        weights, inverse, sparsity, mask=mask, joint=joint
    )
    return pruned, kept, px.curvature.pruning_scores(weights, inverse)


class _Problem(NamedTuple):
    """Weights, rows of gradients, and the Fisher matrix in double precision."""

    weights: np.ndarray
    rows: np.ndarray
    fisher: np.ndarray

    def prune(self, sparsity, joint=False, mask=None):
        mask = np.ones(len(self.weights), bool) if mask is None else mask
        given = map(jnp.asarray, (self.weights, self.rows, mask))
        found = _prune(*given, sparsity=sparsity, joint=joint)
        return [np.asarray(x) for x in found]

    def force(self, pruned):
        return self.fisher @ self._move(pruned)

    def growth(self, pruned):
        return float(self._move(pruned) @ self.force(pruned)) / 2

    def _move(self, pruned):
        return pruned.astype(np.float64) - self.weights


@pytest.fixture
def problem(rng, precision):
    rows = rng.normal(size=(6, SIZE)).astype(precision.dtype)
    weights = rng.normal(size=SIZE).astype(precision.dtype)
    wide = rows.astype(np.float64)
    fisher = DAMPING * np.eye(SIZE) + wide.T @ wide / len(wide)
    return _Problem(weights, rows, fisher)


def test_joint_removal_solves_the_constrained_problem(problem, precision):
    """No force is left on weights that stay: the conditions of optimality."""
    limit = 1e-8 if precision.dtype == np.float64 else 1e-4
    pruned, mask, _ = problem.prune(0.5, joint=True)
    assert np.abs(problem.force(pruned)[mask]).max() < limit
    assert np.all(pruned[~mask] == 0)
    assert np.sum(~mask) == SIZE // 2
    added, same, _ = problem.prune(0.5)
    assert np.array_equal(same, mask)
    assert np.abs(problem.force(added)[mask]).max() > 1e-3
    assert problem.growth(pruned) <= problem.growth(added) * (1 + 1e-6)


def test_moves_of_single_removals_add_up(problem, precision):
    """The authors' rule, written with a dense inverse."""
    pruned, mask, scores = problem.prune(0.5)
    inverse = np.linalg.inv(problem.fisher)
    exact = problem.weights**2 / (2 * np.diag(inverse))
    limit = precision.tolerance(5000)
    np.testing.assert_allclose(scores, exact, rtol=limit)
    assert set(np.flatnonzero(~mask)) == set(np.argsort(exact)[: SIZE // 2])
    push = np.where(mask, 0, -problem.weights / np.diag(inverse))
    moved = np.where(mask, problem.weights + inverse @ push, 0)
    np.testing.assert_allclose(pruned, moved, rtol=limit, atol=limit)


def test_a_score_is_the_growth_of_the_best_single_removal(problem, precision):
    pruned, mask, scores = problem.prune(1 / SIZE)
    (removed,) = np.flatnonzero(~mask)
    assert removed == scores.argmin()
    limit = precision.tolerance(5000)
    assert problem.growth(pruned) == pytest.approx(scores[removed], rel=limit)
    # Setting it to zero alone costs more.
    alone = np.where(mask, problem.weights, 0)
    assert problem.growth(alone) > problem.growth(pruned)


@pytest.mark.parametrize("joint", [False, True])
def test_what_is_gone_stays_gone(problem, precision, joint):
    """The second round is that of the problem without the weights that are gone."""
    gone = np.arange(SIZE) % 4 == 1
    weights = np.where(gone, 0, problem.weights)
    pruned, mask, _ = problem._replace(weights=weights).prune(0.5, joint, ~gone)
    assert not np.any(mask[gone])
    assert np.all(pruned[~mask] == 0)
    inverse = np.linalg.inv(problem.fisher[np.ix_(~gone, ~gone)])
    w, kept = weights[~gone], mask[~gone]
    assert np.sum(kept) == SIZE // 2
    force = -w[~kept] / np.diag(inverse)[~kept]
    if joint:
        force = -np.linalg.solve(inverse[np.ix_(~kept, ~kept)], w[~kept])
    exact = np.where(kept, w + inverse[:, ~kept] @ force, 0)
    limit = precision.tolerance(5000)
    np.testing.assert_allclose(pruned[~gone], exact, rtol=limit, atol=limit)


def test_trees_and_their_dtypes(rng):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.bfloat16)}
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    rows = {"w": draw(4, 2, 3), "b": draw(4, 2)}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def prune(params, rows):
        inverse = px.curvature.mfac_ihvp(rows, 0.1)
        return px.curvature.optimal_brain_surgeon(params, inverse, 0.5)

    pruned, mask = prune(params, rows)
    assert pruned["b"].dtype == jnp.bfloat16
    assert pruned["w"].shape == mask["w"].shape == (2, 3)
    assert sum(int((~np.asarray(m)).sum()) for m in mask.values()) == 4
    for name in params:
        assert np.all(np.asarray(pruned[name])[~np.asarray(mask[name])] == 0)


def test_bad_input():
    def run(params, sparsity):
        inverse = px.curvature.mfac_ihvp(jnp.ones((2, 3)), 1.0)
        return px.curvature.optimal_brain_surgeon(params, inverse, sparsity)

    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\]; got 1.5"):
        jax.eval_shape(lambda: run(jnp.ones(3), 1.5))
    with pytest.raises(ValueError, match="some are complex"):
        jax.eval_shape(lambda: run(jnp.ones(3, jnp.complex64), 0.5))


def test_the_schedule_rises_fast_first():
    values = [px.curvature.pruning_schedule(i, 10, 0.9) for i in range(11)]
    steps = np.diff(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(0.9)
    assert np.all(np.diff(steps) < 0)
    late = px.curvature.pruning_schedule(jnp.asarray(20.0), 10, 0.9)
    assert float(late) == pytest.approx(0.9)
