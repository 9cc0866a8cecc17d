"""Data sets of marched fields: published settings, made once and kept in shards."""

from ._settings import Setting as Setting, setting as setting
from ._store import Dataset as Dataset, generate as generate


__all__ = ["Dataset", "Setting", "generate", "setting"]
