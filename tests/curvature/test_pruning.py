"""Optimal brain surgeon in the quadratic model that it is optimal for."""

import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


SIZE, DAMPING = 8, 0.2


@pytest.fixture
def problem(rng, precision):
    """Weights, rows of gradients, and the Fisher matrix in double precision."""
    rows = rng.normal(size=(6, SIZE)).astype(precision.dtype)
    weights = rng.normal(size=SIZE).astype(precision.dtype)
    wide = rows.astype(np.float64)
    fisher = DAMPING * np.eye(SIZE) + wide.T @ wide / len(wide)
    inverse = px.curvature.mfac_ihvp(jnp.asarray(rows), DAMPING)
    return jnp.asarray(weights), inverse, fisher


def _growth(move, fisher):
    return float(move @ fisher @ move) / 2


def test_joint_removal_solves_the_constrained_problem(problem, precision):
    """No force is left on weights that stay: the conditions of optimality."""
    weights, inverse, fisher = problem
    pruned, mask = px.curvature.optimal_brain_surgeon(weights, inverse, 0.5, joint=True)
    move = np.asarray(pruned, np.float64) - np.asarray(weights, np.float64)
    force = fisher @ move
    limit = 1e-8 if precision.dtype == np.float64 else 1e-4
    assert np.abs(force[np.asarray(mask)]).max() < limit
    assert np.all(np.asarray(pruned)[~np.asarray(mask)] == 0)
    assert int(np.sum(~np.asarray(mask))) == SIZE // 2


def test_joint_removal_beats_the_sum_of_single_ones(problem):
    weights, inverse, fisher = problem
    growths = [
        _growth(
            np.asarray(pruned, np.float64) - np.asarray(weights, np.float64), fisher
        )
        for pruned in (
            px.curvature.optimal_brain_surgeon(weights, inverse, 0.5, joint=joint)[0]
            for joint in (True, False)
        )
    ]
    assert growths[0] <= growths[1] * (1 + 1e-6)


def test_a_score_is_the_growth_of_the_best_single_removal(problem, precision):
    weights, inverse, fisher = problem
    scores = np.asarray(px.curvature.pruning_scores(weights, inverse), np.float64)
    pruned, mask = px.curvature.optimal_brain_surgeon(weights, inverse, 1 / SIZE)
    move = np.asarray(pruned, np.float64) - np.asarray(weights, np.float64)
    (removed,) = np.flatnonzero(~np.asarray(mask))
    assert removed == scores.argmin()
    limit = precision.tolerance(5000)
    assert _growth(move, fisher) == pytest.approx(scores[removed], rel=limit)
    naive = np.zeros(SIZE)
    naive[removed] = -float(weights[removed])
    assert _growth(naive, fisher) > scores[removed]  # zeroing alone costs more


def test_what_is_gone_stays_gone(problem):
    weights, inverse, _ = problem
    pruned, first = px.curvature.optimal_brain_surgeon(weights, inverse, 0.25)
    pruned, second = px.curvature.optimal_brain_surgeon(
        pruned, inverse, 0.5, mask=first
    )
    assert not np.any(np.asarray(second) & ~np.asarray(first))
    assert np.all(np.asarray(pruned)[~np.asarray(second)] == 0)


def test_trees_and_their_dtypes(rng):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.bfloat16)}
    rows = {
        "w": jnp.asarray(rng.normal(size=(4, 2, 3)).astype(np.float32)),
        "b": jnp.asarray(rng.normal(size=(4, 2)).astype(np.float32)),
    }
    inverse = px.curvature.mfac_ihvp(rows, 0.1)
    pruned, mask = px.curvature.optimal_brain_surgeon(params, inverse, 0.5)
    assert pruned["b"].dtype == jnp.bfloat16
    assert pruned["w"].shape == mask["w"].shape == (2, 3)
    assert sum(int((~m).sum()) for m in mask.values()) == 4


def test_bad_input():
    inverse = px.curvature.mfac_ihvp(jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\]; got 1.5"):
        px.curvature.optimal_brain_surgeon(jnp.ones(3), inverse, 1.5)
    with pytest.raises(ValueError, match="some are complex"):
        px.curvature.pruning_scores(jnp.ones(3, jnp.complex64), inverse)


def test_the_schedule_rises_fast_first():
    values = [px.curvature.pruning_schedule(i, 10, 0.9) for i in range(11)]
    steps = np.diff(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(0.9)
    assert np.all(np.diff(steps) < 0)
    late = px.curvature.pruning_schedule(jnp.asarray(20.0), 10, 0.9)
    assert float(late) == pytest.approx(0.9)
