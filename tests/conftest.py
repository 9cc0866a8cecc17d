"""What every test relies on: devices, strictness, seeds, precision, trace counts."""

import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


# Read once, when JAX starts its backend; hence before the first import of JAX.
NUM_DEVICES = 8
_DEVICE_FLAG = "--xla_force_host_platform_device_count"
if _DEVICE_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} {_DEVICE_FLAG}={NUM_DEVICES}".strip()
    )
# Test workers share an accelerator, so none may reserve its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import equinox as eqx  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every annotation of the package is checked at run time, in the tests only. The hook
# acts on modules imported after it, so nothing above may import pathax.
install_import_hook("pathax", "beartype.beartype")

# Compilation makes the first example of a property slow, so no deadline holds.
for _name, _same in (("same", True), ("fresh", False)):
    hypothesis.settings.register_profile(
        _name, deadline=None, max_examples=50, print_blob=True, derandomize=_same
    )


# Seeds ------------------------------------------------------------------------------
#
# A test is passed or failed by the change under it, not by the luck of the day, so the
# seed is the same unless another is asked for. Each test derives its own from that and
# from its name, so a failure reproduces whichever other tests run beside it.

_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        default=os.environ.get("PATHAX_TEST_SEED", "0"),
        help="seed of the whole run, or 'fresh' (default: $PATHAX_TEST_SEED, else 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:  # a process of pytest-xdist: take the controller's seed
        seed = worker["pathax_seed"]
    else:
        given = str(config.getoption("--seed"))
        seed = secrets.randbits(31) if given == "fresh" else int(given)
    config.stash[_SEED] = seed
    fresh = config.getoption("--seed") == "fresh"
    hypothesis.settings.load_profile("fresh" if fresh else "same")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["pathax_seed"] = node.config.stash[_SEED]


def pytest_report_header(config: pytest.Config) -> str:
    return f"pathax seed: {config.stash[_SEED]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed:
        seed = item.config.stash[_SEED]
        report.sections.append(("pathax seed", f"reproduce with --seed={seed}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's own seed, from the run's seed and the test's name."""
    run = request.config.stash[_SEED]
    return zlib.crc32(f"{run}:{request.node.nodeid}".encode())


@pytest.fixture
def key(seed: int) -> jax.Array:
    """A random key, reproducible with `--seed`."""
    return jax.random.key(seed)


@pytest.fixture
def getkey(seed: int) -> Callable[[], jax.Array]:
    """A function that returns a new random key at each call."""
    stream = iter(range(2**31))
    return lambda: jax.random.fold_in(jax.random.key(~seed & 0xFFFFFFFF), next(stream))


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A NumPy generator, reproducible with `--seed`."""
    return np.random.default_rng(seed)


# Precision --------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """The floating-point type under test; JAX's default while the fixture is active."""

    dtype: np.dtype
    eps: float

    def tolerance(self, operations: float = 1.0) -> float:
        """Relative error allowed after that many rounded operations, worst case."""
        return operations * self.eps


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[Precision]:
    """Run the test once in float32, what users run, and once in float64."""
    dtype = np.dtype(request.param)
    with jax.enable_x64(dtype == np.float64):
        yield Precision(dtype=dtype, eps=float(jnp.finfo(dtype).eps))


# Compilation and devices ------------------------------------------------------------


@pytest.fixture
def no_retrace() -> Callable:
    """Check that calls which differ in values alone compile once.

    `no_retrace(fn, args1, args2, ...)` compiles `fn`, calls it with every tuple of
    arguments, fails if it was traced a second time, and returns the results.
    """

    def check(fn: Callable, *calls: tuple) -> list:
        counted = eqx.debug.assert_max_traces(max_traces=1)(fn)
        compiled = eqx.filter_jit(counted)
        results = [compiled(*args) for args in calls]
        assert eqx.debug.get_num_traces(counted) == 1
        return results

    return check


@pytest.fixture(scope="session")
def devices() -> jax.sharding.Mesh:
    """A one-axis mesh, `"devices"`, of eight simulated CPU devices."""
    cpus = np.array(jax.devices("cpu")[:NUM_DEVICES])
    assert cpus.size == NUM_DEVICES, f"XLA_FLAGS gave {cpus.size} CPU devices"
    return jax.sharding.Mesh(cpus, ("devices",))
