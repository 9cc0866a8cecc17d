"""Products of curvature matrices with vectors, without the matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ._likelihoods import (
    Likelihood,
    check_outputs,
    find_likelihood,
    output_hessian,
)
from ._real import from_real, to_real
from ._tree import explained, in_real, largest_eps, norm, widen


Product = Callable[[PyTree], PyTree]


# Hessian ----------------------------------------------------------------------------

_INSTEAD = (
    '; or take mode="finite_diff", differences of gradients; or a method without '
    "Hessian products (sophia_g, mfac, mkor)"
)


def second_derivatives():
    """Explain errors of exact Hessian products."""
    return explained("an exact Hessian product differentiates twice", _INSTEAD)


def _explained(product: Product, context: Callable[[], Any]) -> Product:
    # Linearizing may put the error off until the product is taken.
    def explained_product(v: PyTree) -> PyTree:
        with context():
            return product(v)

    return explained_product


def _fwd_over_rev(f: Callable, x: PyTree) -> Product:
    with second_derivatives():
        _, product = jax.linearize(jax.grad(f), x)
    return _explained(product, second_derivatives)


def _rev_over_rev(f: Callable, x: PyTree) -> Product:
    with second_derivatives():
        _, pullback = jax.vjp(jax.grad(f), x)
    return _explained(lambda v: pullback(v)[0], second_derivatives)


def _finite_diff(f: Callable, x: PyTree) -> Product:
    gradient = jax.grad(f)
    size, step = norm(x), largest_eps(x) ** (1 / 3)

    def product(v: PyTree) -> PyTree:
        h = step * (1 + size) / _length(v, size)

        def shifted(sign: int) -> PyTree:
            move = lambda a, b: a + (sign * h).astype(a.dtype) * b
            return gradient(jax.tree.map(move, x, v))

        return jax.tree.map(
            lambda up, down: (up - down) / (2 * h).astype(up.dtype),
            shifted(1),
            shifted(-1),
        )

    return product


def _forward_diff(f: Callable, x: PyTree, known: PyTree | None = None) -> Product:
    gradient = jax.grad(f)
    base = gradient(x) if known is None else known
    size, step = norm(x), largest_eps(x) ** (1 / 2)

    def product(v: PyTree) -> PyTree:
        h = step * (1 + size) / _length(v, size)
        moved = jax.tree.map(lambda a, b: a + h.astype(a.dtype) * b, x, v)
        return jax.tree.map(
            lambda up, here: (up - here.astype(up.dtype)) / h.astype(up.dtype),
            gradient(moved),
            base,
        )

    return product


def _length(v: PyTree, like: Array) -> Array:
    """The norm of a vector, or one if it is zero."""
    length = norm(v).astype(like.dtype)
    return jnp.where(length > 0, length, jnp.ones_like(length))


_MODES: dict[str, Callable[..., Product]] = {
    "fwd_over_rev": _fwd_over_rev,
    "rev_over_rev": _rev_over_rev,
    "finite_diff": _finite_diff,
    "forward_diff": _forward_diff,
}


def check_mode(mode: str) -> str:
    """The mode, if there is one of that name."""
    if mode not in _MODES:
        names = ", ".join(map(repr, _MODES))
        raise ValueError(f"there is no mode {mode!r} of Hessian products; {names} are")
    return mode


def real_hvp(f: Callable, x: PyTree, mode: str, known: PyTree | None = None) -> Product:
    """`v -> H v` for a function of a real tree; its gradient, where that is of use."""
    make = _MODES[check_mode(mode)]
    return make(f, x) if known is None else make(f, x, known)


def hvp(
    loss: Callable[[PyTree], Array], params: PyTree, mode: str = "fwd_over_rev"
) -> Product:
    """Products with the Hessian of a loss, `v -> H v`.

    **Arguments:**

    - `loss`: a real scalar function of the parameters, the batch closed over.
    - `params`: where the Hessian is taken. A complex leaf counts as its real and
      imaginary parts; `H` is the Hessian in these real coordinates.
    - `mode`: `"fwd_over_rev"` and `"rev_over_rev"` are exact; `"finite_diff"` is the
      central difference of two gradients with step `eps^(1/3) (1 + |params|) / |v|`,
      for losses that can be differentiated only once. Its error is `O(eps^(2/3))`,
      about 1e-4 in float32. `"forward_diff"` is the difference from the gradient at
      `params`, with `eps^(1/2)` in the step; its error is `O(eps^(1/2))`, about 1e-3.
      Both are for smooth losses: where a rectifier switches between the points, the
      jump of the gradient is divided by the step.

    **Returns:** a function from a tree like `params` to `H v`, another such tree. The
    exact modes linearize the gradient once, here, and each product costs one to two
    gradients more (two through dense layers); `"finite_diff"` takes two gradients a
    product, `"forward_diff"` one, and one for all.

    **Raises:** `TypeError` if the loss can't be differentiated twice, as with most
    adjoints of Diffrax; the message says what to write.

    **Reference:** Pearlmutter, "Fast exact multiplication by the Hessian", Neural
    Computation 6 (1994).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> product = px.curvature.hvp(lambda p: jnp.sum(p**4), jnp.array([1.0, 2.0]))
    >>> product(jnp.array([1.0, 1.0]))
    Array([12., 48.], dtype=float32)

    ```
    """
    product = real_hvp(*in_real(loss, params), mode)
    return lambda v: from_real(product(to_real(v)), v)


# Generalized Gauss-Newton -----------------------------------------------------------


def _forward_mode():
    return explained(
        "a Gauss-Newton product needs a derivative in forward mode",
        '; or take hvp(..., mode="finite_diff"), or gauss_newton_bartlett_diagonal',
    )


def _output_product(
    likelihood: str | Likelihood | Callable, outputs: PyTree, count: Any, mask: Any
) -> Product:
    if isinstance(likelihood, str | Likelihood):
        found = find_likelihood(likelihood)
        apply = output_hessian(found, check_outputs(outputs), count, mask)
        return lambda v: jax.tree.map(apply, v)
    if count is not None or mask is not None:
        raise ValueError(
            "`count` and `mask` go with a named likelihood or a Likelihood; a function "
            "of the outputs takes its mean itself"
        )
    return hvp(likelihood, outputs)


def ggn_mvp(
    predict: Callable[[PyTree], PyTree],
    params: PyTree,
    likelihood: str | Likelihood | Callable = "categorical",
    *,
    count: int | Array | None = None,
    mask: Array | None = None,
) -> Product:
    """Products with the generalized Gauss-Newton matrix, `v -> J^T H_out J v`.

    `J` is the Jacobian of the outputs, `H_out` the Hessian of the mean loss in the
    outputs. The matrix is positive semidefinite if the loss is convex in the outputs;
    for the named likelihoods it is the Fisher information.

    **Arguments:**

    - `predict`: the network's outputs as a function of the parameters, the inputs
      closed over. Any leading axes (batch, sequence).
    - `params`: where the matrix is taken; complex leaves in real coordinates.
    - `likelihood`: `"categorical"`, `"bernoulli"` or `"gaussian"`, a
      [`pathax.curvature.Likelihood`][], or a function from the outputs to the mean
      loss, with the labels closed over.
    - `count`: how many terms the mean loss has, if it is not their number in the
      outputs.
    - `mask`: 1 for terms that count and 0 for those that don't (padding), one entry a
      term.

    **Returns:** a function from a tree like `params` to another such tree. `predict` is
    linearized and transposed once, here.

    **Raises:** `TypeError` if `predict` has no forward-mode derivative.

    **Reference:** Schraudolph, "Fast curvature matrix-vector products for second-order
    gradient descent", Neural Computation 14 (2002).

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> x = jnp.array([[1.0], [3.0]])
    >>> product = px.curvature.ggn_mvp(lambda w: x @ w, jnp.ones((1, 1)), "gaussian")
    >>> float(product(jnp.ones((1, 1)))[0, 0])  # the mean of x^2
    5.0

    ```
    """
    f, x = in_real(predict, params)
    # Real on both ends, so that transposing needs no conjugates.
    shape = jax.eval_shape(f, x)
    with _forward_mode():
        outputs, push = jax.linearize(lambda x: to_real(f(x)), x)
    push = _explained(push, _forward_mode)
    pull = jax.linear_transpose(push, x)
    hessian = _output_product(likelihood, from_real(outputs, shape), count, mask)

    def product(v: PyTree) -> PyTree:
        pushed = from_real(push(to_real(v)), shape)
        (out,) = pull(to_real(hessian(pushed)))
        return from_real(out, v)

    return product


# Empirical Fisher -------------------------------------------------------------------


def fisher_mvp(rows: PyTree, *, count: int | Array | None = None) -> Product:
    """Products with the Fisher matrix of given rows, `v -> G^T G v / B`.

    **Arguments:**

    - `rows`: a tree with a leading axis `B`, as from
      [`pathax.curvature.empirical_fisher_rows`][]. A complex leaf holds the derivatives
      in its two real coordinates as real and imaginary part.
    - `count`: divide by this instead of `B`.

    **Returns:** a function from a tree of one row's shapes to another such tree; sums
    are in float32 at least.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> product = px.curvature.fisher_mvp(jnp.array([[1.0, 0.0], [1.0, 2.0]]))
    >>> product(jnp.array([1.0, 1.0]))
    Array([2., 3.], dtype=float32)

    ```
    """
    wide = widen(to_real(rows))
    leaves, treedef = jax.tree.flatten(wide)
    divisor = leaves[0].shape[0] if count is None and leaves else count

    def product(v: PyTree) -> PyTree:
        parts = treedef.flatten_up_to(to_real(v))
        coefficients = _inner(leaves, parts)
        out = [
            (jnp.tensordot(coefficients.astype(g.dtype), g, 1) / _like(divisor, g))
            for g in leaves
        ]
        narrow = [o.astype(p.dtype) for o, p in zip(out, parts, strict=True)]
        return from_real(treedef.unflatten(narrow), v)

    return product


def _like(value: Any, leaf: Array) -> Array:
    return jnp.asarray(value, leaf.dtype)


def _inner(rows: list[Array], parts: list[Array]) -> Array:
    """`G v`, one number a row."""
    dtype = max((g.dtype for g in rows), key=lambda d: jnp.finfo(d).bits)
    total = jnp.zeros(rows[0].shape[0], dtype)
    for g, p in zip(rows, parts, strict=True):
        inner = jnp.tensordot(g, p.astype(g.dtype), axes=p.ndim)
        total = total + inner.astype(dtype)
    return total


# Lineax -----------------------------------------------------------------------------


def as_operator(
    product: Product, params: PyTree, *, positive_semidefinite: bool = False
) -> lx.FunctionLinearOperator:
    """A product with a curvature matrix as a Lineax operator, tagged symmetric.

    **Arguments:**

    - `product`: `v -> C v` for trees like `params`, as from
      [`pathax.curvature.hvp`][], [`pathax.curvature.ggn_mvp`][] or
      [`pathax.curvature.fisher_mvp`][].
    - `params`: a tree of the same structure.
    - `positive_semidefinite`: tag it so; true of the last two, and needed by
      `lineax.CG`.

    **Returns:** a `lineax.FunctionLinearOperator`. It acts on real coordinates: a
    complex leaf of shape `s` is a real one of shape `(*s, 2)`.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> import lineax as lx
    >>> import pathax as px
    >>> params = jnp.array([1.0, 2.0])
    >>> product = px.curvature.hvp(lambda p: jnp.sum(p**4), params)
    >>> operator = px.curvature.as_operator(
    ...     product, params, positive_semidefinite=True
    ... )
    >>> lx.linear_solve(operator, jnp.array([12.0, 48.0]), lx.CG(1e-5, 1e-5)).value
    Array([1., 1.], dtype=float32)

    ```
    """
    params = jax.tree.map(jnp.asarray, params)
    tags = [lx.symmetric_tag]
    if positive_semidefinite:
        tags.append(lx.positive_semidefinite_tag)
    return lx.FunctionLinearOperator(
        lambda x: to_real(product(from_real(x, params))),
        jax.eval_shape(to_real, params),
        tuple(tags),
    )
