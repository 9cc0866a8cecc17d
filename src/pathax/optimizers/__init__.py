"""Optimizers as plain Optax transformations."""

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
    "SOAPState",
    "ShampooState",
    "SophiaState",
    "adahessian",
    "bartlett_estimator",
    "gradient_normalized_newton",
    "hutchinson_estimator",
    "scale_by_adahessian",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_sophia",
    "shampoo",
    "soap",
    "sophia_g",
    "sophia_h",
]
