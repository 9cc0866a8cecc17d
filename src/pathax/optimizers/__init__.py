"""Optimizers as plain Optax transformations."""

from ._build import extras as extras, needs as needs
from ._extras import MissingExtraError as MissingExtraError
from ._inject import inject as inject
from ._optax import (
    galore as galore,
    lbfgs as lbfgs,
    muon as muon,
    optax_sophia as optax_sophia,
    scale_by_backtracking_linesearch as scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch as scale_by_zoom_linesearch,
)
from .second_order import (
    AdaHessianState as AdaHessianState,
    EstimatorState as EstimatorState,
    GNSState as GNSState,
    ShampooState as ShampooState,
    SOAPState as SOAPState,
    SophiaState as SophiaState,
    adahessian as adahessian,
    bartlett_estimator as bartlett_estimator,
    gradient_normalized_newton as gradient_normalized_newton,
    hutchinson_estimator as hutchinson_estimator,
    scale_by_adahessian as scale_by_adahessian,
    scale_by_shampoo as scale_by_shampoo,
    scale_by_soap as scale_by_soap,
    scale_by_sophia as scale_by_sophia,
    shampoo as shampoo,
    soap as soap,
    sophia_g as sophia_g,
    sophia_h as sophia_h,
)


__all__ = [
    "AdaHessianState",
    "EstimatorState",
    "GNSState",
    "MissingExtraError",
    "SOAPState",
    "ShampooState",
    "SophiaState",
    "adahessian",
    "bartlett_estimator",
    "extras",
    "galore",
    "gradient_normalized_newton",
    "hutchinson_estimator",
    "inject",
    "lbfgs",
    "muon",
    "needs",
    "optax_sophia",
    "scale_by_adahessian",
    "scale_by_backtracking_linesearch",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_zoom_linesearch",
    "shampoo",
    "soap",
    "sophia_g",
    "sophia_h",
]
