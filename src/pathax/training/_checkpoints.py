"""Checkpoints that are whole or not there, and that hold all a run goes on from."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "Checkpoints need orbax-checkpoint; write `pip install 'pathax[train]'`."
        ) from error
    return ocp


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(tree: PyTree) -> PyTree:
    """Random keys as the numbers they are made of."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _keyed(tree: PyTree, like: PyTree) -> PyTree:
    def one(x: Array, old: Any) -> Array:
        if not _is_key(old):
            return x
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))

    return jax.tree.map(one, tree, like)


class Checkpoints:
    """A folder of checkpoints, each whole or not there at all.

    A checkpoint is written aside and renamed when it is complete, so a run that is
    killed at any moment leaves the last complete one. Arrays keep their bits, dtypes
    and shardings.

    **Arguments:**

    - `path`: the folder.
    - `every`: steps between checkpoints; one is written at the end of a run as well.
    - `keep`: how many of the latest to keep.

    **Raises:** `ImportError` without orbax-checkpoint, which does the work.

    **Cost:** the size of the state on disk, and the time to write it.

    **Gradients:** none.

    **Precision:** exact.

    **Reference:** Orbax, orbax.readthedocs.io.

    **Example:**

    ```python
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> import pathax as px
    >>> folder = px.training.Checkpoints(tempfile.mkdtemp(), every=10)
    >>> folder.save(10, {"w": jnp.ones(2)}, {"data": 10})
    >>> folder.latest()
    10
    >>> state, notes = folder.restore({"w": jnp.zeros(2)})
    >>> state["w"], notes["data"]
    (Array([1., 1.], dtype=float32), 10)

    ```
    """

    def __init__(self, path: str | os.PathLike, *, every: int = 1000, keep: int = 2):
        if every < 1 or keep < 1:
            raise ValueError(
                f"`every` and `keep` must be at least 1; got {every} and {keep}."
            )
        self.path, self.every, self.keep = Path(path).absolute(), every, keep
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def latest(self) -> int | None:
        """The step of the last complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, notes: dict[str, Any]) -> None:
        """Write a checkpoint: a tree of arrays, and notes that JSON can hold."""
        args = _orbax().args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(_raw(state)), notes=args.JsonSave(notes)
            ),
        )

    def restore(
        self, like: PyTree, step: int | None = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """The state and the notes of a checkpoint, by default the latest.

        `like` has the structure, dtypes and shardings of the state that was saved.
        """
        ocp = _orbax()
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"There is no complete checkpoint in {self.path}.")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _raw(like))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), notes=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"The checkpoint of step {step} in {self.path} holds another state "
                "than this run has: give the model and the optimizer it was written "
                "with, or another folder."
            ) from error
        return _keyed(found["state"], like), found["notes"]
