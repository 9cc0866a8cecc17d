"""Other libraries' models and rules run under JAX's own defaults."""

import jax
import pytest


@pytest.fixture(autouse=True)
def as_users_run_it():
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):
        yield
