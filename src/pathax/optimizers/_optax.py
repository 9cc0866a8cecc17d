"""What Optax ships and needs no second writing, beside ours under one roof.

`optax_sophia` is `optax.contrib.sophia`: it corrects the mean of gradients for bias,
steps before it refreshes and has no Gauss-Newton-Bartlett estimate; see
[`pathax.optimizers.sophia_h`][] for the paper's. `muon` takes weights with inputs in
their first axis unless told otherwise: for Equinox layers, write
`muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 0)`, since the
scale depends on which axis is which.
"""

from optax import (
    lbfgs as lbfgs,
    scale_by_backtracking_linesearch as scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch as scale_by_zoom_linesearch,
)
from optax.contrib import (
    galore as galore,
    muon as muon,
    sophia as optax_sophia,
)


__all__ = [
    "galore",
    "lbfgs",
    "muon",
    "optax_sophia",
    "scale_by_backtracking_linesearch",
    "scale_by_zoom_linesearch",
]
