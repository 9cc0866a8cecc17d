"""Refuses what would give a wrong derivative, or lacks something."""

from typing import Any

import diffrax as dfx
import jax

from ._local import AbstractLocalPenalty, Local
from ._penalty import AbstractIntegralPenalty, AbstractPenalty, AbstractStepPenalty
from ._step import Tolerances


_DISCRETE = (
    dfx.RecursiveCheckpointAdjoint,
    dfx.DirectAdjoint,
    dfx.ForwardMode,
)


def check_adjoint(penalties: dict[str, Any], adjoint: Any) -> None:
    """Raise if a penalty has no derivative, or a wrong one, with this adjoint."""
    for name, penalty in penalties.items():
        if not isinstance(penalty, AbstractPenalty):
            raise TypeError(
                f"`penalties[{name!r}]` must be a penalty, such as "
                f"`pathax.regularizers.Error()`; got {type(penalty).__name__}."
            )
    kind = type(adjoint).__name__
    if isinstance(adjoint, dfx.ImplicitAdjoint):
        raise ValueError(
            "`ImplicitAdjoint` differentiates a steady state, which no step of the "
            "solver takes part in: penalties have no derivative there. Use "
            "`diffrax.RecursiveCheckpointAdjoint()`."
        )
    if isinstance(adjoint, _DISCRETE):
        return
    whole = [
        name
        for name, p in penalties.items()
        if isinstance(p, AbstractStepPenalty) and p.has_gradient
    ]
    if whole:
        raise ValueError(
            f"With `{kind}` the derivative of {', '.join(map(repr, whole))} would be "
            "zero: it goes through the solver's steps, which this adjoint doesn't "
            "differentiate. Use `diffrax.RecursiveCheckpointAdjoint()`, "
            "`diffrax.DirectAdjoint()` or `diffrax.ForwardMode()`; or sample steps, "
            "`pathax.regularizers.Local(...)`, which goes with every adjoint."
        )


def check_needs(penalties: dict[str, Any], key: Any) -> dict[str, Any]:
    """A key for each penalty that draws something; raise if there is none."""
    drawing = [name for name, p in penalties.items() if _draws(p)]
    if not drawing:
        return {}
    if key is None:
        raise ValueError(
            f"{', '.join(map(repr, drawing))} draw something: write `key=...`."
        )
    return dict(zip(drawing, jax.random.split(key, len(drawing)), strict=True))


def _draws(penalty: Any) -> bool:
    if isinstance(penalty, AbstractIntegralPenalty):
        return penalty.needs_direction
    return isinstance(penalty, AbstractLocalPenalty)


def _needs_error(penalty: Any) -> bool:
    if isinstance(penalty, AbstractStepPenalty):
        return penalty.needs_error
    if isinstance(penalty, Local):
        return penalty.penalty.needs_error
    return isinstance(penalty, AbstractLocalPenalty)


def tolerances_of(
    penalties: dict[str, Any], controller: Any, given: Tolerances | None
) -> Tolerances | None:
    """The controller's, or those that were given to a controller without."""
    needing = [name for name, p in penalties.items() if _needs_error(p)]
    if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
        if given is not None:
            raise ValueError(
                "`tolerances` are taken from the controller, so that penalty and "
                f"controller can't disagree; {type(controller).__name__} has its own."
            )
        return Tolerances(controller.rtol, controller.atol, controller.norm)
    if given is None and needing:
        raise ValueError(
            f"{', '.join(map(repr, needing))} measure errors against tolerances, which "
            f"{type(controller).__name__} doesn't have. Write `tolerances="
            "pathax.regularizers.Tolerances(rtol=..., atol=...)`."
        )
    return given


def made_of_error(penalties: dict[str, Any]) -> tuple[str, ...]:
    """Names of penalties that need the solver's estimate of its error."""
    return tuple(name for name, p in penalties.items() if _needs_error(p))


def check_estimate(names: tuple[str, ...], error: Any, solver: Any) -> None:
    """Raise if the solver estimates no error where a penalty is made of it."""
    if error is None and names:
        raise ValueError(
            f"{', '.join(map(repr, names))} are made of the solver's estimate of its "
            f"error, and {type(solver).__name__} has none. Wrap it: "
            f"`diffrax.HalfSolver(diffrax.{type(solver).__name__}())`."
        )
