"""Data sets: seeds, shards, kills, what is read back."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pathax as px


ops = px.operators
data = ops.data
BOX = ops.Grid((16, 16), (1.0, 1.0))
SMALL = dataclasses.replace(
    data.setting("forced"),
    grid=BOX,
    stored=ops.Grid((12, 12), (1.0, 1.0)),
    count=5,
    frames=3,
    spacing=0.2,
    warm_up=0.4,
    dt=0.1,
)
MAKE = functools.partial(data.generate, setting=SMALL, shard=2, batch=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return MAKE(tmp_path_factory.mktemp("whole"))


def test_trajectories_are_those_of_the_steppers(made):
    assert len(made) == 5
    assert made.grid == SMALL.stored
    np.testing.assert_allclose(made.times, [0.6, 0.8, 1.0])
    key = jax.random.fold_in(jax.random.key(0), 3)
    frames = ops.integrate(
        SMALL.equation,
        BOX,
        ops.gaussian_field(key, BOX),
        made.times,
        dt=0.1,
        method="imex_rk4_cn",
    )
    for found, frame in zip(made[3], frames, strict=True):
        wanted = SMALL.stored.irfft(BOX.resample(BOX.rfft(frame), SMALL.stored))
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_what_is_read(made):
    every = made[:]
    assert every.shape == (5, 3, 12, 12)
    assert every.dtype == np.float32
    np.testing.assert_array_equal(made[-1], every[4])
    np.testing.assert_array_equal(made[np.array([[4], [1]])][1, 0], every[1])
    before, after = made.pairs(2, 1)
    np.testing.assert_array_equal(np.concatenate([before, after], axis=1), every)
    with pytest.raises(IndexError, match="5 trajectories"):
        made[5]
    with pytest.raises(TypeError, match="integers"):
        made[np.zeros(2)]
    with pytest.raises(ValueError, match="3 frames"):
        made.pairs(3, 1)
    again = data.Dataset(made.folder)
    np.testing.assert_array_equal(again[:], every)
    assert all(isinstance(shard, np.memmap) for shard in again._shards)


class _KilledError(Exception):
    pass


def test_a_kill_costs_one_shard_and_changes_no_bit(made, tmp_path):
    def kill(done, total):
        assert total == 3
        if done == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        MAKE(tmp_path, progress=kill)
    (tmp_path / "shard-00002.npy.part").write_bytes(b"half of a fil")
    with pytest.raises(ValueError, match="1 of 3 shards are missing"):
        data.Dataset(tmp_path)
    kept = (tmp_path / "shard-00000.npy").stat().st_mtime_ns
    resumed = MAKE(tmp_path)
    assert (tmp_path / "shard-00000.npy").stat().st_mtime_ns == kept
    np.testing.assert_array_equal(resumed[:], made[:])
    assert not list(tmp_path.glob("*.part"))


_VICTIM = """
import dataclasses, sys
import pathax as px

