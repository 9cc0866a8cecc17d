"""Real coordinates of parameters: a complex array is read as two real ones.

Second derivatives, probes and inner products live in real coordinates. A complex leaf
of shape `s` becomes a real one of shape `(*s, 2)`; other leaves stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _to_real(leaf: Array) -> Array:
    if not jnp.iscomplexobj(leaf):
        return leaf
    return jnp.stack([jnp.real(leaf), jnp.imag(leaf)], axis=-1)


def _to_complex(leaf: Array, like: Any) -> Array:
    if not jnp.iscomplexobj(like):
        return leaf
    real, imag = leaf[..., 0], leaf[..., 1]
    return jax.lax.complex(real, imag).astype(like.dtype)


def to_real(tree: Any) -> Any:
    """The tree with every complex leaf as a real one, with a last axis of two."""
    return jax.tree.map(_to_real, tree)


def from_real(tree: Any, like: Any) -> Any:
    """The inverse of [`to_real`][]; `like` tells which leaves were complex."""
    return jax.tree.map(_to_complex, tree, like)


def has_complex(tree: Any) -> bool:
    """Whether any leaf is complex."""
    return any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree))
