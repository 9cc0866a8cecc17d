"""A solver around a solver, that Diffrax can't tell from the one inside."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
from equinox import AbstractVar
from jaxtyping import PyTree


class AbstractTransparentSolver(dfx.AbstractWrappedSolver):
    """Forwards whatever Diffrax looks up on a solver to the one inside.

    Diffrax asks `isinstance` of a wrapper's `solver`, but not of what that wraps in
    turn; so `solver` is the innermost one, and `wrapped` the next.

    Diffrax sets tolerances in the solver's `root_finder` and the kind of loop in its
    `scan_kind`, by the path of these attributes; both must be there if, and only if,
    the innermost solver has them.
    """

    wrapped: AbstractVar[dfx.AbstractSolver]

    @property
    def solver(self) -> dfx.AbstractSolver:
        return innermost(self.wrapped)

    @property
    def term_structure(self) -> Any:
        return self.wrapped.term_structure

    @property
    def interpolation_cls(self) -> Callable:
        return self.wrapped.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.wrapped.term_compatible_contr_kwargs

    @property
    def root_finder(self) -> Any:
        return self.solver.root_finder  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def root_find_max_steps(self) -> Any:
        return self.solver.root_find_max_steps  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def scan_kind(self) -> Any:
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def minimal_levy_area(self) -> Any:
        return self.solver.minimal_levy_area  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms: PyTree) -> Any:
        return self.wrapped.order(terms)

    def strong_order(self, terms: PyTree) -> Any:
        return self.wrapped.strong_order(terms)

    def error_order(self, terms: PyTree) -> Any:
        return self.wrapped.error_order(terms)

    def func(self, terms: PyTree, t0: Any, y0: PyTree, args: PyTree) -> PyTree:
        return self.wrapped.func(terms, t0, y0, args)


def innermost(solver: Any) -> Any:
    """The solver inside all wrappers."""
    while isinstance(solver, dfx.HalfSolver | AbstractTransparentSolver):
        name = "solver" if type(solver) is dfx.HalfSolver else "wrapped"
        solver = getattr(solver, name)
    return solver
