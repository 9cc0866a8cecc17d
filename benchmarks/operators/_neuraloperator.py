"""The FNO of `neuraloperator` with our weights."""

import functools
from importlib.util import find_spec
from typing import Any

import equinox as eqx
import jax
import numpy as np

import pathax as px

from .._case import SkippedError


def require() -> None:
    """Raise unless the library is there."""
    if find_spec("torch") is None or find_spec("neuralop") is None:
        raise SkippedError("needs PyTorch and `pip install neuraloperator`")


exact_gelu = functools.partial(jax.nn.gelu, approximate=False)


def ours(channels: tuple[int, int], modes: tuple[int, ...], width: int, depth: int):
    """Our model with the activation of PyTorch."""
    make = eqx.filter_jit(
        lambda key: px.operators.FNO(
            *channels,
            modes,
            width=width,
            depth=depth,
            mixing=0.5,
            activation=exact_gelu,
            key=key,
        )
    )
    return make(jax.random.key(0))


def theirs(model: px.operators.FNO, channels: tuple[int, int]) -> Any:
    """Their model with the weights of ours: spectral layers, skips and two networks."""
    import torch
    from neuralop.models import FNO

    first = model.convolutions[0]
    modes = (*(2 * m for m in first.modes[:-1]), 2 * (first.modes[-1] - 1))
    width = first.weight.shape[0]
    net = FNO(
        n_modes=modes,
        in_channels=channels[0],
        out_channels=channels[1],
        hidden_channels=width,
        n_layers=len(model.convolutions),
    )
    copy = lambda to, value: to.data.copy_(torch.tensor(np.array(value)))
    blocks = net.fno_blocks
    pairs = [(net.lifting, model.lift), (net.projection, model.project)]
    pairs += zip(blocks.channel_mlp, model.mixers or (), strict=True)
    for mlp, own in pairs:
        for layer, linear in zip(mlp.fcs, (own.first, own.second), strict=True):
            copy(layer.weight, linear.weight[..., None])
            copy(layer.bias, linear.bias)
    for i, (conv, skip) in enumerate(zip(model.convolutions, model.skips, strict=True)):
        weight = np.asarray(conv.weight)
        weight = weight[..., 0] + 1j * weight[..., 1]
        # Theirs go from the lowest wavenumber to the highest.
        weight = np.fft.fftshift(weight, axes=range(2, weight.ndim - 1))
        target = blocks.convs[i].weight
        copy(getattr(target, "tensor", target), weight.astype(np.complex64))
        bias = blocks.convs[i].bias
        copy(bias, np.asarray(skip.bias).reshape(bias.shape))
        gate = blocks.channel_mlp_skips[i].weight
        copy(gate, np.asarray((model.gates or ())[i]).reshape(gate.shape))
        copy(blocks.fno_skips[i].conv.weight, np.asarray(skip.weight)[..., None])
    return net
