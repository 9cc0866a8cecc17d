"""Ensembles: paths a second, the same bits everywhere, memory, multilevel cost.

Families of cases:

- `speed`: an ensemble beside one vmapped and jitted call that keeps all paths;
- `devices`: the same ensemble on one and on eight simulated devices, in one process and
  in two, bit by bit;
- `memory`: the most memory held by a run of a million paths;
- `mlmc`: cost over the error that is asked for.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._devices import device_cases
from ._mlmc import mlmc_cases
from ._speed import speed_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [*speed_cases(config), *device_cases(config), *mlmc_cases(config)]


def headline(results: Mapping[str, dict]) -> dict[str, float | bool | None]:
    """The figures to reach; `None` where the cases were not run.

    - `paths_per_second`: of Ornstein-Uhlenbeck, 64 steps of a solver on a tree;
    - `over_plain`: time a path over that of one vmapped call that keeps all paths;
    - `identical_on_devices`: whether one device, eight devices and two processes gave
      the same bits;
    - `gib_of_a_million`: memory held by a run of a million paths;
    - `mlmc_slope`: of log cost over log error, -2 in theory.
    """
    figures = lambda case: results.get(case, {}).get("figures", {})
    return {
        "paths_per_second": figures("speed/tree").get("paths per second"),
        "over_plain": figures("speed/tree").get("over plain"),
        "identical_on_devices": figures("devices/bits").get("identical"),
        "gib_of_a_million": figures("memory/million").get("GiB"),
        "mlmc_slope": figures("mlmc/milstein").get("slope"),
    }
