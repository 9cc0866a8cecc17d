"""What a run reports, and to whom."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class JSONLines:
    """A callback that writes one line of JSON a report.

    After a run was cut short and resumed, lines of steps that are taken again are
    dropped, so the file reads as if nothing had happened.

    **Arguments:**

    - `path`: the file; its folder is made if it is missing.

    **Raises:** nothing of its own.

    **Cost:** a line, flushed to the disk, a report.

    **Gradients:** none.

    **Precision:** numbers are written so that they read back the same.

    **Reference:** none.

    **Example:**

    ```python
    >>> import tempfile, pathlib
    >>> import pathax as px
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> write = px.training.JSONLines(path)
    >>> write(1, {"loss": 0.5})
    >>> path.read_text()
    '{"step": 1, "loss": 0.5}\\n'

    ```
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one report."""
        line = json.dumps({"step": step, **plain(metrics)})
        with self.path.open("a") as file:
            file.write(line + "\n")

    def resume(self, step: int) -> None:
        """Drop what was written of later steps, and a line that was cut short."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] > step:
                break
            kept.append(line + "\n")
        partial = self.path.with_suffix(self.path.suffix + ".partial")
        partial.write_text("".join(kept))
        os.replace(partial, self.path)


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain numbers and lists; what is not finite becomes text."""

    def one(value: Any) -> Any:
        if isinstance(value, str | bool | int):
            return value
        array = np.asarray(value)
        if array.ndim:
            return [one(x) for x in array.tolist()]
        number = array.item()
        if isinstance(number, float) and not math.isfinite(number):
            return str(number)
        return number

    return {name: one(value) for name, value in metrics.items()}


class EarlyStopping:
    """Ends a run once a metric has stopped getting better.

    **Arguments:**

    - `metric`: its name, among what is reported: `"loss"`, or what `evaluate` returns.
    - `patience`: how many reports in a row may be no better than the best.
    - `min_delta`: by how much a report must beat the best to count as better.
    - `mode`: `"min"` or `"max"`, which way is better.

    **Raises:** `ValueError` for another mode or a patience below one.

    **Cost:** none.

    **Gradients:** none.

    **Precision:** none.

    **Reference:** none.

    **Example:**

    ```python
    >>> import pathax as px
    >>> stop = px.training.EarlyStopping("loss", patience=2)
    >>> [stop.update({"loss": x}) for x in (3.0, 2.0, 2.5, 2.1)]
    [False, False, False, True]

    ```
    """

    def __init__(
        self,
        metric: str = "loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "min",
    ):
        if mode not in ("min", "max"):
            raise ValueError(f'`mode` must be "min" or "max"; got {mode!r}.')
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1; got {patience}.")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.sign = 1.0 if mode == "min" else -1.0
        self.best, self.waited = math.inf, 0

    def update(self, metrics: Mapping[str, Any]) -> bool:
        """Take note of a report; whether to stop. Reports without the metric pass."""
        if self.metric not in metrics:
            return False
        value = self.sign * float(metrics[self.metric])
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.best = math.inf if state["best"] is None else state["best"]
        self.waited = state["waited"]
