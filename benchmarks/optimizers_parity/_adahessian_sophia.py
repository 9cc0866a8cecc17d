"""AdaHessian (three files of its authors) and Sophia-G.

The authors' optimizer walks, over a loss whose Hessian is dense. At every step ours
gets its gradient and its Hessian products with the same probes (for Sophia, its
gradient at drawn labels), keeps a state of its own, and must propose the same step.

Their code is used as it is, but for probes: `torch.randint_like` returns the given
ones, and on the CPU. Differences are relative to the largest entry of a step, taken
from parameters before and after, which costs digits in float32. The translation code
works in float32 whatever it is given.
"""

import contextlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pathax as px


STEPS = 20
DTYPES = ("float32", "float64")
RATE, DECAY = 0.1, 0.05


@dataclass(frozen=True)
class _Case:
    """A file of AdaHessian's authors, and our options that mean the same."""

    name: str
    file: str
    cls: str
    shapes: list[tuple[int, ...]]
    blocks: Any
    theirs: dict[str, Any] = field(default_factory=dict)
    power: float = 1.0


CASES = [
    _Case(
        "images: kernels averaged, matrices not",
        "image_classification/optim_adahessian.py",
        "Adahessian",
        [(5,), (4, 5), (3, 2, 3, 3)],
        [None, None, (2, 3)],
    ),
    _Case(
        "tutorial: rows and kernels averaged",
        "instruction/adahessian.py",
        "Adahessian",
        [(5,), (4, 5), (3, 4, 2), (3, 2, 3, 3)],
        "auto",
        power=0.5,
    ),
    _Case(
        "translation: runs of four entries",
        "transformer/fairseq/optim/adahessian.py",
        "Adahess",
        [(5,), (4, 6), (8, 3)],
        4,
        {"block_length": 4},
        power=0.7,
    ),
]


def check(official: Path) -> dict[str, float]:
    """The largest relative difference of a step, by file and precision."""
    found = {}
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their calls are of an older PyTorch
        for dtype in DTYPES:
            for case in CASES:
                cls = getattr(_load(official / "adahessian" / case.file), case.cls)
                found[f"AdaHessian, {case.name}, {dtype}"] = _adahessian(
                    cls, case, dtype
                )
            sophia = _load(official / "Sophia" / "sophia.py").SophiaG
            found[f"Sophia-G, {dtype}"] = _sophia(sophia, dtype)
    return found


