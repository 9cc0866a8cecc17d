"""Data sets on disk: marched once, in shards, and read without loading them."""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._grid import Grid, scaled
from .._steppers import stepper
from ._settings import Setting


_LABEL = "setting.json"
_PART = ".part"  # of shards that are being written


class Dataset:
    """Trajectories on disk, read where they are needed.

    `data[i]` is one trajectory `(frames, *grid)`, `data[i:j]` and `data[indices]` are
    several; they are copies in memory of those alone.

    **Arguments:**

    - `folder`: that [`pathax.operators.data.generate`][] filled.

    **Raises:** `FileNotFoundError` where no data set is; `ValueError` for one that
    isn't complete, which `generate` completes.

    **Cost:** files are mapped into memory: opening reads their heads alone, and a
    trajectory its own bytes.

    **Gradients:** none.

    **Precision:** fields come as they are stored.

    **Reference:** none.

    **Example:**

    ```python
    >>> import dataclasses, tempfile
    >>> import pathax as px
    >>> small = px.operators.Grid((16, 16), (1.0, 1.0))
    >>> setting = dataclasses.replace(
    ...     px.operators.data.setting("forced"),
    ...     **dict(grid=small, stored=small, count=3, frames=4, warm_up=0.0, dt=0.1),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = px.operators.data.generate(folder, setting)
    ...     print(len(data), data[1:].shape, data.times.round(1))
    3 (2, 4, 16, 16) [0.2 0.4 0.6 0.8]

    ```
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.label: dict[str, Any] = json.loads((self.folder / _LABEL).read_text())
        missing = [p.name for p in _shards(self.folder, self.label) if not p.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {_shard_count(self.label)} shards are missing, "
                f"{missing[0]} first: call `generate` again with the same arguments, "
                "which goes on from there."
            )
        paths = _shards(self.folder, self.label)
        self._shards = [np.load(path, mmap_mode="r") for path in paths]

    @property
    def grid(self) -> Grid:
        """Of the stored fields."""
        return Grid(*map(tuple, self.label["stored"]))

    @property
    def times(self) -> np.ndarray:
        """Of the frames, from the initial field on."""
        j = np.arange(1, self.label["frames"] + 1)
        return self.label["warm_up"] + self.label["spacing"] * j

    def __len__(self) -> int:
        return self.label["count"]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        rows = np.asarray(index)
        if rows.dtype.kind not in "iu":
            raise TypeError(f"an index is made of integers; got {rows.dtype.name}.")
        if rows.size and not (-len(self) <= rows.min() <= rows.max() < len(self)):
            raise IndexError(f"there are {len(self)} trajectories; got {index}.")
        flat = (rows % len(self)).reshape(-1)
        size = self.label["shard"]
        shape = (*rows.shape, *self._shards[0].shape[1:])
        out = np.empty((flat.size, *shape[rows.ndim :]), self._shards[0].dtype)
        for at, row in enumerate(flat):
            out[at] = self._shards[row // size][row % size]
        return out.reshape(shape)

    def pairs(
        self, inputs: int, outputs: int, start: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of all trajectories, frames before and after: what a model maps to what.

        `inputs` frames from `start` on, and the `outputs` frames that follow them.
        """
        if min(inputs, outputs) < 1 or not 0 <= start <= (
            self.label["frames"] - inputs - outputs
        ):
            raise ValueError(
                f"there are {self.label['frames']} frames; got `start={start}`, "
                f"`inputs={inputs}` and `outputs={outputs}`."
            )
        middle, end = start + inputs, start + inputs + outputs
        before = np.concatenate([shard[:, start:middle] for shard in self._shards])
        after = np.concatenate([shard[:, middle:end] for shard in self._shards])
        return before, after


