"""What several files of this folder share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types, for tests that are about them alone."""
    with jax.enable_x64(True):
        yield