box = px.operators.Grid((16, 16), (1.0, 1.0))
setting = dataclasses.replace(
    px.operators.data.setting("forced"),
    grid=box,
    stored=px.operators.Grid((12, 12), (1.0, 1.0)),
    count=400, frames=3, spacing=0.2, warm_up=0.4, dt=0.1,
)
px.operators.data.generate(
    sys.argv[1], setting, shard=2, batch=2, progress=lambda *_: print("+", flush=True)
)
"""


@pytest.mark.slow
def test_a_process_killed_outright(made, tmp_path):
    """Wherever it dies, what stands under a shard's name is whole."""
    command = [sys.executable, "-c", _VICTIM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        for _ in range(3):
            victim.stdout.readline()
        victim.kill()
    whole = sorted(tmp_path.glob("shard-*.npy"))
    assert 3 <= len(whole) < 200
    for shard in whole:
        assert np.load(shard).shape == (2, 3, 12, 12)
        assert np.isfinite(np.load(shard)).all()
    np.testing.assert_allclose(np.load(whole[0]), made[:2], atol=1e-5)
    setting = dataclasses.replace(SMALL, count=400)
    before = {shard: shard.stat().st_mtime_ns for shard in whole}
    resumed = MAKE(tmp_path, setting=setting)
    assert len(resumed) == 400
    assert before == {shard: shard.stat().st_mtime_ns for shard in whole}


def test_seeds_and_shards(made, tmp_path):
    other = MAKE(tmp_path / "seed", seed=1)
    assert np.abs(other[:] - made[:]).max() > 1e-2
    larger = MAKE(tmp_path / "shard", shard=5)
    np.testing.assert_allclose(larger[:], made[:], atol=1e-5)


def test_a_folder_holds_one_data_set(made):
    with pytest.raises(ValueError, match="another seed"):
        MAKE(made.folder, seed=1)
    equation = dataclasses.replace(SMALL.equation, viscosity=2e-3)
    changed = dataclasses.replace(SMALL, equation=equation)
    with pytest.raises(ValueError, match="another equation"):
        MAKE(made.folder, setting=changed)
    label = json.loads((made.folder / "setting.json").read_text())
    assert label["initial"] == "gaussian_field"


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="64-bit"):
        MAKE(tmp_path, setting=dataclasses.replace(SMALL, dtype="float64"))
    with pytest.raises(ValueError, match="positive"):
        MAKE(tmp_path, setting=dataclasses.replace(SMALL, dt=0.0))
    with pytest.raises(ValueError, match="taylor_green"):
        data.setting("stokes")
    wild = dataclasses.replace(
        SMALL,
        initial=_wild,
        equation=ops.NavierStokes(0.0),
        dt=0.2,
    )
    with pytest.raises(ValueError, match="smaller `dt`"):
        MAKE(tmp_path, setting=wild)
    assert not list(tmp_path.glob("shard*"))


def _wild(key, grid):
    return 1e6 * ops.gaussian_field(key, grid)


PUBLISHED = {
    "forced": (1280, 256, 1.0, 0.2, 30.0, 50.0),
    "decaying": (1152, 256, 2 * np.pi, 0.055, 4.5, 10.0),
    "decaying_5000": (1152, 512, 2 * np.pi, 0.055, 4.5, 10.0),
    "kolmogorov": (1152, 256, 2 * np.pi, 0.055, 4.5, 10.0),
    "taylor_green": (10, 256, 1.0, 0.025, 4.5, 5.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    count, points, length, spacing, warm_up, end = PUBLISHED[name]
    train, test = data.setting(name), data.setting(name, "test")
    assert train.grid == test.stored == ops.Grid((points,) * 2, (length,) * 2)
    assert (train.count, train.spacing, train.warm_up) == (count, spacing, warm_up)
    np.testing.assert_allclose(train.warm_up + train.frames * train.spacing, end)
    assert train.stored.shape == (64, 64)
    assert (train.dtype, test.dtype) == ("float32", "float64")
    assert test.count == min(count, 16)


def test_forces_of_published_settings():
    """At their wavenumbers: one diagonal period, and four of the shear."""
    for name, index in (("forced", (1, 1)), ("kolmogorov", (0, 4))):
        setting = data.setting(name)
        modes = jnp.abs(setting.equation.forcing(BOX_OF[name]))
        assert np.unravel_index(jnp.argmax(modes), modes.shape) == index
        rest = modes.at[index].set(0)
        assert rest.max() < 1e-6


BOX_OF = {"forced": BOX, "kolmogorov": ops.Grid((16, 16), (2 * np.pi, 2 * np.pi))}


def test_swirls_decay_as_they_should(tmp_path):
    setting = dataclasses.replace(
        data.setting("taylor_green"),
        grid=ops.Grid((48, 48), (1.0, 1.0)),
        stored=ops.Grid((48, 48), (1.0, 1.0)),
        count=2,
        frames=2,
        warm_up=0.0,
    )
    found = data.generate(tmp_path, setting, batch=2)
    start = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(2))
    for frames, key in zip(found[:], start, strict=True):
        swirl = np.asarray(setting.initial(key, setting.grid))
        kappa = swirl.max() / 2
        decay = np.exp(-2 * 1e-3 * kappa**2 * found.times)
        wanted = decay.reshape(-1, 1, 1) * swirl[None]
        np.testing.assert_allclose(frames, wanted, atol=1e-4 * swirl.max())
