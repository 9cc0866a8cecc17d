"""Sources of batches: what they hand out, and that they come back to their place."""

import itertools

import numpy as np
import pytest

from pathax.training import Batches
from pathax.training._data import as_source


def _take(source, count):
    return [source.next() for _ in range(count)]


def test_an_epoch_visits_every_example_once(seed):
    x = np.arange(12)
    batches = Batches((x, -x), 4, seed=seed)
    for _ in range(3):
        epoch = _take(batches, 3)
        assert sorted(np.concatenate([b[0] for b in epoch])) == list(x)
        assert all(np.array_equal(b[0], -b[1]) for b in epoch)


def test_epochs_differ_and_seeds_too():
    orders = [
        np.concatenate(_take(Batches(np.arange(50), 50, seed=seed), 2))
        for seed in (0, 1)
    ]
    halves = [half for order in orders for half in np.split(order, 2)]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(halves, 2))


def test_what_does_not_fill_a_batch_is_left_out():
    batches = Batches(np.arange(5), 2, shuffle=False, epochs=2)
    assert [b.tolist() for b in _take(batches, 4)] == [[0, 1], [2, 3]] * 2
    with pytest.raises(StopIteration):
        batches.next()


class _Stateful:
    """What an iterator of Grain looks like."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return self.place - 1

    def get_state(self):
        return str(self.place).encode()

    def set_state(self, state):
        self.place = int(state)


SOURCES = {
    "arrays": lambda: Batches(np.arange(7), 2, seed=3),
    "function": lambda: as_source(lambda i: i**2),
    "list": lambda: as_source([1, 2, 3]),
    "generator": lambda: as_source(i for i in range(99)),
    "stateful": lambda: as_source(_Stateful()),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_source_comes_back_to_its_place(name):
    first, second = SOURCES[name](), SOURCES[name]()
    _take(first, 5)
    second.seek(first.position())
    assert np.array_equal(_take(first, 6), _take(second, 6))
    assert first.position() == second.position()


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_grain_comes_back_to_its_place(kind):
    """Both of its interfaces, shuffled and repeated."""
    grain = pytest.importorskip("grain")
    x = np.arange(7)

    def source():
        if kind == "dataset":
            shuffled = grain.MapDataset.source(x).seed(1).shuffle().repeat()
            return as_source(shuffled.to_iter_dataset().batch(2))
        sampler = grain.samplers.IndexSampler(
            7, shard_options=grain.sharding.NoSharding(), shuffle=True, seed=0
        )
        operations = [grain.transforms.Batch(2)]
        return as_source(
            grain.DataLoader(data_source=x, sampler=sampler, operations=operations)
        )

    first, second = source(), source()
    _take(first, 5)
    second.seek(first.position())
    assert np.array_equal(_take(first, 6), _take(second, 6))


def test_a_list_starts_again_and_a_generator_ends():
    assert _take(as_source([1, 2]), 5) == [1, 2, 1, 2, 1]
    source = as_source(i for i in range(2))
    _take(source, 2)
    with pytest.raises(StopIteration):
        source.next()
    with pytest.raises(StopIteration):
        as_source([]).next()


@pytest.mark.parametrize(
    ("arrays", "size", "message"),
    [
        ((np.zeros(3), np.zeros(4)), 2, r"same number of examples.*\[3, 4\]"),
        (np.zeros(()), 1, "leading axis of examples"),
        ((), 1, "leading axis of examples"),
        (np.zeros(3), 4, "between 1 and the number of examples, 3; got 4"),
        (np.zeros(3), 0, "between 1 and"),
    ],
)
def test_bad_arrays(arrays, size, message):
    with pytest.raises(ValueError, match=message):
        Batches(arrays, size)


@pytest.mark.parametrize("data", [np.zeros(3), (np.zeros(3),), {"x": 1}, 5, "text"])
def test_what_is_no_source(data):
    with pytest.raises(TypeError, match="For arrays write"):
        as_source(data)
