"""A progress bar, if there is a terminal (or one is asked for) and tqdm."""

import sys
from typing import Any

import jax
import numpy as np

from ._statistics import Totals


class Bar:
    """Shows paths done, and the largest relative standard error."""

    def __init__(self, done: int, total: int, progress: bool | None):
        self.bar: Any = None
        show = sys.stderr.isatty() if progress is None else progress
        if not show or jax.process_index() != 0:
            return
        try:
            from tqdm import tqdm
        except ImportError:
            if progress:
                raise ImportError(
                    "A progress bar needs tqdm; write `pip install 'pathax[train]'`."
                ) from None
            return
        self.bar = tqdm(initial=done, total=total, unit="path", unit_scale=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, done: int, totals: Totals) -> None:
        """So many paths in all."""
        if self.bar is None:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = np.max(totals.standard_error / np.abs(totals.mean), initial=0)
        self.bar.set_postfix_str(f"relative error {worst:.1e}", refresh=False)
        self.bar.update(done - self.bar.n)
