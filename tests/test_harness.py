"""The fixtures do what they promise: a guard that cannot fail guards nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_precision_sets_the_default_dtype(precision):
    assert jnp.zeros(()).dtype == precision.dtype
    assert jax.random.normal(jax.random.key(0)).dtype == precision.dtype
    assert precision.eps == np.finfo(precision.dtype).eps
    assert precision.tolerance(8) == 8 * precision.eps


def test_suite_default_is_float32():
    assert jnp.zeros(()).dtype == jnp.float32


def test_strict_promotion():
    with pytest.raises(ValueError, match="dtype promotion"):
        jnp.zeros(2, jnp.float32) + jnp.zeros(2, jnp.float16)
    with pytest.raises(ValueError, match="could not be broadcast"):
        jnp.zeros((2, 2)) + jnp.zeros(2)


def test_no_retrace_accepts_new_values(no_retrace):
    results = no_retrace(lambda x: 2 * x, (jnp.ones(3),), (jnp.zeros(3),))
    assert [float(r[0]) for r in results] == [2.0, 0.0]


def test_no_retrace_rejects_new_shapes(no_retrace):
    with pytest.raises(RuntimeError, match="trace"):
        no_retrace(lambda x: 2 * x, (jnp.ones(3),), (jnp.ones(4),))


def test_devices_is_a_mesh_of_eight(devices):
    assert devices.size == 8
    assert devices.axis_names == ("devices",)


def test_keys_differ_and_repeat(key, getkey, seed, rng):
    bits = [jax.random.bits(k).item() for k in (key, getkey(), getkey())]
    assert len(set(bits)) == 3
    assert bits[0] == jax.random.bits(jax.random.key(seed)).item()
    assert rng.random() == np.random.default_rng(seed).random()
