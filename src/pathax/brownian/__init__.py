"""Brownian paths: one key gives a whole path and its time integrals, exact in law.

A path of order `N` is known through its Legendre moments
`L_n = int_s^u P_n(2 (r - s) / (u - s) - 1) dW_r`, `n = 0..N`, over any interval. They
are independent normal variables, and the increments `W`, `H` and `K` of high-order SDE
solvers are multiples of the first three.
"""

from ._bridge import (
    BrownianBridge as BrownianBridge,
    condition as condition,
    replay as replay,
)
from ._combine import (
    CombinedPath as CombinedPath,
    antithetic as antithetic,
    correlate as correlate,
    mix as mix,
)
from ._grid import GridPath as GridPath, step_times as step_times
from ._law import (
    LawCheck as LawCheck,
    LawReport as LawReport,
    check_law as check_law,
)
from ._levy import HigherOrderLevyArea as HigherOrderLevyArea
from ._path import AbstractMomentPath as AbstractMomentPath
from ._tree import VirtualBrownianTree as VirtualBrownianTree


__all__ = [
    "AbstractMomentPath",
    "BrownianBridge",
    "CombinedPath",
    "GridPath",
    "HigherOrderLevyArea",
    "LawCheck",
    "LawReport",
    "VirtualBrownianTree",
    "antithetic",
    "check_law",
    "condition",
    "correlate",
    "mix",
    "replay",
    "step_times",
]