def generate(
    folder: str | os.PathLike,
    setting: Setting,
    *,
    seed: int = 0,
    shard: int = 32,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Make a data set, or what is missing of it.

    A trajectory depends on the setting, the seed and its number alone. Shards appear
    whole or not at all, so a call after a kill makes those that are missing and leaves
    the others as they are.

    **Arguments:**

    - `folder`: where; made if it doesn't exist.
    - `setting`: what; see [`pathax.operators.data.setting`][].
    - `seed`: of the initial fields.
    - `shard`: trajectories a file.
    - `batch`: trajectories marched at once.
    - `progress`: called after each shard with how many there are and will be.

    **Returns:** the [`pathax.operators.data.Dataset`][].

    **Raises:** `ValueError` if the folder holds a data set of another setting or seed;
    for float64 without JAX's 64-bit numbers; for numbers that don't fit.

    **Cost:** the steps of all trajectories; in memory, one batch and one frame of it.

    **Example:** that of [`pathax.operators.data.Dataset`][].
    """
    _check(setting, shard, batch)
    folder = Path(folder)
    label = _label(setting, seed, shard)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LABEL
    if not path.exists():
        _write_text(path, json.dumps(label, indent=1))
    elif (found := json.loads(path.read_text())) != label:
        other = [key for key in label if found.get(key) != label[key]]
        raise ValueError(
            f"{path.name} is of another data set, with another "
            f"{', '.join(other)}: choose another folder."
        )
    files = _shards(folder, label)
    for index, file in enumerate(files):
        if not file.exists():
            first = index * shard
            rows = range(first, min(first + shard, setting.count))
            _write_shard(file, setting, seed, rows, batch)
        if progress is not None:
            progress(index + 1, len(files))
    return Dataset(folder)


def _check(setting: Setting, shard: int, batch: int) -> None:
    numbers = (setting.count, setting.frames, shard, batch)
    if min(numbers) < 1 or setting.warm_up < 0 or min(setting.spacing, setting.dt) <= 0:
        raise ValueError(
            "counts, the spacing and `dt` must be positive, and `warm_up` not "
            f"negative; got {setting} with shard={shard}, batch={batch}."
        )
    if setting.dtype not in ("float32", "float64"):
        raise ValueError(f'`dtype` is "float32" or "float64"; got {setting.dtype!r}.')
    if setting.dtype == "float64" and jnp.result_type(float) != np.float64:
        raise ValueError(
            "float64 fields need JAX's 64-bit numbers. Write, before anything else: "
            '`jax.config.update("jax_enable_x64", True)`.'
        )


# What makes a data set, as JSON -----------------------------------------------------


def _label(setting: Setting, seed: int, shard: int) -> dict[str, Any]:
    label = {
        "name": setting.name,
        "seed": seed,
        "count": setting.count,
        "shard": shard,
        "frames": setting.frames,
        "spacing": setting.spacing,
        "warm_up": setting.warm_up,
        "grid": [list(setting.grid.shape), list(setting.grid.lengths)],
        "stored": [list(setting.stored.shape), list(setting.stored.lengths)],
        "equation": _equation(setting.equation),
        "initial": _function(setting.initial),
        "dt": setting.dt,
        "method": setting.method,
        "dtype": setting.dtype,
        "marched_in": jnp.result_type(float).name,
    }
    return json.loads(json.dumps(label))


def _equation(equation: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(equation)
    named = {jax.tree_util.keystr(path): _leaf(leaf) for path, leaf in leaves}
    return {"class": type(equation).__qualname__, **named}


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, (jax.Array, np.ndarray)) and leaf.ndim:
        digest = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:16]
        return f"{leaf.dtype.name}{list(leaf.shape)} {digest}"
    return repr(leaf.item() if isinstance(leaf, (jax.Array, np.ndarray)) else leaf)


def _function(function: Any) -> str:
    if isinstance(function, functools.partial):
        options = (f"{k}={v!r}" for k, v in sorted(function.keywords.items()))
        inside = ", ".join([*map(repr, function.args), *options])
        return f"{_function(function.func)}({inside})"
    return getattr(function, "__qualname__", type(function).__qualname__)


def _shard_count(label: dict[str, Any]) -> int:
    return math.ceil(label["count"] / label["shard"])


def _shards(folder: Path, label: dict[str, Any]) -> list[Path]:
    return [folder / f"shard-{i:05d}.npy" for i in range(_shard_count(label))]


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + _PART)
    part.write_text(text)
    os.replace(part, path)


# Marching ---------------------------------------------------------------------------


def _write_shard(
    file: Path, setting: Setting, seed: int, rows: range, batch: int
) -> None:
    """All trajectories of a shard; the file appears when it is whole."""
    part = file.with_name(file.name + _PART)
    shape = (len(rows), setting.frames, *setting.stored.shape)
    out = np.lib.format.open_memmap(part, "w+", np.dtype(setting.dtype), shape)
    equation = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf,
        setting.equation,
    )
    count = max(math.ceil(setting.spacing / setting.dt - 1e-9), 1)
    step = setting.spacing / count
    for first in range(0, len(rows), batch):
        size = min(batch, len(rows) - first)
        # The last batch is filled up, so that all have one shape and compile once.
        index = np.minimum(np.arange(first, first + batch), len(rows) - 1) + rows[0]
        w = _start(setting.initial, setting.grid, seed, jnp.asarray(index))
        if setting.warm_up:
            warm = max(math.ceil(setting.warm_up / step - 1e-9), 1)
            length = setting.warm_up / warm
            length = step if math.isclose(length, step, rel_tol=1e-9) else length
            w = _advance(equation, setting, w, length, jnp.int32(warm))
        for frame in range(setting.frames):
            w = _advance(equation, setting, w, step, jnp.int32(count))
            fields = np.asarray(_kept(setting.grid, setting.stored, w))[:size]
            if not np.isfinite(fields).all():
                part.unlink()
                raise ValueError(
                    f"a trajectory of {rows} is no longer finite at frame {frame}: "
                    f"take a smaller `dt` than {setting.dt}."
                )
            out[first : first + size, frame] = fields.astype(setting.dtype)
    out.flush()
    del out
    os.replace(part, file)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(initial: Any, grid: Grid, seed: int, index: Array) -> Array:
    def one(i):
        field = initial(jax.random.fold_in(jax.random.key(seed), i), grid)
        return scaled(grid.rfft(field), grid.mask("2/3"))

    return jax.vmap(one)(index)


def _advance(
    equation: Any, setting: Setting, w: Array, dt: float, count: Array
) -> Array:
    return _march(equation, setting.grid, setting.method, dt, w, count)


@eqx.filter_jit
def _march(equation, grid, method, dt, w, count):
    """So many steps, a traced number: frames and warm-up share one compilation."""
    step = jax.vmap(stepper(equation, grid, dt, method))
    return jax.lax.fori_loop(jnp.int32(0), count, lambda _, w: step(w), w)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _kept(grid: Grid, stored: Grid, w: Array) -> Array:
    return jax.vmap(lambda w: stored.irfft(grid.resample(w, stored)))(w)
