"""A file that holds where a run was, whole or not there."""

import os
from pathlib import Path

import jax
import numpy as np


class Checkpoint:
    """The state of a run as one file, replaced in one step."""

    def __init__(self, path: str | os.PathLike | None, identity: dict[str, str]):
        self.path = None if path is None else Path(path)
        self.identity = identity

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved last, or `None`; raises if it is of another run."""
        if self.path is None or not self.path.exists():
            return None
        with np.load(self.path) as file:
            found = {name: file[name] for name in file.files}
        for name, value in self.identity.items():
            stored = str(found.pop(f"identity {name}", "nothing"))
            if stored != value:
                raise ValueError(
                    f"The checkpoint {self.path.name} is of another run: its {name} is "
                    f"{stored}, this one's is {value}. Give another file, or remove it."
                )
        return found

    def save(self, state: dict[str, np.ndarray]) -> None:
        """Write aside, flush to the disk, and rename."""
        if self.path is None or jax.process_index() != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        named = {f"identity {k}": np.asarray(v) for k, v in self.identity.items()}
        with open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, **state, **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)
