"""Reports on disk, and when to stop."""

import json
import math

import jax.numpy as jnp
import pytest

from pathax.training import EarlyStopping, JSONLines
from pathax.training._metrics import plain


def test_numbers_read_back_the_same(tmp_path):
    write = JSONLines(tmp_path / "log.jsonl")
    metrics = {"loss": jnp.float32(0.1), "list": jnp.arange(2), "name": "run"}
    write(3, metrics)
    record = json.loads(write.path.read_text())
    assert record == {"step": 3, "loss": float(jnp.float32(0.1)), "list": [0, 1]} | {
        "name": "run"
    }


def test_what_is_not_finite_is_still_json():
    found = plain({"a": jnp.float32(math.nan), "b": [math.inf, 1.0]})
    assert json.loads(json.dumps(found)) == {"a": "nan", "b": ["inf", 1.0]}


def test_a_resumed_file_has_no_line_twice(tmp_path):
    write = JSONLines(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        write(step, {"loss": step})
    with write.path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    write.resume(2)
    write(3, {"loss": 30})
    lines = [json.loads(line) for line in write.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


def test_the_better_way_may_be_up():
    stop = EarlyStopping("accuracy", patience=2, min_delta=0.1, mode="max")
    values = (0.5, 0.7, 0.75, 0.9, 0.95, 0.91)
    assert [stop.update({"accuracy": v}) for v in values] == [False] * 5 + [True]
    assert not EarlyStopping("accuracy", patience=1).update({"loss": 1.0})


def test_waiting_goes_on_after_a_resume():
    first, second = EarlyStopping(patience=2), EarlyStopping(patience=2)
    first.restore(json.loads(json.dumps(first.state())))  # before any report
    for value in (1.0, 2.0):
        first.update({"loss": value})
    second.restore(json.loads(json.dumps(first.state())))
    assert second.update({"loss": 3.0})


def test_bad_rules():
    with pytest.raises(ValueError, match='"min" or "max"'):
        EarlyStopping(mode="least")
    with pytest.raises(ValueError, match="at least 1"):
        EarlyStopping(patience=0)
