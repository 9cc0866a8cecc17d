"""Neural operators: spectral layers and the models made of them."""

from ._fno import FNO as FNO
from ._head import SpectralHead as SpectralHead
from ._spectral_conv import SpectralConv as SpectralConv
from ._stfno import STFNO as STFNO
from ._trajectory import Trajectory as Trajectory


__all__ = ["FNO", "STFNO", "SpectralConv", "SpectralHead", "Trajectory"]
