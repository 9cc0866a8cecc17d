"""What several files of this folder share."""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types, for tests that are about them alone."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time check of annotations, as users run the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
