"""Brownian paths with their time integrals, from one key."""

__all__: list[str] = []
