"""Natural GaLore: its author's optimizer, given the same gradients.

Both sides are projected, as that code does, and history is kept. Ours is given their
projector, which they compute in single precision whatever the weights. Gradients are
small in float32, where their formula for the Fisher matrix loses digits.
"""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px


STEPS, RANK, HISTORY = 20, 3, 5
SHAPE = (6, 8)
SIZES = {"float32": 0.01, "float64": 1.0}


def check(official: Path) -> dict[str, float]:
    """The largest difference of a step, relative to its largest entry."""
    folder = official / "Natural-GaLore" / "code"
    if not (folder / "natural_galore" / "subspace_adamw.py").exists():
        raise FileNotFoundError(
            f"no clone of selfsupervised-ai/Natural-GaLore at {folder.parent}"
        )
    try:
        import tensorly  # noqa: F401 - their projector needs it
    except ImportError as error:
        raise FileNotFoundError("their code needs `pip install tensorly`") from error
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("natural_galore.subspace_adamw")
    finally:
        sys.path.remove(str(folder))
    return {
        f"Natural GaLore: both sides projected, {dtype}": _walk(module, dtype)
        for dtype in SIZES
    }


def _walk(module, dtype: str) -> float:
    import torch

    rng = np.random.default_rng(0)
    draw = lambda: (SIZES[dtype] * rng.normal(size=SHAPE)).astype(dtype)
    start, gradients = np.zeros(SHAPE, dtype), [draw() for _ in range(STEPS)]
    weight = torch.nn.Parameter(torch.tensor(start))
    settings = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25}
    settings |= {"proj_type": "natural_galore", "natural_history": HISTORY}
    optimizer_class = next(
        cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and issubclass(cls, torch.optim.Optimizer)
        and cls.__module__ == module.__name__
    )
    eps = 1e-30  # they add it before the correction of bias, we after
    group = {"params": [weight], **settings}
    theirs = optimizer_class([group], lr=0.1, eps=eps, weight_decay=0.0)
    with jax.enable_x64(dtype == "float64"):
        tx = px.optimizers.natural_galore(
            0.1,
            RANK,
            eps=eps,
            history=HISTORY,
            two_sided=True,
            reset_history_on_refresh=False,
            update_interval=10**6,
        )
        mine = jnp.asarray(start)
        state, worst = tx.init(mine), 0.0
        update = jax.jit(tx.update)
        for step, grad in enumerate(gradients):
            weight.data.zero_()  # a step then has all digits
            weight.grad = torch.tensor(grad)
            theirs.step()
            if step == 0:
                factors = theirs.state[weight]["projector"].factors
                state = _with_projector(state, factors)
            updates, state = update(jnp.asarray(grad), state, mine)
            wanted = weight.detach().numpy()
            error = np.abs(np.asarray(updates) - wanted).max() / np.abs(wanted).max()
            worst = max(worst, float(error))
    return worst


def _with_projector(state, factors):
    """The state with these factors, one step on, so that it makes none of its own."""
    inner, *rest = state
    pair = tuple(jnp.asarray(f.detach().numpy()) for f in factors)
    return (inner._replace(projector=pair, count=jnp.ones((), jnp.int32)), *rest)
