"""How many Fourier transforms a function takes, read off its program."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def ffts(function: Callable, *args: Any) -> int:
    """Transforms of one field each; those of a batch count one by one.

    Both branches of a condition are counted as the costlier one, and the body of a
    `while_loop` once.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "fft":
        shape = equation.invars[0].aval.shape
        return math.prod(shape[: len(shape) - len(params["fft_lengths"])])
    inner = [_of(jaxpr) for jaxpr in _inside(params.values())]
    if name == "cond":
        return max(inner, default=0)
    return params["length"] * sum(inner) if name == "scan" else sum(inner)


def _inside(values: Any) -> Iterator[Any]:
    """Programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inside(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value.jaxpr
