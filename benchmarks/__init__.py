"""Benchmarks of pathax beside its peers: one harness, one folder a subject.

`python -m benchmarks` lists the subjects, `python -m benchmarks <subject>` runs one,
and `python -m benchmarks.report` draws tables and plots from the stored results. See
`benchmarks/README.md`.
"""
