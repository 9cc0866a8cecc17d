"""The Cox-Ingersoll-Ross process: strong error of constant and of adaptive steps.

Families of cases:

- `medium`: volatility 1.5, where the process comes close to zero;
- `high`: volatility 2.2, where it reaches zero often (in a full run);
- `coarse`: the points of few adaptive steps once more, on more paths;
- `bond`: prices by simulation beside the closed form.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._bond import bond_cases
from ._strong import coarse_cases, strong_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [*strong_cases(config), *coarse_cases(config), *bond_cases(config)]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `order_constant`, `order_adaptive`: slope of the error of high-order Strang
      splitting over the mean number of steps, at volatility 1.5;
    - `error_gain_at_520`: at 520 steps, error of constant steps over that of adaptive
      ones, measured as published: the former at the worst of eight times, the latter
      at the end.
    """
    found = results.get("medium/HOStS", {}).get("figures", {})
    return {
        "order_constant": found.get("order constant"),
        "order_adaptive": found.get("order adaptive"),
        "error_gain_at_520": found.get("gain at 520"),
    }
