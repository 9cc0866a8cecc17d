"""Underdamped Langevin diffusion: strong order, and samples beside NUTS.

Families of cases:

- `order`: strong error on the funnel by constant steps, in float32 and float64, and by
  steps that adapt to an embedded estimate or to a step in two halves;
- `mcmc`: `pathax.simulation.langevin` beside BlackJAX's NUTS with its window
  adaptation, both with as many chains: gradients for an effective sample, and the
  distance of all draws to a reference;
- `race`: gradients until the law of many chains is that of the target, for both.
"""

import statistics
from collections.abc import Mapping

from .._case import Case, Config
from ._mcmc import mcmc_cases
from ._order import order_cases
from ._race import race_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    # Both of one set one after the other, so that they share its reference.
    of_set = lambda case: case.name.split("/")[1]
    sets = sorted([*mcmc_cases(config), *race_cases(config)], key=of_set)
    return [*order_cases(config), *sets]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to reach; `None` where the cases were not run.

    - `funnel_order_float32`: strong order of constant steps above the rounding floor;
    - `funnel_evals_vs_nuts`: gradients an effective sample on the funnel, over those of
      NUTS;
    - `german_mean_error_sd`: largest error of a posterior mean of the credit data, in
      posterior standard deviations;
    - `german_deviation_error`: largest relative error of a deviation;
    - `german_evals_vs_nuts`: as for the funnel;
    - after a full run, `race_wins` of `race_sets`, and the median of gradients over
      those of NUTS, `race_evals_vs_nuts`.
    """
    figures = lambda case: results.get(case, {}).get("figures", {})
    german = figures("mcmc/german")
    out = {
        "funnel_order_float32": figures("order/float32").get("order"),
        "funnel_evals_vs_nuts": figures("mcmc/funnel").get("evals over NUTS"),
        "german_mean_error_sd": german.get("mean error pathax"),
        "german_deviation_error": german.get("deviation error pathax"),
        "german_evals_vs_nuts": german.get("evals over NUTS"),
    }
    return out | _races([r["figures"] for n, r in results.items() if "race/" in n])


def _races(found: list[dict]) -> dict[str, float]:
    """A sampler that does not arrive has spent more than any."""
    if not found:
        return {}
    never = float("inf")
    spent = lambda side: [never if f[side] is None else f[side] for f in found]
    pairs = list(zip(spent("pathax"), spent("NUTS"), strict=True))
    ratios = [ours / theirs for ours, theirs in pairs if ours < never]
    return {
        "race_wins": sum(ours < theirs for ours, theirs in pairs),
        "race_sets": len(pairs),
        "race_evals_vs_nuts": statistics.median(ratios) if ratios else never,
    }
