"""Optimizers as plain Optax transformations."""

__all__: list[str] = []
