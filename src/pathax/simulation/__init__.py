"""Simulation: many paths at once, and what is known of them."""

from ._antithetic import antithetic_pairs as antithetic_pairs
from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._mlmc import (
    MLMCLevel as MLMCLevel,
    MLMCResult as MLMCResult,
    mlmc as mlmc,
)


__all__ = [
    "Ensemble",
    "MLMCLevel",
    "MLMCResult",
    "antithetic_pairs",
    "ensemble",
    "mlmc",
]
