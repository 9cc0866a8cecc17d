"""Optimizers that use curvature, one method a file."""
