"""M-FAC's pruner, and Natural GaLore over changes of its projector.

The pruner is its authors' class, over two rounds on a small network. It fills all rows
but the last, which stays zero and counts; ours gets that row too. A graphics card is
replaced by the processor.

Natural GaLore finds its own projectors here, on both sides: by an alternating Tucker
decomposition on their side, in single precision, by singular vectors on ours; signs
follow the same rule. They add `eps` before the correction of bias, so ours is given
one that follows from theirs at each step.
"""

import contextlib
import functools
import importlib
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pathax as px


DTYPES = ("float32", "float64")
INPUTS, OUTPUTS, ROWS, DAMPING = 8, 5, 6, 0.05
STEPS, RANK, HISTORY, INTERVAL, EPS = 20, 3, 5, 7, 1e-2
SHAPE = (6, 8)
# Their formula loses digits of large gradients. What is left in float32 is Optax's
# correction of bias, `1 - b2^t`, with five digits at the first steps.
SIZES = {"float32": 0.003, "float64": 1.0}


def check(official: Path) -> dict[str, float]:
    """The largest relative difference, by what was compared and by precision."""
    found = {}
    pruning = _pruning_module(official / "M-FAC")
    for dtype in DTYPES:
        with _default(dtype):
            for name, value in _static(pruning, dtype).items():
                found[f"M-FAC: static algorithm, {name}, {dtype}"] = value
            for block in (None, 16):
                name = "whole" if block is None else f"blocks of {block}"
                value = _rounds(pruning, dtype, block)
                found[f"M-FAC: pruner, {name}, {dtype}"] = value
    optimizer = _galore_module(official / "Natural-GaLore" / "code")
    for dtype in DTYPES:
        name = f"Natural GaLore: own projectors, three of them, {dtype}"
        found[name] = _galore(optimizer, dtype)
    return found


# Their code -------------------------------------------------------------------------


def _import(folder: Path, file: str, name: str) -> ModuleType:
    if not (folder / file).is_file():
        raise FileNotFoundError(f"no {file} in {folder}")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def _pruning_module(folder: Path) -> ModuleType:
    """`main_prun` without the data sets that it would load."""
    stubs = {name: types.ModuleType(name) for name in ("lib", "lib.data")}
    data: Any = types.ModuleType("lib.data.datasets")
    data.get_datasets = None
    sys.modules.update(stubs | {"lib.data.datasets": data})
    module: Any = _import(folder, "main_prun.py", "main_prun")
    swap = sys.modules["prun"].HInvFastSwap
    module.HInvFastSwap = functools.partial(swap, gpu="cpu")
    return module


def _galore_module(folder: Path) -> ModuleType:
    try:
        import tensorly  # noqa: F401 - their projector needs it
    except ImportError as error:
        raise FileNotFoundError("their code needs `pip install tensorly`") from error
    file = "natural_galore/subspace_adamw.py"
    return _import(folder, file, "natural_galore.subspace_adamw")


@contextlib.contextmanager
def _default(dtype: str) -> Iterator[None]:
    """The type that both sides take where none is named."""
    import torch

    old = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with jax.enable_x64(dtype == "float64"):
            yield
    finally:
        torch.set_default_dtype(old)


def _gap(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# The pruner -------------------------------------------------------------------------


def _static(module: ModuleType, dtype: str) -> dict[str, float]:
    """Products and the diagonal: the whole matrix in pages, and blocks with a rest."""
    import torch

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, 41)).astype(dtype)
    x = rng.normal(size=41).astype(dtype)
    fast: Any = sys.modules["prun"]
    tensor = lambda: torch.tensor(rows)  # they write into what they are given
    theirs = {
        "two pages": (module.HInvFastSwap(tensor(), DAMPING, 2), None),
        "blocks of 16": (fast.HInvFastBlock(tensor(), 16, 2, "cpu", DAMPING), 16),
    }
    found = {}
    for name, (inverse, block) in theirs.items():
        ours = px.curvature.mfac_ihvp(jnp.asarray(rows), DAMPING, blocks=block)
        found[name] = max(
            _gap(ours.mul(jnp.asarray(x)), inverse.mul(torch.tensor(x))),
            _gap(ours.diag(), inverse.diag()),
        )
    return found


def _rounds(module: ModuleType, dtype: str, block: int | None) -> float:
    """Weights after each round; the second one without those that are gone.

    With blocks there is one round: they cut what is left into new ones, ours stay.
    """
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    batches = [
        (torch.randn(3, INPUTS), torch.randint(OUTPUTS, (3,))) for _ in range(ROWS)
    ]
    criterion: Any = torch.nn.functional.cross_entropy
    names = ["weight"]
    settings = (ROWS, -1 if block is None else block, 2, DAMPING, 2)
    theirs = module.MFACPruner(model, names, batches, criterion, *settings)
    mask, kept = torch.ones(model.weight.numel(), dtype=torch.bool), None
    params, worst = jnp.asarray(model.weight.detach().numpy().ravel()), 0.0
    for sparsity in (0.26, 0.51) if block is None else (0.26,):
        rows = _rows(model, batches, criterion).astype(dtype)
        inverse = px.curvature.mfac_ihvp(
            jnp.asarray(rows), DAMPING, blocks=block, mask=kept
        )
        params, kept = px.curvature.optimal_brain_surgeon(
            params, inverse, sparsity, mask=kept
        )
        mask, weights = theirs.prune(mask, sparsity)
        module.set_pvec(weights, model, names)
        if not np.array_equal(mask.numpy(), np.asarray(kept)):
            return math.inf
        worst = max(worst, _gap(params, weights))
    return worst


def _rows(model: Any, batches: list[Any], criterion: Any) -> np.ndarray:
    """Gradients of all batches but the last, and a row of zeros."""
    rows = np.zeros((ROWS, model.weight.numel()))
    for row, (x, y) in zip(rows[:-1], batches, strict=False):
        model.zero_grad()
        criterion(model(x), y).backward()
        row[:] = model.weight.grad.numpy().ravel()
    model.zero_grad()
    return rows


# Natural GaLore ---------------------------------------------------------------------


def _galore(module: ModuleType, dtype: str) -> float:
    """Both get the same gradients; the difference is of single steps."""
    import torch

    rng = np.random.default_rng(0)
    draw = lambda: (SIZES[dtype] * rng.normal(size=SHAPE)).astype(dtype)
    weight = torch.nn.Parameter(torch.zeros(SHAPE, dtype=getattr(torch, dtype)))
    settings = {
        "rank": RANK,
        "update_proj_gap": INTERVAL,
        "scale": 0.25,
        "proj_type": "natural_galore",
        "natural_history": HISTORY,
    }
    group = {"params": [weight], **settings}
    theirs = module.SubSpaceAdamW([group], lr=1.0, eps=EPS, weight_decay=0.0)
    worst = 0.0
    with jax.enable_x64(dtype == "float64"):
        make = px.optimizers.inject(px.optimizers.scale_by_natural_galore)
        tx = make(
            RANK,
            eps=lambda count: EPS / jnp.sqrt(1 - 0.999 ** (count + 1)),
            history=HISTORY,
            damping=1e-3,
            two_sided=True,
            reset_history_on_refresh=False,
            update_interval=INTERVAL,
        )
        state, update = tx.init(jnp.zeros(SHAPE, dtype)), jax.jit(tx.update)
        for grad in (draw() for _ in range(STEPS)):
            weight.data.zero_()  # a step then has all digits
            weight.grad = torch.tensor(grad)
            theirs.step()
            updates, state = update(jnp.asarray(grad), state)
            worst = max(worst, _gap(-updates, weight.detach()))
    return worst
