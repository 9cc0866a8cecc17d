"""Paths made of other paths by linear maps of their node normals.

All moments are linear in the normals, with coefficients that depend on times alone, so
a linear map of the normals of one or several trees is the same map of their moments.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ._inputs import RealScalar
from ._path import AbstractMomentPath, Standardised


class CombinedPath(AbstractMomentPath):
    """A weighted sum of paths, with a linear map of the components.

    Made by [`pathax.brownian.antithetic`][], [`pathax.brownian.mix`][] and
    [`pathax.brownian.correlate`][].

    **Attributes:**

    - `paths`: independent paths of one shape and order.
    - `weights`: a scalar each.
    - `factor`: a matrix `(e, d)` that maps the last axis of every array, or `None`.
    - `shape`, `order`, `t0`, `t1`: of the result; the times are those that all share.

    **Raises:** as the paths do.

    **Cost.** The sum of those of the paths.

    **Gradients.** With respect to `weights` and `factor`; none with respect to times.

    **Precision.** As for the paths.

    **Reference:** none; linearity of the expansion in the node normals.

    **Example:** see [`pathax.brownian.mix`][].
    """

    paths: tuple[AbstractMomentPath, ...]
    weights: tuple[Array, ...]
    factor: Float[Array, "e d"] | None
    shape: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def __init__(
        self,
        paths: tuple[AbstractMomentPath, ...],
        weights: tuple[RealScalar, ...],
        factor: Array | None = None,
    ):
        first = paths[0]
        for path in paths:
            if not isinstance(path, AbstractMomentPath):
                raise TypeError(
                    f"Paths must be those of `pathax.brownian`; got {type(path)}."
                )
            if path.shape != first.shape or path.order != first.order:
                raise ValueError(
                    "Paths must have the same shape and order; got "
                    f"{first.shape}, order {first.order}, and {path.shape}, order "
                    f"{path.order}."
                )
        self.paths, self.order = tuple(paths), first.order
        self.weights = tuple(jnp.asarray(w) for w in weights)
        self.factor = None if factor is None else jnp.asarray(factor)
        self.shape = jax.tree.map(self._mapped, first.shape)

    def _mapped(self, struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if self.factor is None:
            return struct
        if self.factor.ndim != 2 or struct.shape[-1:] != self.factor.shape[1:]:
            raise ValueError(
                "`factor` must be a matrix (e, d) with d the last axis of the "
                "path; got "
                f"shapes {self.factor.shape} and {struct.shape}."
            )
        shape = (*struct.shape[:-1], self.factor.shape[0])
        return jax.ShapeDtypeStruct(shape, struct.dtype)

    @property
    def t0(self) -> Array:
        dtype = self.time_dtype()
        return jnp.stack([jnp.asarray(p.t0).astype(dtype) for p in self.paths]).max()

    @property
    def t1(self) -> Array:
        dtype = self.time_dtype()
        return jnp.stack([jnp.asarray(p.t1).astype(dtype) for p in self.paths]).min()

    def time_dtype(self) -> np.dtype:
        return np.dtype(np.result_type(*(p.time_dtype() for p in self.paths)))

    def standardised(self, s: RealScalar, u: RealScalar, rows: int) -> Standardised:
        parts = [path.standardised(s, u, rows) for path in self.paths]

        def combine(*zs):
            terms = [
                w.astype(z.dtype) * z for w, z in zip(self.weights, zs, strict=True)
            ]
            out = sum(terms[1:], start=terms[0])
            if self.factor is None:
                return out
            factor = self.factor.astype(out.dtype)
            return jnp.einsum("ed,...d->...e", factor, out, precision="highest")

        z = jax.tree.map(combine, *(part.z for part in parts))
        return Standardised(z, parts[0].length.astype(self.time_dtype()))


CombinedPath.__module__ = "pathax.brownian"


def antithetic(path: AbstractMomentPath) -> CombinedPath:
    """The path with all normals negated: `-W`, as likely as `W`.

    Averages over a path and its antithetic one have no error from odd functionals.

    **Arguments:** `path`: a path of this folder.

    **Returns:** a [`pathax.brownian.CombinedPath`][].

    **Example:**

    >>> import jax
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-10, (), jax.random.key(0))
    >>> float(path.evaluate(0.2, 0.3) + px.brownian.antithetic(path).evaluate(0.2, 0.3))
    0.0
    """
    return CombinedPath((path,), (-1.0,))


def mix(
    path: AbstractMomentPath, other: AbstractMomentPath, rho: RealScalar
) -> CombinedPath:
    """`rho Z + sqrt(1 - rho^2) Z'`: the proposal of preconditioned Crank-Nicolson.

    A Brownian path again if the two are independent, with correlation `rho` to the
    first.

    **Arguments:**

    - `path`, `other`: paths of one shape and order, of different keys.
    - `rho`: in `[-1, 1]`; may be traced.

    **Returns:** a [`pathax.brownian.CombinedPath`][].

    **Raises:** `ValueError` if `rho` is a number outside of `[-1, 1]`, or the paths
    differ in shape or order.

    **Reference:** Cotter, Roberts, Stuart, White, "MCMC methods for functions:
    modifying old algorithms to make them faster", Statistical Science 28 (2013).

    **Example:**

    >>> import jax
    >>> import pathax as px
    >>> a, b = (
    ...     px.brownian.VirtualBrownianTree(0.0, 1.0, 2**-10, (), jax.random.key(i))
    ...     for i in range(2)
    ... )
    >>> bool(px.brownian.mix(a, b, 1.0).evaluate(0.2) == a.evaluate(0.2))
    True
    """
    if not isinstance(rho, Tracer) and not -1 <= float(rho) <= 1:
        raise ValueError(f"`rho` must be in [-1, 1]; got {rho}.")
    rho = jnp.asarray(rho)
    if not jnp.issubdtype(rho.dtype, jnp.floating):
        rho = rho.astype(jnp.result_type(float))
    return CombinedPath((path, other), (rho, jnp.sqrt(1 - rho**2)))


def correlate(path: AbstractMomentPath, factor: Array) -> CombinedPath:
    """A path with correlated components, `W' = factor W` along the last axis.

    Its increments have covariance `factor factor^T dt`.

    **Arguments:**

    - `path`: a path whose arrays end in an axis of length `d`.
    - `factor`: a matrix `(e, d)`, for instance a Cholesky factor.

    **Returns:** a [`pathax.brownian.CombinedPath`][] whose arrays end in `e`.

    **Raises:** `ValueError` if the shapes don't fit.

    **Example:**

    >>> import jax, jax.numpy as jnp
    >>> import pathax as px
    >>> path = px.brownian.VirtualBrownianTree(
    ...     0.0, 1.0, 2**-10, (2,), jax.random.key(0)
    ... )
    >>> factor = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> px.brownian.correlate(path, factor).evaluate(0.2, 0.3).shape
    (3,)
    """
    return CombinedPath((path,), (1.0,), factor)
