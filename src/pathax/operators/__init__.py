"""Operators between fields: spectral methods, neural operators, refinement."""

from . import data as data
from ._all_at_once import Inference as Inference
from ._allen_cahn import AllenCahn as AllenCahn
from ._burgers import Burgers as Burgers, KuramotoSivashinsky as KuramotoSivashinsky
from ._estimator import Estimate as Estimate, estimate as estimate
from ._fno import FNO as FNO
from ._grid import Grid as Grid
from ._head import SpectralHead as SpectralHead
from ._infer import infer as infer
from ._initial import (
    filtered_vorticity as filtered_vorticity,
    gaussian_field as gaussian_field,
    mcwilliams_vorticity as mcwilliams_vorticity,
)
from ._navier_stokes import (
    NavierStokes as NavierStokes,
    diagonal_forcing as diagonal_forcing,
    kolmogorov_forcing as kolmogorov_forcing,
)
from ._polynomial import PolynomialTrajectory as PolynomialTrajectory
from ._refine import (
    Refinement as Refinement,
    RefineResult as RefineResult,
    refine as refine,
)
from ._semilinear import AbstractSemilinear as AbstractSemilinear
from ._sobolev import (
    bochner_norm as bochner_norm,
    energy_spectrum as energy_spectrum,
    sobolev_inner as sobolev_inner,
    sobolev_loss as sobolev_loss,
    sobolev_norm as sobolev_norm,
)
from ._space_time import SpaceTimeProblem as SpaceTimeProblem
from ._spectral_conv import SpectralConv as SpectralConv
from ._steppers import integrate as integrate, stepper as stepper
from ._stfno import STFNO as STFNO
from ._trajectory import Trajectory as Trajectory


__all__ = [  # noqa: RUF022  (plain order)
    "AbstractSemilinear",
    "AllenCahn",
    "Burgers",
    "Estimate",
    "FNO",
    "Grid",
    "Inference",
    "KuramotoSivashinsky",
    "NavierStokes",
    "PolynomialTrajectory",
    "RefineResult",
    "Refinement",
    "STFNO",
    "SpaceTimeProblem",
    "SpectralConv",
    "SpectralHead",
    "Trajectory",
    "bochner_norm",
    "data",
    "diagonal_forcing",
    "energy_spectrum",
    "estimate",
    "filtered_vorticity",
    "gaussian_field",
    "infer",
    "integrate",
    "kolmogorov_forcing",
    "mcwilliams_vorticity",
    "refine",
    "sobolev_inner",
    "sobolev_loss",
    "sobolev_norm",
    "stepper",
]
