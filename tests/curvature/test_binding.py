"""Functions of all parameters under masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathax import curvature


PARAMS = {
    "a": jnp.asarray([1.0, 2.0]),
    "b": {"c": jnp.asarray(3.0), "d": jnp.asarray([4.0])},
    "none": None,
}


def _loss(p, scale=1.0):
    return scale * jnp.sum(p["a"] ** 2 * p["b"]["d"]) * p["b"]["c"]


def _masked(*names):
    return {k: optax.MaskedNode() if k in names else v for k, v in PARAMS.items()}


@pytest.mark.parametrize("names", [(), ("a",), ("b",), ("a", "b")])
def test_masked_parts_are_filled(names):
    """Leaves and whole subtrees; further arguments pass."""
    bound = curvature.bind(_loss, PARAMS)
    assert float(bound(_masked(*names))) == float(_loss(PARAMS))
    assert float(bound(_masked(*names), scale=2.0)) == 2 * float(_loss(PARAMS))
    inside = {**PARAMS, "b": {"c": optax.MaskedNode(), "d": PARAMS["b"]["d"]}}
    assert float(bound(inside)) == float(_loss(PARAMS))


def test_derivatives_are_those_of_the_rest():
    grads = jax.grad(curvature.bind(_loss, PARAMS))(_masked("b"))
    assert isinstance(grads["b"], optax.MaskedNode)
    np.testing.assert_array_equal(grads["a"], jax.grad(_loss)(PARAMS)["a"])


def test_without_it_masks_break_the_function():
    with pytest.raises(TypeError):
        _loss(_masked("b"))
