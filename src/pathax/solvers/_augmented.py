"""A state with a passenger: more components, which the rest does not depend on."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class Augmented(eqx.Module):
    """A state `y` and what travels with it."""

    y: PyTree
    extra: PyTree


def is_augmented(x: Any) -> bool:
    """Whether this node of a tree is a state with a passenger."""
    return isinstance(x, Augmented)


def without_extra(tree: PyTree) -> PyTree:
    """The tree with each augmented state in it replaced by the state alone."""
    return jax.tree.map(
        lambda x: x.y if is_augmented(x) else x, tree, is_leaf=is_augmented
    )


def only_extra(tree: PyTree) -> PyTree:
    """The passengers of a tree that consists of augmented states."""
    return jax.tree.map(lambda x: x.extra, tree, is_leaf=is_augmented)


class AugmentedTerm(dfx.AbstractTerm):
    """A term that also moves the passenger: `d extra = rate(t, y, args) dcontrol`.

    Without `rate` the passenger stays where it is.
    """

    term: dfx.AbstractTerm
    rate: Any = None

    def vf(self, t: Any, y: Any, args: PyTree) -> Any:
        rate = zeros_like(y.extra)
        if self.rate is not None:
            rate = self.rate(t, y.y, args)
        return Augmented(self.term.vf(t, y.y, args), rate)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        return self.term.contr(t0, t1, **kwargs)

    def prod(self, vf: Any, control: Any) -> Any:
        if self.rate is None:
            extra = vf.extra
        else:
            extra = jax.tree.map(lambda x: x * control, vf.extra)
        return Augmented(self.term.prod(vf.y, control), extra)

    def vf_prod(self, t: Any, y: Any, args: PyTree, control: Any) -> Any:
        if self.rate is not None:
            return self.prod(self.vf(t, y, args), control)
        y_prod = self.term.vf_prod(t, y.y, args, control)
        return Augmented(y_prod, zeros_like(y.extra))

    def is_vf_expensive(self, t0: Any, t1: Any, y: Any, args: PyTree) -> bool:
        return self.term.is_vf_expensive(t0, t1, y.y, args)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros of the same shapes and dtypes."""
    return jax.tree.map(jnp.zeros_like, tree)


def is_single(term: Any) -> bool:
    """Whether this node of a tree of terms is one term, not several."""
    return isinstance(term, dfx.AbstractTerm) and not isinstance(term, dfx.MultiTerm)
