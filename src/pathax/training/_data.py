"""Where batches come from, and how to come back to the same place.

A source hands out one batch after another and can tell its position, so that a resumed
run sees the batches that an uninterrupted one would have seen.
"""

import abc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


class AbstractSource(abc.ABC):
    """A source of batches that can be left and come back to."""

    @abc.abstractmethod
    def next(self) -> PyTree:
        """The next batch; `StopIteration` where there are no more."""

    @abc.abstractmethod
    def position(self) -> Any:
        """Where the source is, as plain values that JSON can hold."""

    @abc.abstractmethod
    def seek(self, position: Any) -> None:
        """Go where `position` was."""


class Batches(AbstractSource):
    """Batches of arrays that share their leading axis.

    Each epoch visits the examples in an order that depends on the seed and on the
    number of the epoch alone, so any batch can be found again from its number.

    **Arguments:**

    - `arrays`: a tree of arrays `(n, ...)`.
    - `batch_size`: examples a batch, at most `n`.
    - `seed`: of the orders.
    - `shuffle`: whether to change the order at all.
    - `epochs`: after how many to end; never by default.

    The last `n % batch_size` examples of an epoch's order are left out of that epoch,
    so that all batches have one shape.

    **Raises:** `ValueError` for arrays of different lengths or too large a batch.

    **Cost:** one copy of a batch a step, on the host.

    **Gradients:** none.

    **Precision:** arrays are handed out as they are.

    **Reference:** none.

    **Example:**

    ```python
    >>> import numpy as np
    >>> import pathax as px
    >>> data = px.training.Batches(np.arange(6.0), 2, shuffle=False)
    >>> data.next(), data.next()
    (array([0., 1.]), array([2., 3.]))
    >>> data.position()
    2

    ```
    """

    def __init__(
        self,
        arrays: PyTree,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
    ):
        leaves = [np.asarray(x) for x in jax.tree.leaves(arrays)]
        if not leaves or any(x.ndim == 0 for x in leaves):
            raise ValueError(
                "`Batches` needs arrays with a leading axis of examples; got "
                f"{jax.tree.map(np.shape, arrays)}."
            )
        lengths = {len(x) for x in leaves}
        if len(lengths) > 1:
            raise ValueError(
                "All arrays must have the same number of examples along their leading "
                f"axis; got {sorted(lengths)}."
            )
        (self.count,) = lengths
        if not 1 <= batch_size <= self.count:
            raise ValueError(
                f"`batch_size` must be between 1 and the number of examples, "
                f"{self.count}; got {batch_size}."
            )
        self.arrays = jax.tree.map(np.asarray, arrays)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.per_epoch = self.count // batch_size
        self.end = math.inf if epochs is None else epochs * self.per_epoch
        self._step = 0
        self._order: tuple[int, np.ndarray] = (-1, np.arange(self.count))

    def next(self) -> PyTree:
        """The next batch, a tree of arrays `(batch_size, ...)`."""
        if self._step >= self.end:
            raise StopIteration
        epoch, place = divmod(self._step, self.per_epoch)
        rows = self._rows(epoch)[place * self.batch_size :][: self.batch_size]
        self._step += 1
        return jax.tree.map(lambda x: x[rows], self.arrays)

    def position(self) -> int:
        """How many batches have been handed out."""
        return self._step

    def seek(self, position: int) -> None:
        """Go to the batch of that number."""
        self._step = int(position)

    def _rows(self, epoch: int) -> np.ndarray:
        if self.shuffle and self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, rng.permutation(self.count))
        return self._order[1]


class _Function(AbstractSource):
    """Batches made by a function of their number."""

    def __init__(self, function: Callable[[int], PyTree]):
        self.function, self._step = function, 0

    def next(self) -> PyTree:
        batch = self.function(self._step)
        self._step += 1
        return batch

    def position(self) -> int:
        return self._step

    def seek(self, position: int) -> None:
        self._step = int(position)


class _Repeated(AbstractSource):
    """Batches of something that can be iterated over, again and again if it allows.

    It is come back to by skipping what has been seen, unless its iterator can save and
    restore its own state, as those of Grain can.
    """

    def __init__(self, iterable: Iterable[PyTree]):
        self.iterable, self._step = iterable, 0
        self._iterator: Iterator[PyTree] = iter(iterable)
        self._fresh = True
        self.stateful = hasattr(self._iterator, "get_state") and hasattr(
            self._iterator, "set_state"
        )

    def next(self) -> PyTree:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._fresh or iter(self.iterable) is self._iterator:
                raise  # empty, or an iterator, which has one pass
            self._iterator, self._fresh = iter(self.iterable), True
            return self.next()
        self._fresh = False
        self._step += 1
        return batch

    def position(self) -> Any:
        if not self.stateful:
            return self._step
        state = self._iterator.get_state()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(state, bytes):
            return {"step": self._step, "bytes": state.hex()}
        return {"step": self._step, "state": state}

    def seek(self, position: Any) -> None:
        if not isinstance(position, dict):
            while self._step < position:
                self.next()
            return
        state = position.get("state")
        if state is None:
            state = bytes.fromhex(position["bytes"])
        self._iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._step, self._fresh = position["step"], False


def as_source(data: Any) -> AbstractSource:
    """A source from what a user hands to `fit`."""
    if isinstance(data, AbstractSource):
        return data
    if callable(data):
        return _Function(data)
    if isinstance(data, Iterable) and not isinstance(data, dict | tuple | str):
        if hasattr(data, "shape"):
            raise TypeError(_WHAT_DATA.format(type(data).__name__))
        return _Repeated(data)
    raise TypeError(_WHAT_DATA.format(type(data).__name__))


_WHAT_DATA = (
    "`data` must be `pathax.training.Batches(arrays, batch_size)`, a function from the "
    "number of a step to a batch, or an iterable of batches; got {}. For arrays write "
    "`data=pathax.training.Batches((x, y), batch_size=128)`."
)
