"""Optimizers that use curvature, one method a file."""

from ._adahessian import (
    AdaHessianState as AdaHessianState,
    adahessian as adahessian,
    scale_by_adahessian as scale_by_adahessian,
)
from ._ekfac import (
    EKFACState as EKFACState,
    ekfac as ekfac,
    scale_by_ekfac as scale_by_ekfac,
)
from ._estimators import (
    EstimatorState as EstimatorState,
    bartlett_estimator as bartlett_estimator,
    hutchinson_estimator as hutchinson_estimator,
)
from ._gradient_normalized_newton import (
    GNSState as GNSState,
    gradient_normalized_newton as gradient_normalized_newton,
)
from ._kfac import (
    KFACState as KFACState,
    kfac as kfac,
    scale_by_kfac as scale_by_kfac,
)
from ._mfac import (
    MFACState as MFACState,
    mfac as mfac,
    scale_by_mfac as scale_by_mfac,
)
from ._mkor import mkor as mkor, scale_by_mkor as scale_by_mkor
from ._mkor_h import mkor_h as mkor_h, scale_by_mkor_h as scale_by_mkor_h
from ._mkor_rule import MKORState as MKORState
from ._natural_galore import (
    NaturalGaLoreState as NaturalGaLoreState,
    natural_galore as natural_galore,
    scale_by_natural_galore as scale_by_natural_galore,
)
from ._shampoo import (
    ShampooState as ShampooState,
    scale_by_shampoo as scale_by_shampoo,
    shampoo as shampoo,
)
from ._soap import (
    SOAPState as SOAPState,
    scale_by_soap as scale_by_soap,
    soap as soap,
)
from ._sophia import (
    SophiaState as SophiaState,
    scale_by_sophia as scale_by_sophia,
    sophia_g as sophia_g,
    sophia_h as sophia_h,
)
from ._window_fisher import (
    WindowFisherState as WindowFisherState,
    scale_by_window_fisher as scale_by_window_fisher,
)


__all__ = [
    "AdaHessianState",
    "EKFACState",
    "EstimatorState",
    "GNSState",
    "KFACState",
    "MFACState",
    "MKORState",
    "NaturalGaLoreState",
    "SOAPState",
    "ShampooState",
    "SophiaState",
    "WindowFisherState",
    "adahessian",
    "bartlett_estimator",
    "ekfac",
    "gradient_normalized_newton",
    "hutchinson_estimator",
    "kfac",
    "mfac",
    "mkor",
    "mkor_h",
    "natural_galore",
    "scale_by_adahessian",
    "scale_by_ekfac",
    "scale_by_kfac",
    "scale_by_mfac",
    "scale_by_mkor",
    "scale_by_mkor_h",
    "scale_by_natural_galore",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_window_fisher",
    "shampoo",
    "soap",
    "sophia_g",
    "sophia_h",
]
