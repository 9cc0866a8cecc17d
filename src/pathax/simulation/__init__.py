"""Simulation: many paths at once, and what is known of them."""

from ._antithetic import antithetic_pairs as antithetic_pairs
from ._coordinates import ConditionalScale as ConditionalScale
from ._diagnostics import (
    Diagnostics as Diagnostics,
    diagnose as diagnose,
    energy_distance as energy_distance,
)
from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._langevin import LangevinSamples as LangevinSamples, langevin as langevin
from ._mlmc import (
    MLMCLevel as MLMCLevel,
    MLMCResult as MLMCResult,
    mlmc as mlmc,
)


__all__ = [
    "ConditionalScale",
    "Diagnostics",
    "Ensemble",
    "LangevinSamples",
    "MLMCLevel",
    "MLMCResult",
    "antithetic_pairs",
    "diagnose",
    "energy_distance",
    "ensemble",
    "langevin",
    "mlmc",
]
