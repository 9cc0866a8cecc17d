"""M-FAC: its authors' optimizer and dynamic algorithm, given the same gradients.

Their code is used as it is, but for two functions of PyTorch that want a GPU: the
unpivoted LU decomposition, and calls that are handed out to several devices.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px


STEPS, WINDOW, DAMPING = 20, 8, 1e-2
SHAPES = [(4, 5), (7,), (2, 3, 2)]


def check(official: Path) -> dict[str, float]:
    """The largest difference of a step, relative to its largest entry."""
    import torch

    file = official / "M-FAC" / "optim.py"
    if not file.exists():
        raise FileNotFoundError(f"no clone of IST-DASLab/M-FAC at {file.parent}")
    with _on_the_cpu(torch):
        theirs = _load(file)
        found = {
            "M-FAC: optimizer, momentum and coupled decay, float32": _optimizer(
                torch, theirs
            )
        }
        for dtype in ("float32", "float64"):
            name = f"M-FAC: dynamic algorithm, {dtype}"
            found[name] = _dynamic(torch, theirs, dtype)
    return found


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("official_mfac", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _on_the_cpu(torch) -> Iterator[None]:
    """Unpivoted LU, and loops instead of devices."""
    old = torch.lu, torch.nn.parallel.parallel_apply

    def unpivoted(matrix, pivot=False):
        lu = matrix.clone()
        for k in range(len(lu) - 1):
            lu[k + 1 :, k] /= lu[k, k]
            lu[k + 1 :, k + 1 :] -= torch.outer(lu[k + 1 :, k], lu[k, k + 1 :])
        return lu, None

    torch.lu = unpivoted
    torch.nn.parallel.parallel_apply = lambda functions, inputs: [
        f(x) for f, x in zip(functions, inputs, strict=True)
    ]
    try:
        yield
    finally:
        torch.lu, torch.nn.parallel.parallel_apply = old


def _gradients(dtype: str) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    draw = lambda shape: (0.3 * rng.normal(size=shape)).astype(dtype)
    return [[draw(shape) for shape in SHAPES] for _ in range(STEPS)]


def _difference(ours: list, theirs: list) -> float:
    top = max(np.abs(x).max() for x in theirs)
    pairs = zip(ours, theirs, strict=True)
    return float(max(np.abs(np.asarray(x) - y).max() for x, y in pairs) / top)


def _optimizer(torch, theirs: ModuleType) -> float:
    """Both walk; the difference is of parameters after each step, less the start."""
    gradients = _gradients("float32")
    start = _gradients("float32")[0]
    params = [torch.nn.Parameter(torch.tensor(x)) for x in start]
    device = torch.device("cpu")
    official = theirs.MFAC(
        params,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.05,
        ngrads=WINDOW,
        damp=DAMPING,
        moddev=device,
        optdev=device,
    )
    tx = px.optimizers.mfac(
        0.1, WINDOW, DAMPING, momentum=0.9, coupled_l2=0.05, normalize="window"
    )
    mine = [jnp.asarray(x) for x in start]
    state, worst = tx.init(mine), 0.0
    update = jax.jit(tx.update)
    for grads in gradients:
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        official.step()
        updates, state = update([jnp.asarray(g) for g in grads], state, mine)
        mine = [p + u for p, u in zip(mine, updates, strict=True)]
        moved = [np.asarray(p) - s for p, s in zip(mine, start, strict=True)]
        wanted = [p.detach().numpy() - s for p, s in zip(params, start, strict=True)]
        worst = max(worst, _difference(moved, wanted))
    return worst


def _dynamic(torch, theirs: ModuleType, dtype: str) -> float:
    """Products with the inverse, of each gradient as it comes in."""
    gradients = _gradients(dtype)
    size = sum(x.size for x in gradients[0])
    device = torch.device("cpu")
    zeros = torch.zeros((WINDOW, size), dtype=getattr(torch, dtype))
    official = theirs.HInvFastUpMulti(zeros, device, [device], damp=DAMPING)
    worst = 0.0
    with jax.enable_x64(dtype == "float64"):
        tx = px.optimizers.scale_by_mfac(WINDOW, DAMPING, normalize="window")
        state = tx.init([jnp.asarray(x) for x in gradients[0]])
        update = jax.jit(tx.update)
        for grads in gradients:
            flat = np.concatenate([g.ravel() for g in grads])
            wanted = official.update_mul(torch.tensor(flat)).numpy()
            updates, state = update([jnp.asarray(g) for g in grads], state)
            found = np.concatenate([np.asarray(u).ravel() for u in updates])
            worst = max(worst, _difference([found], [wanted]))
    return worst
