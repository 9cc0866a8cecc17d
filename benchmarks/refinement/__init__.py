"""Refinement of trajectories: steps, seconds, estimates, and solvers beside it.

Families of cases:

- `network`: a spatiotemporal operator trained for a while, then refined by one to three
  Gauss-Newton steps, by Adam with as many transforms, and trained for as long instead;
- `estimator`: the residual beside the error;
- `turbulence`: decaying turbulence over a window at once and in slabs;
- `solvers`: error against seconds for steppers, and for refinement;
- `inverse`: parameters from noisy frames, beside fits through a solver.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._chaos import chaos_cases
from ._inverse import inverse_cases
from ._refine import refinement_cases
from ._solvers import solver_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [
        *refinement_cases(config),
        *solver_cases(config),
        *inverse_cases(config),
        *chaos_cases(config),
    ]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to watch; `None` where the cases were not run.

    - `error_network_median`, `error_refined_median`: relative L2 error over all frames
      of flows not seen, before and after three Gauss-Newton steps;
    - `seconds_per_iteration`: of those steps, compilation apart;
    - `gain_vs_published_optimizer`: error of Adam, at its best rate and with as many
      transforms, over that of the three steps;
    - `estimator_spearman`: rank correlation of residual and error.
    """
    figures = lambda case: results.get(case, {}).get("figures", {})
    network = figures("network/forced flow")
    return {
        "error_network_median": network.get("error 0"),
        "error_refined_median": network.get("error 3"),
        "seconds_per_iteration": network.get("seconds_per_iteration"),
        "gain_vs_published_optimizer": network.get("over Adam"),
        "estimator_spearman": figures("estimator/forced flow").get("spearman"),
    }
