"""What a second-order method must know about a loss, as pure functions."""

from . import kron as kron
from ._bartlett import gauss_newton_bartlett_diagonal as gauss_newton_bartlett_diagonal
from ._binding import bind as bind
from ._blocks import block_average as block_average, block_axes as block_axes
from ._hutchinson import (
    hutchinson_diagonal as hutchinson_diagonal,
    value_grad_and_hutchinson as value_grad_and_hutchinson,
)
from ._likelihoods import Likelihood as Likelihood
from ._mfac import InverseFisher as InverseFisher, mfac_ihvp as mfac_ihvp
from ._products import (
    as_operator as as_operator,
    fisher_mvp as fisher_mvp,
    ggn_mvp as ggn_mvp,
    hvp as hvp,
)
from ._pruning import (
    optimal_brain_surgeon as optimal_brain_surgeon,
    pruning_schedule as pruning_schedule,
    pruning_scores as pruning_scores,
)
from ._rows import empirical_fisher_rows as empirical_fisher_rows


Likelihood.__module__ = "pathax.curvature"

__all__ = [
    "InverseFisher",
    "Likelihood",
    "as_operator",
    "bind",
    "block_average",
    "block_axes",
    "empirical_fisher_rows",
    "fisher_mvp",
    "gauss_newton_bartlett_diagonal",
    "ggn_mvp",
    "hutchinson_diagonal",
    "hvp",
    "kron",
    "mfac_ihvp",
    "optimal_brain_surgeon",
    "pruning_schedule",
    "pruning_scores",
    "value_grad_and_hutchinson",
]
