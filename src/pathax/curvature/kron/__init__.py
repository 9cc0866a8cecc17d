"""Statistics of linear and convolutional layers, gathered by the backward pass.

`instrument` prepares a model, `value_and_grad` returns statistics beside the gradient,
and the optimizers that are made of Kronecker factors take them as the extra `kron`.
"""

from ._instrument import instrument as instrument
from ._layers import LayerSpec as LayerSpec, layers as layers
from ._stats import (
    LayerStats as LayerStats,
    fisher_stats as fisher_stats,
    value_and_grad as value_and_grad,
)


__all__ = [
    "LayerSpec",
    "LayerStats",
    "fisher_stats",
    "instrument",
    "layers",
    "value_and_grad",
]
