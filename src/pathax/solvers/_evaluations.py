"""How often one step of a solver evaluates the terms of an equation."""

from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._augmented import is_single


class Evaluations(NamedTuple):
    """Numbers of evaluations.

    **Attributes:**

    - `drift`: of the vector fields of all terms without noise.
    - `diffusion`: of the vector fields of all terms with noise.
    - `noise`: queries to the Brownian path.
    - `jacobian`: Jacobians made (and factorized) by implicit solvers.
    """

    drift: Any = 0
    diffusion: Any = 0
    noise: Any = 0
    jacobian: Any = 0


def add(*parts: Evaluations) -> Evaluations:
    """The sum, number by number."""
    return Evaluations(*(sum(numbers) for numbers in zip(*parts, strict=True)))


def scaled(factor: Any, evaluations: Evaluations) -> Evaluations:
    """All numbers times a factor."""
    return Evaluations(*(factor * number for number in evaluations))


def has_noise(term: PyTree) -> bool:
    """Whether a term is driven by a Brownian path."""
    is_path = lambda x: isinstance(x, dfx.AbstractBrownianPath)
    return any(map(is_path, jax.tree.leaves(term, is_leaf=is_path)))


def noise_of_terms(terms: PyTree) -> list[bool]:
    """For each term, whether it is driven by a Brownian path."""

    def flat(tree: PyTree) -> list:
        found = jax.tree.leaves(tree, is_leaf=_is_term)
        return [
            t
            for x in found
            for t in (flat(list(x.terms)) if isinstance(x, dfx.MultiTerm) else [x])
        ]

    return [has_noise(term) for term in flat(terms)]


def _is_term(x: Any) -> bool:
    return is_single(x) or isinstance(x, dfx.MultiTerm)


# Drift and diffusion evaluations of a step, where they don't depend on anything.
_FIXED: dict[type, tuple[int, int]] = {
    dfx.Euler: (1, 1),
    dfx.EulerHeun: (1, 2),
    dfx.ItoMilstein: (1, 2),
    dfx.StratonovichMilstein: (1, 2),
    dfx.LeapfrogMidpoint: (1, 1),
    dfx.SemiImplicitEuler: (1, 1),
    dfx.ReversibleHeun: (1, 1),
    dfx.ALIGN: (1, 0),
    dfx.ShOULD: (2, 0),
    dfx.QUICSORT: (2, 0),
}

# These keep the field from the end of a step, and evaluate it before the first one and
# after each jump.
_KEEP_THE_FIELD = (dfx.ReversibleHeun, dfx.ALIGN, dfx.ShOULD)


def evaluations_of_step(
    solver: Any, terms: PyTree, solver_state: Any, made_jump: Any
) -> Evaluations:
    """Those of one step of an explicit solver, that starts from this solver state.

    Solvers of other libraries say it by a method `evaluations(terms, solver_state,
    made_jump)` that returns [`pathax.solvers.Evaluations`][].
    """
    kind, noisy = type(solver), noise_of_terms(terms)
    if hasattr(solver, "evaluations"):
        return solver.evaluations(terms, solver_state, made_jump)
    if kind in _FIXED:
        drift, diffusion = _FIXED[kind]
        if kind in _KEEP_THE_FIELD:
            again = _number(made_jump)
            drift, diffusion = drift + again, diffusion + again * min(diffusion, 1)
        return _per_term(drift, diffusion, noisy)
    if issubclass(kind, dfx.AbstractERK):
        stages = solver.tableau.num_stages
        if solver_state is not None:
            stages = stages - 1 + first_stage(solver_state, made_jump)
        return _per_term(stages, stages, noisy)
    if issubclass(kind, dfx.AbstractSRK):
        drift, diffusion = _stages_of_srk(solver.tableau)
        return _per_term(drift, diffusion, noisy)
    raise ValueError(
        f"The evaluations of {kind.__name__} are not known. Give it a method "
        "`evaluations(terms, solver_state, made_jump)` that returns the "
        "`pathax.solvers.Evaluations` of one step."
    )


def evaluations_of_init(solver: Any, terms: PyTree) -> Evaluations:
    """Those made before the first step."""
    if hasattr(solver, "evaluations_of_init"):
        return solver.evaluations_of_init(terms)
    if isinstance(solver, dfx.AbstractSRK) and solver.tableau.is_additive_noise():
        return Evaluations(diffusion=1)  # to check that it doesn't depend on the state
    if type(solver) not in _KEEP_THE_FIELD:
        return Evaluations()
    drift, diffusion = _FIXED[type(solver)]
    once = _per_term(min(drift, 1), min(diffusion, 1), noise_of_terms(terms))
    return once._replace(noise=0)


def first_stage(solver_state: Any, made_jump: Any) -> Array:
    """1 where the first stage is evaluated, 0 where it is that of the last step."""
    first_step, _ = solver_state
    return _number(jnp.logical_or(first_step, made_jump))


def _number(flag: Any) -> Array:
    return jnp.asarray(flag).astype(jnp.int32)


def _per_term(drift: Any, diffusion: Any, noisy: list[bool]) -> Evaluations:
    without, with_noise = noisy.count(False), noisy.count(True)
    return Evaluations(drift * without, diffusion * with_noise, with_noise)


def _stages_of_srk(tableau: Any) -> tuple[int, int]:
    count = len(tableau.b_sol)

    def evaluated(ignored: Any) -> int:
        return count if ignored is None else count - int(np.sum(ignored))

    # With additive noise the diffusion is taken at both ends of the step.
    diffusion = 2 if tableau.is_additive_noise() else evaluated(tableau.ignore_stage_g)
    return evaluated(tableau.ignore_stage_f), diffusion
