"""The diagonal of a Hessian from products with random vectors."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._products import check_mode, real_hvp, second_derivatives
from ._real import from_real, to_real
from ._tree import in_real, local, mean_over, split_key, widen


# Written out rather than taken from matfree: products must be averaged over devices
# before a modulus is taken, one product comes with the value and the gradient, and
# probes run one after another so that memory does not grow with their number.


def _signs(key: Array, leaves: list[Array]) -> list[Array]:
    """Random signs, one a bit, all from one call of the generator.

    A word for each sign takes as long as a gradient of a small network, and so does a
    key for each leaf.
    """
    size = sum(leaf.size for leaf in leaves)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    places = jnp.arange(32, dtype=jnp.uint32)
    bits = ((words[:, None] >> places[None]) & jnp.uint32(1)).reshape(-1)
    out, start = [], 0
    for leaf in leaves:
        own = bits[start : start + leaf.size].reshape(leaf.shape)
        one = jnp.ones((), leaf.dtype)
        out.append(jnp.where(own == 0, one, -one))
        start += leaf.size
    return out


def _normals(key: Array, leaves: list[Array]) -> list[Array]:
    return [
        jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]


_PROBES: dict[str, Callable[[Array, list[Array]], list[Array]]] = {
    "rademacher": _signs,
    "normal": _normals,
}


def _check(num_samples: int, distribution: str, hvp_mode: str) -> None:
    check_mode(hvp_mode)
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1; got {num_samples}")
    if distribution not in _PROBES:
        names = ", ".join(map(repr, _PROBES))
        raise ValueError(
            f"there is no distribution {distribution!r} of probes; {names} are"
        )


def _draw(key: Array, x: PyTree, distribution: str) -> PyTree:
    leaves, treedef = jax.tree.flatten(x)
    return treedef.unflatten(_PROBES[distribution](key, leaves))


def _estimate(z: PyTree, q: PyTree, absolute: bool, axis_name: Any) -> PyTree:
    """What one probe says, `z * q` or `|q|`."""
    q = mean_over(widen(q), axis_name)  # before the modulus
    if absolute:
        return jax.tree.map(jnp.abs, q)
    return jax.tree.map(lambda a, b: a.astype(b.dtype) * b, z, q)


def _average(
    product: Callable[[PyTree], PyTree],
    x: PyTree,
    key: Array,
    *,
    num_samples: int,
    distribution: str,
    absolute: bool,
    axis_name: Any,
) -> PyTree:
    """The mean of estimates from several probes, one after another."""
    keys = split_key(key, num_samples)

    def one(key: Array) -> PyTree:
        z = local(_draw(key, x, distribution), axis_name)
        return _estimate(z, product(z), absolute, axis_name)

    total = one(keys[0])
    if num_samples > 1:
        add = lambda total, key: (jax.tree.map(jnp.add, total, one(key)), None)
        total, _ = jax.lax.scan(add, total, keys[1:])
    return jax.tree.map(lambda d: d / num_samples, total)


def _context(hvp_mode: str):
    exact = not hvp_mode.endswith("_diff")
    return second_derivatives() if exact else contextlib.nullcontext()


def _real_gradient(grads: PyTree | None, hvp_mode: str, like: PyTree) -> PyTree | None:
    """A given gradient in real coordinates, where `jax.grad` gives conjugates."""
    if grads is None:
        return None
    if hvp_mode != "forward_diff":
        raise ValueError(
            '`grads` are what hvp_mode="forward_diff" takes differences from; got '
            f"hvp_mode={hvp_mode!r}, which does not use them"
        )
    if jax.tree.structure(grads) != jax.tree.structure(like):
        raise ValueError(
            "`grads` must be a tree like the parameters, "
            f"{jax.tree.structure(like)}; got {jax.tree.structure(grads)}"
        )
    return to_real(jax.tree.map(jnp.conj, grads))


def hutchinson_diagonal(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    num_samples: int = 1,
    distribution: str = "rademacher",
    hvp_mode: str = "fwd_over_rev",
    absolute: bool = False,
    axis_name: Any = None,
    grads: PyTree | None = None,
) -> PyTree:
    """Estimate the diagonal of a Hessian from random vectors: the mean of `z * H z`.

    With `z` of random signs the estimate of entry `i` is unbiased with variance
    `sum_{j != i} H_ij^2`, and exact for a diagonal `H`; normal `z` add `2 H_ii^2`.

    **Arguments:**

    - `loss`: a real scalar function of the parameters, the batch closed over.
    - `params`: where the Hessian is taken. A complex leaf counts as its real and
      imaginary parts.
    - `key`: a random key.
    - `num_samples`: how many vectors are averaged over, one after another.
    - `distribution`: `"rademacher"` (signs) or `"normal"`.
    - `hvp_mode`: how products are taken, see [`pathax.curvature.hvp`][].
    - `absolute`: average `|H z|` instead. For signs this is `|z * H z|`; it estimates
      the size of the Hessian's rows, not that of its diagonal.
    - `axis_name`: average `H z` over this mapped axis, if the loss is that of one
      shard; all shards must be given the same key.
    - `grads`: with `hvp_mode="forward_diff"`, the gradient of this very loss at
      `params`, as `jax.grad` gives it, if it is at hand: a product then takes one
      gradient, where an exact one takes two and a gradient of its own.

    **Returns:** a tree like `params`, in float32 at least; a complex leaf holds the
    entries of its two real coordinates as real and imaginary part.

    **Reference:** Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a
    matrix", Applied Numerical Mathematics 57 (2007).

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> loss = lambda p: jnp.sum(p**4)
    >>> px.curvature.hutchinson_diagonal(loss, jnp.array([1.0, 2.0]), jax.random.key(0))
    Array([12., 48.], dtype=float32)

    ```
    """
    _check(num_samples, distribution, hvp_mode)
    f, x = in_real(loss, params)
    x, known = local(x, axis_name), _real_gradient(grads, hvp_mode, params)
    if num_samples == 1 and hvp_mode == "fwd_over_rev":
        # One product: no need to keep what a linearization keeps.
        gradient = jax.grad(f)
        product = lambda z: jax.jvp(gradient, (x,), (z,))[1]
    else:
        product = real_hvp(f, x, hvp_mode, known)

    with _context(hvp_mode):
        diag = _average(
            product,
            x,
            key,
            num_samples=num_samples,
            distribution=distribution,
            absolute=absolute,
            axis_name=axis_name,
        )
    return from_real(diag, _wide_like(params))


def _wide_like(params: PyTree) -> PyTree:
    return jax.eval_shape(lambda p: widen(jax.tree.map(jnp.asarray, p)), params)


def value_grad_and_hutchinson(
    loss: Callable[[PyTree], Any],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    num_samples: int = 1,
    distribution: str = "rademacher",
    hvp_mode: str = "fwd_over_rev",
    absolute: bool = False,
    axis_name: Any = None,
    has_aux: bool = False,
) -> tuple[Any, PyTree, PyTree]:
    """The value, the gradient and a Hessian diagonal, sharing their work.

    One forward-mode pass through `jax.value_and_grad` gives all three; a Hessian
    product by itself, behind a `lax.cond`, repeats the gradient. Through dense layers
    the product takes twice the arithmetic of a gradient, so all three together cost
    close to three gradients where matrix products dominate, and less where they do not.
    With `hvp_mode="forward_diff"` they cost two.

    **Arguments:**

    - `loss`, `params`, `key`, `num_samples`, `distribution`, `absolute`: as in
      [`pathax.curvature.hutchinson_diagonal`][].
    - `hvp_mode`: as there; work is shared for `"fwd_over_rev"` and, the gradient being
      one of the two that are subtracted, for `"forward_diff"`.
    - `axis_name`: as there, and value and gradient are averaged too.
    - `has_aux`: whether the loss returns a pair, of which the second is anything.

    **Returns:** `(value, grads, diag)`, or `((value, aux), grads, diag)`. Give the last
    to an optimizer as `hessian_diag=diag`.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> params, key = jnp.array([1.0, 2.0]), jax.random.key(0)
    >>> value, grads, diag = px.curvature.value_grad_and_hutchinson(
    ...     lambda p: jnp.sum(p**4), params, key
    ... )
    >>> grads, diag
    (Array([ 4., 32.], dtype=float32), Array([12., 48.], dtype=float32))

    ```
    """
    _check(num_samples, distribution, hvp_mode)
    f, x = in_real(loss if has_aux else lambda p: (loss(p), None), params)
    x = local(x, axis_name)

    def value_and_grad(x):
        (value, aux), grads = jax.value_and_grad(f, has_aux=True)(x)
        return (value, grads), aux

    with _context(hvp_mode):
        if hvp_mode == "fwd_over_rev" and num_samples == 1:
            # One pass; a linearization would write down what it keeps for others.
            z = local(_draw(key, x, distribution), axis_name)
            found = jax.jvp(value_and_grad, (x,), (z,), has_aux=True)
            (value, grads), (_, q), aux = found
            diag = _estimate(z, q, absolute, axis_name)
        else:
            if hvp_mode == "fwd_over_rev":
                (value, grads), push, aux = jax.linearize(
                    value_and_grad, x, has_aux=True
                )
                product = lambda z: push(z)[1]
            else:
                (value, grads), aux = value_and_grad(x)
                known = grads if hvp_mode == "forward_diff" else None
                product = real_hvp(lambda x: f(x)[0], x, hvp_mode, known)
            diag = _average(
                product,
                x,
                key,
                num_samples=num_samples,
                distribution=distribution,
                absolute=absolute,
                axis_name=axis_name,
            )
    diag = from_real(diag, _wide_like(params))
    value, grads = mean_over((value, grads), axis_name)
    # What `jax.grad` means by the gradient in a complex leaf: the conjugate.
    grads = jax.tree.map(jnp.conj, from_real(grads, params))
    return ((value, aux) if has_aux else value), grads, diag