def _load(file: Path) -> types.ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"no {'/'.join(file.parts[-3:])} in the given folder")
    # What the file of the translation code imports from the package around it.
    package = types.ModuleType("official")
    package.__path__ = []
    package.FairseqOptimizer = object
    package.register_optimizer = lambda name: lambda cls: cls
    sys.modules["official"] = package
    spec = importlib.util.spec_from_file_location(f"official.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Their side -------------------------------------------------------------------------


def _problem(shapes: list[tuple[int, ...]], dtype: str) -> tuple[list[Any], Callable]:
    """Parameters in PyTorch, and a loss of all of them."""
    import torch

    rng = np.random.default_rng(0)
    kind = getattr(torch, dtype)
    tensor = lambda x: torch.tensor(x, dtype=kind)
    params = [tensor(rng.normal(size=s)).requires_grad_() for s in shapes]
    size = sum(p.numel() for p in params)
    a = tensor(rng.normal(size=(2 * size, size)) / np.sqrt(size))

    def loss():
        flat = torch.cat([p.reshape(-1) for p in params])
        return (torch.sin(a @ flat) + (a @ flat) ** 2 / 3).mean()

    return params, loss


@contextlib.contextmanager
def _probes(signs: list[Any]) -> Iterator[None]:
    """Let `2 * randint_like(p, high=2) - 1` be the given signs."""
    import torch

    given, drawn = iter(signs), torch.randint_like
    torch.randint_like = lambda p, high, **_: (next(given) + 1) / 2
    try:
        yield
    finally:
        torch.randint_like = drawn


def _arrays(tensors: Any) -> list[Any]:
    return [jnp.asarray(t.detach().numpy().copy()) for t in tensors]


def _gap(updates: Any, before: list[Any], after: list[Any]) -> float:
    """How far our step is from theirs, relative to the largest entry of theirs."""
    steps = [a - b for a, b in zip(after, before, strict=True)]
    largest = max(float(jnp.max(jnp.abs(s))) for s in steps)
    gaps = [
        float(jnp.max(jnp.abs(b + u - a)))
        for u, b, a in zip(updates, before, after, strict=True)
    ]
    return max(gaps) / largest


# Comparisons ------------------------------------------------------------------------


def _adahessian(cls: type, case: _Case, dtype: str) -> float:
    import torch

    params, loss = _problem(case.shapes, dtype)
    options = {"weight_decay": DECAY, "hessian_power": case.power}
    shared = {"betas": (0.9, 0.999), "eps": 1e-4, "single_gpu": True}
    theirs = cls(params, lr=RATE, **shared, **options, **case.theirs)
    ours = px.optimizers.adahessian(RATE, block_average=case.blocks, **options)
    step = jax.jit(lambda g, s, p, d: ours.update(g, s, p, hessian_diag=d))
    state, worst, rng = ours.init(_arrays(params)), 0.0, np.random.default_rng(1)
    # The translation code takes gradients as an argument.
    takes_gradients = "gradsH" in inspect.signature(cls.step).parameters
    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        signs = [
            torch.tensor(rng.choice([-1.0, 1.0], size=p.shape), dtype=p.dtype)
            for p in params
        ]
        products = torch.autograd.grad(
            grads, params, grad_outputs=signs, retain_graph=True
        )
        diag = [z * q for z, q in zip(_arrays(signs), _arrays(products), strict=True)]
        before, gradient = _arrays(params), _arrays(grads)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()  # they detach it in place
        with _probes(signs):
            theirs.step(**({"gradsH": grads} if takes_gradients else {}))
        updates, state = step(gradient, state, before, diag)
        worst = max(worst, _gap(updates, before, _arrays(params)))
    return worst


def _sophia(cls: type, dtype: str) -> float:
    """They estimate after every fifth step, for the next one; the first has none."""
    import torch

    rho, bs, interval = 0.04, 24, 5
    params, loss = _problem([(5,), (4, 5)], dtype)
    theirs = cls(params, lr=RATE, betas=(0.965, 0.99), rho=rho, weight_decay=DECAY)
    ours = optax.chain(
        px.optimizers.scale_by_sophia(0.965, 0.99, eps=1e-15, gamma=rho),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(RATE),
    )

    @jax.jit
    def step(g, s, p, drawn, due):
        diag = jax.tree.map(lambda x: bs * x**2, drawn)
        return ours.update(g, s, p, hessian_diag=diag, update_curvature=due)

    drawn = [jnp.zeros(p.shape, dtype) for p in params]
    state, worst, rng = ours.init(_arrays(params)), 0.0, np.random.default_rng(1)
    rates = []
    for t in range(STEPS):
        grads = torch.autograd.grad(loss(), params)
        before = _arrays(params)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        theirs.step(bs=bs)
        due = jnp.asarray(t > 0 and t % interval == 0)
        updates, state = step(_arrays(grads), state, before, drawn, due)
        worst = max(worst, _gap(updates, before, _arrays(params)))
        rates.append(float(state[0].win_rate))
        if t % interval == interval - 1:
            drawn = [jnp.asarray(rng.normal(size=p.shape), dtype) for p in params]
            for p, g in zip(params, drawn, strict=True):
                p.grad = torch.tensor(np.asarray(g))
            theirs.update_hessian()
    assert 0 < rates[-1] < 1, "some coordinates should be clipped and some not"
    return worst
