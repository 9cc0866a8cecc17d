"""Curvature as users have it, made into a solver for flat real vectors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ...curvature import ggn_mvp, hvp
from ...curvature._real import from_real, to_real
from ...curvature._tree import in_real
from .._extras import MissingExtraError, objective, require
from . import _shifted_solvers as shifted
from ._shifted_solvers import dot


# Products and derivatives taken at once where a matrix is made of them, which bounds
# the memory.
_AT_ONCE = 64


# Coordinates ------------------------------------------------------------------------


def real_dtype(tree: PyTree) -> Any:
    """Single precision at least, double if any leaf is."""
    leaves = jax.tree.leaves(tree)
    is_double = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in leaves)
    return jnp.dtype("float64" if is_double else "float32")


@dataclass(frozen=True)
class Coordinates:
    """All entries of trees like `like` as one real vector of one dtype."""

    like: PyTree
    dtype: Any

    @property
    def size(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in self._real())

    def _real(self) -> list[Any]:
        return jax.tree.leaves(jax.eval_shape(to_real, self.like))

    def ravel(self, tree: PyTree) -> Array:
        leaves = jax.tree.leaves(to_real(jax.tree.map(jnp.asarray, tree)))
        shapes = [leaf.shape for leaf in self._real()]
        if [leaf.shape for leaf in leaves] != shapes:
            raise ValueError(
                f"expected a tree with leaves of real shapes {shapes}; "
                f"got {[leaf.shape for leaf in leaves]}"
            )
        flat = [leaf.astype(self.dtype).reshape(-1) for leaf in leaves]
        return jnp.concatenate([jnp.zeros(0, self.dtype), *flat])

    def unravel(self, vector: Array) -> PyTree:
        """The tree of a vector, every leaf in its own dtype."""
        treedef = jax.tree.structure(self.like)
        parts, start = [], 0
        for leaf in self._real():
            stop = start + math.prod(leaf.shape)
            part = vector[start:stop].reshape(leaf.shape)
            parts.append(part.astype(leaf.dtype))
            start = stop
        return from_real(treedef.unflatten(parts), self.like)


# Metric -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """`B = L L^T`; every vector `v` is solved for as `L^T v`, where `B` is `I`."""

    factor: Array | None = None  # L: a vector if it is diagonal, None if it is I

    def dual(self, g: Array) -> Array:
        """`L^-1 g`, whose Euclidean norm is the dual norm of `g`."""
        if self.factor is None:
            return g
        if self.factor.ndim == 1:
            return g / self.factor
        return jax.scipy.linalg.solve_triangular(self.factor, g, lower=True)

    def primal(self, v: Array) -> Array:
        """`L^-T v`, a vector in the original coordinates."""
        if self.factor is None:
            return v
        if self.factor.ndim == 1:
            return v / self.factor
        return jax.scipy.linalg.solve_triangular(self.factor.T, v, lower=False)

    def rows(self, rows: Array) -> Array:
        return rows if self.factor is None else jax.vmap(self.dual)(rows)

    def matrix(self, matrix: Array) -> Array:
        return self.rows(self.rows(matrix).T)


def read_metric(metric: PyTree, space: Coordinates) -> Metric:
    """`None`, a dense `(P, P)` array or positive weights as a tree or a number."""
    if metric is None:
        return Metric()
    is_array = isinstance(metric, int | float | Array) or hasattr(metric, "shape")
    if is_array:
        array = jnp.asarray(metric, space.dtype)
        if array.shape == (space.size, space.size):
            return Metric(jnp.linalg.cholesky(array))
        if array.ndim == 0:
            return Metric(jnp.sqrt(jnp.broadcast_to(array, (space.size,))))
    return Metric(jnp.sqrt(space.ravel(metric)))


# Curvature --------------------------------------------------------------------------


class Rows(NamedTuple):
    """`C = J^T J / n`; with residuals `r`, also `g = J^T r / n`."""

    matrix: Array
    residuals: Array | None


class Scalar(NamedTuple):
    """`C = c g g^T`."""

    factor: Array


class Diagonal(NamedTuple):
    entries: Array


class Dense(NamedTuple):
    matrix: Array


class Product(NamedTuple):
    apply: Callable[[Array], Array]


Curvature = Rows | Scalar | Diagonal | Dense | Product


def _rows(pair: tuple, space: Coordinates) -> Rows:
    rows, residuals = pair
    leaves = jax.tree.leaves(rows)
    count = leaves[0].shape[0]
    if len(leaves) == 1 and leaves[0].shape == (count, space.size):
        matrix = leaves[0].astype(space.dtype)
    else:
        matrix = jax.vmap(space.ravel)(rows)
    if residuals is None:
        return Rows(matrix, None)
    residuals = to_real(jnp.asarray(residuals)).reshape(-1).astype(space.dtype)
    if residuals.size != count:
        raise ValueError(
            "`curvature=(J, r)` needs one residual a row of J; "
            f"got {count} rows and {residuals.size} residuals"
        )
    return Rows(matrix, residuals)


def _operator(operator: lx.AbstractLinearOperator, space: Coordinates) -> Product:
    inside = Coordinates(operator.in_structure(), space.dtype)
    if inside.size != space.size:
        raise ValueError(
            f"the operator acts on {inside.size} numbers; there are {space.size} "
            "real parameters"
        )
    return Product(lambda v: inside.ravel(operator.mv(inside.unravel(v))))


def _same_shapes(tree: PyTree, like: PyTree) -> bool:
    if jax.tree.structure(tree) != jax.tree.structure(like):
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    return all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)


def read_curvature(given: Any, space: Coordinates, solver: str) -> Curvature:
    """Which kind of curvature was given, in flat coordinates."""
    if isinstance(given, lx.AbstractLinearOperator):
        return _operator(given, space)
    if callable(given):
        return Product(lambda v: space.ravel(given(space.unravel(v))))
    if solver == "diag" and _same_shapes(given, space.like):
        return Diagonal(space.ravel(given))
    shape = getattr(given, "shape", () if isinstance(given, int | float) else None)
    if shape == ():
        return Scalar(jnp.asarray(given, space.dtype))
    if shape == (space.size, space.size):
        matrix = jnp.asarray(given, space.dtype)
        return Dense((matrix + matrix.T) / 2)
    if _same_shapes(given, space.like):
        return Diagonal(space.ravel(given))
    if isinstance(given, tuple) and len(given) == 2:
        return _rows(given, space)
    raise TypeError(
        f"`curvature` must be a ({space.size}, {space.size}) array (real coordinates), "
        "a function v -> C v of trees like the parameters, a Lineax operator, a pair "
        "(J, r) of rows and residuals, a tree like the parameters (a diagonal) or a "
        f"scalar c (C = c g g^T); got {_describe(given)}"
    )


def _describe(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return f"{type(given).__name__}" + ("" if shape is None else f" of shape {shape}")


def whiten(curvature: Curvature, metric: Metric) -> Curvature:
    """`L^-1 C L^-T`."""
    if metric.factor is None or isinstance(curvature, Scalar):
        return curvature
    if isinstance(curvature, Rows):
        return Rows(metric.rows(curvature.matrix), curvature.residuals)
    if isinstance(curvature, Dense):
        return Dense(metric.matrix(curvature.matrix))
    if isinstance(curvature, Product):
        apply = curvature.apply
        return Product(lambda v: metric.dual(apply(metric.primal(v))))
    if metric.factor.ndim == 1:
        return Diagonal(curvature.entries / metric.factor**2)
    raise ValueError("a diagonal curvature goes with a diagonal metric")


# Where it comes from ----------------------------------------------------------------

CURVATURES = (None, "hessian", "ggn", "fisher")


def _jacobian(residual_fn: Callable, params: PyTree) -> tuple[PyTree, Array]:
    """Rows of a Jacobian in real coordinates, and the residuals."""
    f, x = in_real(residual_fn, params)
    flat = lambda x: jnp.concatenate(
        [to_real(leaf).reshape(-1) for leaf in jax.tree.leaves(f(x))]
    )
    space = Coordinates(x, real_dtype(x))
    residuals, pull = jax.vjp(flat, x)
    count = residuals.size
    if count <= space.size:
        units = jnp.eye(count, dtype=residuals.dtype)
        row = lambda unit: space.ravel(pull(unit)[0])
        return jax.lax.map(row, units, batch_size=min(_AT_ONCE, count)), residuals
    _, push = jax.linearize(flat, x)
    units = jnp.eye(space.size, dtype=space.dtype)
    column = lambda unit: push(space.unravel(unit))
    return jax.lax.map(column, units, batch_size=_AT_ONCE).T, residuals


def _gauss_newton(
    likelihood: Any, solver: str, params: PyTree, extra: dict, transform: str
) -> Any:
    residual_fn = extra.get("residual_fn")
    if residual_fn is None:
        instead = "residual_fn=lambda p: ... for a least-squares loss"
        predict = require(extra, "predict_fn", transform, instead)
        return ggn_mvp(predict, params, likelihood)
    if solver == "lanczos":
        flat = lambda p: to_real(residual_fn(p)).reshape(-1)
        return ggn_mvp(flat, params, "gaussian")
    return _jacobian(residual_fn, params)


def find_curvature(
    curvature_fn: Callable | None,
    name: str | None,
    likelihood: Any,
    solver: str,
    params: PyTree,
    extra: dict,
    transform: str,
) -> Any:
    """The curvature that was given, or what makes it."""
    given = extra.get("curvature")
    if given is not None:
        return given
    if curvature_fn is not None:
        return curvature_fn(params)
    if name == "hessian":
        return hvp(objective(extra, transform), params)
    if name == "ggn":
        return _gauss_newton(likelihood, solver, params, extra, transform)
    if name == "fisher":
        return require(extra, "rows", transform), None
    instead = f'{transform}(curvature="hessian"), {transform}(curvature="ggn")'
    raise MissingExtraError("curvature", transform, instead)


# Solvers ----------------------------------------------------------------------------

SOLVERS = ("auto", "eigh", "cholesky", "rows", "rank_one", "lanczos", "diag")

# Above so many parameters, products are not made into a matrix unless asked to ...
_PRODUCTS_TO_MATRIX = 256
# ... and a factorization a trial is cheaper than one eigendecomposition.
_EIGH = 1000


def _choose(curvature: Curvature, size: int) -> str:
    if isinstance(curvature, Rows):
        # With more rows than parameters, the matrix is the smaller thing.
        return "rows" if curvature.matrix.shape[0] <= size else "eigh"
    if isinstance(curvature, Scalar):
        return "rank_one"
    if isinstance(curvature, Diagonal):
        return "diag"
    if isinstance(curvature, Product) and size > _PRODUCTS_TO_MATRIX:
        return "lanczos"
    return "eigh" if size <= _EIGH else "cholesky"


def _as_matrix(curvature: Curvature, size: int, dtype: Any) -> Array | None:
    if isinstance(curvature, Dense):
        return curvature.matrix
    if isinstance(curvature, Diagonal):
        return jnp.diag(curvature.entries)
    if isinstance(curvature, Rows):
        rows = curvature.matrix
        return dot(rows.T, rows) / rows.shape[0]
    if isinstance(curvature, Product):
        units = jnp.eye(size, dtype=dtype)
        columns = jax.lax.map(curvature.apply, units, batch_size=min(_AT_ONCE, size))
        return (columns + columns.T) / 2
    return None


def _as_product(curvature: Curvature) -> Callable[[Array], Array] | None:
    if isinstance(curvature, Product):
        return curvature.apply
    if isinstance(curvature, Dense):
        return lambda v: dot(curvature.matrix, v)
    if isinstance(curvature, Diagonal):
        return lambda v: curvature.entries * v
    if isinstance(curvature, Rows):
        rows = curvature.matrix
        return lambda v: dot(dot(rows, v), rows) / rows.shape[0]
    return None


def build_solver(
    curvature: Curvature, g: Array, solver: str, krylov: tuple[int, Any]
) -> shifted.Shifted:
    """The solver of that name for that curvature, all coordinates whitened."""
    chosen = _choose(curvature, g.size) if solver == "auto" else solver
    if chosen in ("eigh", "cholesky"):
        matrix = _as_matrix(curvature, g.size, g.dtype)
        if matrix is not None:
            return getattr(shifted, chosen)(matrix, g)
    if chosen == "lanczos":
        product = _as_product(curvature)
        if product is not None:
            return shifted.lanczos(product, g, *krylov)
    if chosen == "rows" and isinstance(curvature, Rows):
        if curvature.residuals is None:
            return shifted.row_span(curvature.matrix, g)
        return shifted.least_squares(curvature.matrix, curvature.residuals)
    if chosen == "rank_one" and isinstance(curvature, Scalar):
        return shifted.rank_one(curvature.factor, g)
    if chosen == "diag" and isinstance(curvature, Diagonal):
        return shifted.diagonal(curvature.entries, g)
    raise ValueError(
        f"solver={solver!r} does not solve with a curvature given as "
        f"{_NAMES[type(curvature)]}; write solver='auto'"
    )


_NAMES = {
    Rows: "rows",
    Scalar: "a scalar",
    Diagonal: "a diagonal",
    Dense: "a matrix",
    Product: "products",
}
