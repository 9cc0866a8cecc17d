"""Command line: `python -m benchmarks.operators_parity`; needs `neuraloperator`."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._case import SkippedError
from benchmarks.operators._neuraloperator import ours, require, theirs


LIMIT = 1e-5  # of a relative difference, in single precision
SIZES = (((8,), (64,)), ((6, 5), (32, 24)), ((3, 4, 3), (12, 10, 8)))


def check() -> dict[str, float]:
    """Largest relative difference of outputs and of gradients by what was compared."""
    require()
    import torch

    found, channels = {}, (2, 1)
    for modes, grid in SIZES:
        model = ours(channels, modes, 12, 3)
        net = theirs(model, channels)
        x = np.random.default_rng(0).normal(size=(2, 2, *grid)).astype(np.float32)
        y = net(torch.tensor(x))
        (y**2).sum().backward()
        run = lambda model, x=x: jax.vmap(model)(jnp.asarray(x))
        got = np.asarray(eqx.filter_jit(run)(model))
        loss = lambda model, run=run: jnp.sum(run(model) ** 2)
        grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
        size = f"{len(modes)}-d"
        found[f"outputs, {size}"] = _distance(got, y.detach().numpy())
        last = net.projection.fcs[0].weight.grad.numpy()[..., 0]
        first = net.lifting.fcs[0].weight.grad.numpy()[..., 0]
        found[f"gradients, {size}"] = max(
            _distance(grads.project.first.weight, last),
            _distance(grads.lift.first.weight, first),
        )
    return found


def _distance(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def main() -> int:
    """Print the table; the exit code is 0 if all of it agrees."""
    try:
        found = check()
    except SkippedError as error:
        print(f"skip neuraloperator: {error}")
        return 1
    for what, value in found.items():
        good = value <= LIMIT
        print(f"{'ok' if good else 'FAIL':<5}{what:<30}{value:9.1e}")
    return 0 if all(value <= LIMIT for value in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
