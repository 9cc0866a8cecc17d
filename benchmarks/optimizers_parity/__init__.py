"""Our optimizers beside their authors' own code: same inputs, step by step.

`python -m benchmarks.optimizers_parity --official DIR`, where DIR holds clones of the
authors' repositories by their own names (`DIR/adahessian`, `DIR/Sophia`, ...). Nothing
of them is part of this project. Needs PyTorch (`pip install -e '.[bench]'`).

Every private module here has `check(official) -> dict[str, float]`, the largest
relative difference by what was compared; it raises `FileNotFoundError` if a clone is
not there.
"""
