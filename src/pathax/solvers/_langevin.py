"""What the solvers of underdamped Langevin diffusion have in common."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._evaluations import Evaluations


TERMS = dfx.MultiTerm[
    tuple[dfx.UnderdampedLangevinDriftTerm, dfx.UnderdampedLangevinDiffusionTerm]
]


class Leaf(NamedTuple):
    """One array of the state, with all that a step needs of it."""

    x: Array
    v: Array
    dt: Array
    friction: Array  # gamma h
    force: Array  # u h, what a gradient is multiplied by
    noise: Array  # sqrt(2 gamma u)
    w: Array
    h: Array  # space-time area
    k: Array  # space-time-time area; of no meaning where it isn't asked for


def leaves(terms: PyTree, dt: Any, y: PyTree, noise: Any) -> tuple[list[Leaf], Any]:
    """The leaves of the state, and the tree they form."""
    x, v = y
    drift = _unwrapped(terms.terms[0])
    xs, tree = jax.tree.flatten(x)
    flat = tree.flatten_up_to
    gamma, u = (_spread(given, x) for given in (drift.gamma, drift.u))
    third = getattr(noise, "K", None)
    parts = zip(
        xs,
        flat(v),
        flat(gamma),
        flat(u),
        flat(noise.W),
        flat(noise.H),
        flat(noise.H if third is None else third),
        strict=True,
    )
    out = []
    for x, v, gamma, u, *areas in parts:
        step = jnp.asarray(dt).astype(x.dtype)
        path = (each.astype(x.dtype) for each in areas)
        root = jnp.sqrt(2 * gamma * u)
        out.append(Leaf(x, v, step, gamma * step, u * step, root, *path))
    return out, tree


def gradient(terms: PyTree) -> Callable[[PyTree, Any], PyTree]:
    """That of the potential."""
    return _unwrapped(terms.terms[0]).grad_f


def _unwrapped(term: Any) -> Any:
    while not isinstance(term, dfx.UnderdampedLangevinDriftTerm):
        term = term.term
    return term


def _spread(prefix: PyTree, x: PyTree) -> PyTree:
    """A number for the whole state, or a tree of arrays, as one array a leaf."""
    return jax.tree.map(
        lambda given, part: jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(given, x.dtype), x.shape), part
        ),
        prefix,
        x,
    )


# Functions of the friction over a step ------------------------------------------------
#
# All are entire: by their series where the closed form would cancel.

_TERMS = 20


def _entire(alpha: Array, series: Callable[[int], float], closed: Callable) -> Array:
    small = jnp.abs(alpha) < 1
    near = jnp.where(small, alpha, 0)
    value = jnp.zeros_like(near)
    for n in reversed(range(_TERMS)):
        value = value * near + series(n)
    return jnp.where(small, value, closed(jnp.where(small, 1, alpha)))


def phi(alpha: Array) -> Array:
    """`(1 - e^-alpha) / alpha`."""
    series = lambda n: (-1) ** n / math.factorial(n + 1)
    return _entire(alpha, series, lambda a: -jnp.expm1(-a) / a)


def psi(alpha: Array) -> Array:
    """`(e^-alpha + alpha - 1) / alpha^2`."""
    series = lambda n: (-1) ** n / math.factorial(n + 2)
    return _entire(alpha, series, lambda a: (jnp.expm1(-a) + a) / a**2)


def chi(alpha: Array) -> Array:
    """`6 (e^-alpha (alpha + 2) + alpha - 2) / alpha^3`: of the area `H`."""
    series = lambda n: 6 * (-1) ** n * (n + 1) / math.factorial(n + 3)
    closed = lambda a: 6 * (jnp.exp(-a) * (a + 2) + a - 2) / a**3
    return _entire(alpha, series, closed)


def chi_half(alpha: Array) -> Array:
    """`6 (e^{-alpha/2} (alpha + 2) + alpha^2 / 4 - 2) / alpha^3`: up to the middle."""
    series = lambda n: 1.5 * (-1) ** n * (n + 2) / math.factorial(n + 3) / 2**n
    closed = lambda a: 6 * (jnp.exp(-a / 2) * (a + 2) + a**2 / 4 - 2) / a**3
    return _entire(alpha, series, closed)


def omega(alpha: Array) -> Array:
    """`60 (e^-alpha (alpha^2 + 6 alpha + 12) - alpha^2 + 6 alpha - 12) / alpha^4`."""

    def series(n: int) -> float:
        m = n + 4
        return 60 * (-1) ** n * (m * (m - 7) + 12) / math.factorial(m)

    closed = lambda a: (
        60 * (jnp.exp(-a) * (a**2 + 6 * a + 12) - a**2 + 6 * a - 12) / a**4
    )
    return _entire(alpha, series, closed)


# Solvers ------------------------------------------------------------------------------


class AbstractLangevinSolver(dfx.AbstractStratonovichSolver):
    """A solver of underdamped Langevin diffusion, one array of the state at a time."""

    term_structure = TERMS
    minimal_levy_area: ClassVar[Any]
    interpolation_cls = dfx.LocalLinearInterpolation

    def func(self, terms, t0, y0, args) -> PyTree:
        """The vector fields at one time."""
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> Any:
        """Nothing is kept between steps."""

    def _begin(self, terms, t0, t1, y0) -> tuple[list[Leaf], Any]:
        dt = terms.terms[0].contr(t0, t1)
        noise = terms.terms[1].contr(t0, t1, use_levy=True)
        if not isinstance(noise, self.minimal_levy_area):
            raise ValueError(
                f"{type(self).__name__} needs a path with {self.minimal_levy_area}; "
                f"its increments are {type(noise).__name__}. Write "
                "`VirtualBrownianTree(..., levy_area=diffrax."
                f"{self.minimal_levy_area.__name__.removeprefix('Abstract')})`."
            )
        return leaves(terms, dt, y0, noise)


class AbstractEmbeddedLangevinSolver(
    AbstractLangevinSolver, dfx.AbstractAdaptiveSolver
):
    """One that keeps the gradient at the end of a step, to estimate its error."""

    def init(self, terms, t0, t1, y0, args) -> PyTree:
        """The gradient at the initial state."""
        return gradient(terms)(y0[0], args)

    def error_order(self, terms: PyTree) -> float:
        """The estimate is a second difference of the gradient along a rough path."""
        return 2.5

    def evaluations_of_init(self, terms) -> Evaluations:
        """One gradient."""
        return Evaluations(drift=1)

    def _first(self, terms, y0, args, kept: PyTree, made_jump: Any) -> PyTree:
        """The gradient at the start, anew after a jump of the state."""
        jumped = jnp.asarray(made_jump)
        return jax.lax.cond(jumped, lambda: gradient(terms)(y0[0], args), lambda: kept)


def rejectable(
    y0: PyTree, first: PyTree, y1: PyTree, last: PyTree, error: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """State, gradient and error of a step, such that one that leaves the numbers is
    rejected: its error is infinite, and its state that of the start, as a controller
    scales errors by states.

    A controller that accepts it nevertheless, at its shortest step, is told by the next
    one: that starts with a gradient of NaN, and ends in NaN.
    """

    def finite(*trees: PyTree) -> Array:
        leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(trees)]
        return jnp.all(jnp.stack(leaves))

    begun = finite(first)
    good = begun & finite(y1, last, error)

    def state(new: Array, old: Array) -> Array:
        return jnp.where(good, new, jnp.where(begun, old, jnp.nan))

    return (
        jax.tree.map(state, y1, y0),
        jax.tree.map(lambda g: jnp.where(good, g, jnp.nan), last),
        jax.tree.map(lambda e: jnp.where(good, e, jnp.inf), error),
    )
