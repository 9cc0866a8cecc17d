"""Integrals along the path, solved for beside the state."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..solvers._augmented import (
    Augmented,
    AugmentedTerm,
    is_augmented,
    only_extra,
    without_extra,
)
from ._penalty import AbstractIntegralPenalty
from ._step import real_dtype
from ._stiffness import is_drift


class _Rates(eqx.Module):
    """What all integrals grow by, at one time."""

    term: dfx.AbstractTerm
    penalties: tuple[AbstractIntegralPenalty, ...]
    directions: tuple

    def __call__(self, t: Any, y: PyTree, args: PyTree) -> tuple:
        field = lambda t, y: self.term.vf(t, y, args)
        pairs = zip(self.penalties, self.directions, strict=True)
        return tuple(p.rate(field, t, y, direction) for p, direction in pairs)


class _StateNorm(eqx.Module):
    """The norm of the state alone, wherever in the tree it is."""

    norm: Any

    def __call__(self, tree: PyTree) -> Array:
        return self.norm(without_extra(tree))


class _OfState(eqx.Module):
    """A function of time, state and arguments, which sees the state alone."""

    function: Any

    def __call__(self, t: Any, y: Any, args: PyTree, **kwargs: Any) -> Any:
        return self.function(t, without_extra(y), args, **kwargs)


def _extra_of(t: Any, y: Any, args: PyTree) -> PyTree:
    del t, args
    return y.extra if is_augmented(y) else None


class Passengers:
    """Puts the integrals beside the state, and takes them off again.

    Steps are chosen by the error of the state alone, so they are those of the solve
    without. With an adjoint that solves backwards, the integrals are read off the
    saved states, since nothing else has a derivative there.
    """

    def __init__(self, integrals: dict, keys: dict, adjoint: Any, y0: PyTree):
        self.integrals, self._adjoint = integrals, adjoint
        self.backsolve = isinstance(adjoint, dfx.BacksolveAdjoint)
        y0 = jax.tree.map(jnp.asarray, y0)
        self.directions = tuple(
            p.direction(keys.get(name), y0) for name, p in integrals.items()
        )
        self.may_end_early = False
        self._added_end = False

    def state(self, y0: PyTree) -> PyTree:
        """The state, with the integrals at zero."""
        if not self.integrals:
            return y0
        zero = jnp.zeros((), real_dtype(jax.tree.map(jnp.asarray, y0)))
        return Augmented(y0, tuple(zero for _ in self.integrals))

    def terms(self, terms: PyTree) -> PyTree:
        """The terms, of which the drift moves the integrals."""
        if not self.integrals:
            return terms
        found = False

        def augment(term: Any) -> Any:
            nonlocal found
            if isinstance(term, dfx.MultiTerm):
                return dfx.MultiTerm(*map(augment, term.terms))
            if found or not is_drift(term):
                return AugmentedTerm(term)
            found = True
            penalties = tuple(self.integrals.values())
            return AugmentedTerm(term, _Rates(term, penalties, self.directions))

        is_term = lambda x: isinstance(x, dfx.AbstractTerm)
        augmented = jax.tree.map(augment, terms, is_leaf=is_term)
        if not found:
            raise ValueError(
                f"{', '.join(self.integrals)} are integrals over the drift, a "
                f"`diffrax.ODETerm`; got {terms}. A controlled equation can be "
                "written as one by `diffrax.ControlTerm(...).to_ode()`."
            )
        return augmented

    def controller(self, controller: Any) -> Any:
        """The controller, with a norm of the state alone."""
        if not self.integrals or not hasattr(controller, "norm"):
            return controller

        def norm(c: Any) -> Any:
            while hasattr(c, "controller"):
                c = c.controller
            return c.norm

        return eqx.tree_at(norm, controller, _StateNorm(norm(controller)))

    def adjoint(self, solver: Any, controller: Any) -> Any:
        """The adjoint, which solves backwards with the bare solver."""
        if not self.backsolve:
            return self._adjoint
        bare = {
            "solver": solver,
            "stepsize_controller": self.controller(controller),
        }
        return dfx.BacksolveAdjoint(**{**bare, **self._adjoint.kwargs})

    def event(self, event: dfx.Event | None) -> dfx.Event | None:
        """The event, which sees the state alone."""
        if event is None or not self.integrals:
            return event
        conditions = jax.tree.map(_OfState, event.cond_fn, is_leaf=callable)
        return eqx.tree_at(lambda e: e.cond_fn, event, conditions)

    def saveat(self, saveat: dfx.SaveAt, event: dfx.Event | None) -> dfx.SaveAt:
        """What to save: as asked for, and what is needed here."""
        self.may_end_early = event is not None
        is_sub = lambda x: isinstance(x, dfx.SubSaveAt)
        subs = saveat.subs
        if self.backsolve:
            if self.integrals and is_sub(subs):
                self._added_end = not subs.t1
                subs = eqx.tree_at(lambda s: s.t1, subs, True)
        elif self.integrals:
            wrap = lambda s: eqx.tree_at(lambda s: s.fn, s, _OfState(s.fn))
            subs = jax.tree.map(wrap, subs, is_leaf=is_sub)
        if self.may_end_early:
            subs = [subs, dfx.SubSaveAt(t1=True, fn=_extra_of)]
        return dfx.SaveAt(
            subs=subs,
            dense=saveat.dense,
            solver_state=True,
            controller_state=True,
            made_jump=saveat.made_jump,
        )

    def strip(self, sol: dfx.Solution, state: Any) -> tuple[dfx.Solution, Array, dict]:
        """The solution without passengers, the end in forward time, the integrals."""
        extra, end = state.extra, state.last.t1
        ts: Any = sol.ts
        ys: Any = sol.ys
        if self.may_end_early:
            (ts, last_ts), (ys, last_ys) = ts, ys
            direction = jnp.where(sol.t0 < sol.t1, 1, -1).astype(end.dtype)
            end = last_ts[-1] * direction
            extra = jax.tree.map(lambda x: x[-1], last_ys)
        if self.backsolve and self.integrals:
            extra = jax.tree.map(lambda x: x[-1], only_extra(ys))
            ys = without_extra(ys)
            if self._added_end:
                ts, ys = jax.tree.map(lambda x: x[:-1], (ts, ys))
        interpolation = sol.interpolation
        if interpolation is not None and self.integrals:
            interpolation = without_extra(interpolation)
        sol = eqx.tree_at(
            lambda s: (s.ts, s.ys, s.interpolation),
            sol,
            (ts, ys, interpolation),
            is_leaf=lambda x: x is None,
        )
        values = () if extra is None else extra
        return sol, end, dict(zip(self.integrals, values, strict=True))
