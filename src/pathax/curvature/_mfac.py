"""Products with the inverse of an empirical Fisher matrix, from its rows alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._gram import whiten
from ._real import from_real, to_real
from ._tree import wide_dtype


class InverseFisher(eqx.Module):
    """The inverse of `F = damping I + R^T R / N`, with `N` gradients as rows of `R`.

    `F^-1 = (I - V^T V) / damping`, with `V = K^(-1/2) R` and `K = N damping I + R R^T`:
    `N` numbers a parameter, no matrix of the parameters' size. With blocks, `F` is
    replaced by its diagonal blocks. Made by [`pathax.curvature.mfac_ihvp`][].

    **Attributes:**

    - `damping`: `damping`, a positive scalar.
    - `count`: `N`.
    - `block`: the length of a block of the flattened parameters.

    **Raises:** `ValueError` for a tree of another structure or other shapes.

    **Cost:** `N` times the parameters in memory. A product takes `4 N P` operations,
    the diagonal `2 N P`, an entry `2 N`, dense blocks `2 N P block`.

    **Gradients:** flow through all of it.

    **Precision:** `F^-1 x` is a difference, and loses digits for an `x` in the span of
    the rows where `|x|^2 / (N damping)` is large; `of_rows` does not. The diagonal is
    kept above `1 / F_ii`, which bounds it from below. Rows that are parallel to
    rounding are damped by as much as that, whatever the damping.

    **Reference:** Frantar, Kurtic, Alistarh, "M-FAC: efficient matrix-free
    approximations of second-order information", arXiv:2107.03356, section 3; the
    recursion there gives the same `V`, row by row.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> inverse = px.curvature.mfac_ihvp(jnp.array([[1.0, 0.0]]), damping=0.5)
    >>> inverse.mul(jnp.array([3.0, 3.0]))
    Array([2., 6.], dtype=float32)
    >>> inverse.diag()
    Array([0.6666667, 2.       ], dtype=float32)

    ```
    """

    damping: Float[Array, ""]
    count: int = eqx.field(static=True)
    block: int = eqx.field(static=True)
    _reduced: Float[Array, "blocks rows block"]  # V
    _half: Float[Array, "blocks rows rows"]  # K^(-1/2)
    _fisher_diag: Float[Array, "blocks block"]
    _like: PyTree[jax.ShapeDtypeStruct] = eqx.field(static=True)

    def mul(self, x: PyTree) -> PyTree:
        """`F^-1 x`, for a tree like the parameters."""
        flat = self._flat(x)
        inner = jnp.einsum("bnk,bk->bn", self._reduced, flat, precision="highest")
        back = jnp.einsum("bnk,bn->bk", self._reduced, inner, precision="highest")
        return self._tree((flat - back) / self.damping)

    def of_rows(self, weights: Float[Array, " rows"]) -> PyTree:
        """`F^-1 R^T weights`, the inverse applied to a combination of the rows.

        As `N V^T K^(-1/2) weights`, without any difference: in float32 it stays
        accurate where `mul` does not.
        """
        weights = weights.astype(self._half.dtype)
        inner = jnp.einsum("bnm,m->bn", self._half, weights, precision="highest")
        out = jnp.einsum("bnk,bn->bk", self._reduced, inner, precision="highest")
        return self._tree(self.count * out)

    def diag(self) -> PyTree:
        """The diagonal of `F^-1`."""
        diag = (1 - jnp.sum(self._reduced**2, axis=1)) / self.damping
        return self._tree(jnp.maximum(diag, 1 / self._fisher_diag))

    def entry(self, i: Any, j: Any) -> Array:
        """Entry `(i, j)` of `F^-1`, by index into the flattened parameters."""
        i, j = jnp.asarray(i), jnp.asarray(j)
        first, second = i // self.block, j // self.block
        a = self._reduced[first, :, i % self.block]
        b = self._reduced[second, :, j % self.block]
        inner = (i == j).astype(a.dtype) - jnp.sum(a * b, axis=-1)
        return jnp.where(first == second, inner / self.damping, jnp.zeros_like(inner))

    def entries(self, index: Array) -> Array:
        """The square matrix of entries of `F^-1` at these places."""
        return self.entry(index[:, None], index[None, :])

    def blocks(self) -> Float[Array, "blocks block block"]:
        """The diagonal blocks of `F^-1` as dense matrices.

        Of the flattened parameters in order; without blocks, the whole matrix. Where
        the last block is filled up, it is that of parameters without gradients.
        """
        v = self._reduced
        inner = jnp.einsum("bni,bnj->bij", v, v, precision="highest")
        eye = jnp.eye(self.block, dtype=v.dtype)[None]
        return (eye - inner) / self.damping

    # Trees and blocks -----------------------------------------------------------------

    def _flat(self, x: PyTree) -> Float[Array, "blocks block"]:
        found = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), x)
        same = jax.tree.structure(found) == jax.tree.structure(self._like)
        shapes = [y.shape for y in jax.tree.leaves(found)]
        if not same or shapes != [y.shape for y in jax.tree.leaves(self._like)]:
            raise ValueError(
                "`x` must have the structure and the shapes of one row, "
                f"{self._like}; got {found}"
            )
        flat = flatten(x, self._reduced.dtype)
        return _blocks(flat, self.block)

    def _tree(self, flat: Float[Array, "blocks block"]) -> PyTree:
        return unflatten(flat.ravel(), self._like)


InverseFisher.__module__ = "pathax.curvature"


def flatten(tree: PyTree, dtype: Any = None, *, lead: int = 0) -> Array:
    """Real coordinates of a tree in one vector, after so many leading axes."""
    leaves = jax.tree.leaves(to_real(tree))
    if dtype is None:
        dtype = max((wide_dtype(x.dtype) for x in leaves), key=lambda d: d.itemsize)
    flat = [x.reshape(*x.shape[:lead], -1).astype(dtype) for x in leaves]
    return jnp.concatenate(flat, axis=-1)


def unflatten(flat: Array, like: PyTree[jax.ShapeDtypeStruct]) -> PyTree:
    """The inverse of `flatten`, in the wide dtype of each leaf."""
    leaves, treedef = jax.tree.flatten(like)
    out, start = [], 0
    for leaf in leaves:
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        shape = (*leaf.shape, 2) if is_complex else leaf.shape
        size = 1
        for n in shape:
            size *= n
        part = flat[start : start + size].reshape(shape)
        if not is_complex:
            part = part.astype(wide_dtype(leaf.dtype))
        out.append(from_real(part, leaf))
        start += size
    return treedef.unflatten(out)


def _blocks(flat: Array, block: int) -> Array:
    """Cut the last axis into blocks, the last one filled up with zeros."""
    extra = -flat.shape[-1] % block
    flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, extra)])
    return flat.reshape(*flat.shape[:-1], -1, block)


def mfac_ihvp(
    rows: PyTree,
    damping: float | Array,
    *,
    blocks: int | None = None,
    mask: PyTree | None = None,
) -> InverseFisher:
    """Invert an empirical Fisher matrix `damping I + R^T R / N`, given its rows.

    **Arguments:**

    - `rows`: a tree like the parameters with a leading axis of `N` gradients, as
      [`pathax.curvature.empirical_fisher_rows`][] returns.
    - `damping`: a positive number.
    - `blocks`: keep only diagonal blocks of this length of the flattened parameters,
      the last one shorter; `None` keeps the whole matrix.
    - `mask`: a tree of booleans like one row, False where gradients count as zero: the
      inverse then is that of the other parameters alone. This is for parameters that
      are fixed, such as pruned ones.

    **Returns:** a [`pathax.curvature.InverseFisher`][], with products, the diagonal and
    single entries of the inverse.

    **Raises:** `ValueError` for rows without a common leading axis, a damping that is
    not positive, or blocks shorter than one.

    **Cost:** `4 N^2 P + N^3` operations once (the last term once a block).

    **Reference:** Frantar, Kurtic, Alistarh, "M-FAC: efficient matrix-free
    approximations of second-order information", arXiv:2107.03356.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> rows = jax.random.normal(jax.random.key(0), (4, 6))
    >>> inverse = px.curvature.mfac_ihvp(rows, 0.1)
    >>> fisher = 0.1 * jnp.eye(6) + rows.T @ rows / 4
    >>> x = jnp.arange(6.0)
    >>> bool(jnp.allclose(fisher @ inverse.mul(x), x, atol=1e-4))
    True

    ```
    """
    shapes = [x.shape for x in jax.tree.leaves(rows)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or lengths <= {None, 0}:
        raise ValueError(
            "`rows` must be arrays with one leading axis of at least one gradient; got "
            f"shapes {shapes}"
        )
    if isinstance(damping, int | float) and not damping > 0:
        raise ValueError(f"`damping` must be positive; got {damping}")
    if blocks is not None and blocks < 1:
        raise ValueError(f"`blocks` must be at least 1, or None; got {blocks}")
    if mask is not None:
        keep = lambda row, known: jnp.where(known, row, jnp.zeros_like(row))
        rows = jax.vmap(lambda row: jax.tree.map(keep, row, mask))(rows)
    flat = flatten(rows, lead=1)
    count, size = flat.shape
    block = size if blocks is None else min(blocks, size)
    cut = jnp.moveaxis(_blocks(flat, block), 1, 0)  # (blocks, rows, block)
    scale = jnp.asarray(damping).astype(flat.dtype)
    reduced, half = jax.vmap(whiten, in_axes=(0, None))(cut, count * scale)
    diag = scale + jnp.sum(cut**2, axis=1) / count
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    return InverseFisher(scale, count, block, reduced, half, diag, like)
