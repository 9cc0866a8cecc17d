"""Tuning: the same number of trials for every method, spent by the same rule."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


Score = tuple[int, float]  # failures, then steps or what was left: less is better


class Found(NamedTuple):
    """What a search ended with."""

    rate: float
    own: float
    trials: int
    score: Score


def search(
    score: Callable[[float, float], Score],
    rates: Sequence[float],
    values: Sequence[float],
    trials: int,
) -> Found:
    """The best rate and value of the other parameter.

    First all `rates`, a decade apart, with the default value; then the best one times
    and over `10^(1/3)`; then the other values; then the rate times and over
    `10^(1/6)`. With fewer trials the outermost rates are left out, and what comes last.
    Without `rates` the values alone are tried.
    """
    seen: dict[tuple[float, float], Score] = {}

    def attempt(rate: float, value: float) -> None:
        if len(seen) < trials and (rate, value) not in seen:
            seen[rate, value] = score(rate, value)

    def best() -> tuple[float, float]:
        return min(seen, key=lambda pair: seen[pair])

    if not rates:
        for value in values:
            attempt(1.0, value)
        return Found(*best(), len(seen), seen[best()])
    few = trials < 2 * len(rates)
    for rate in rates[1:-1] if few else rates:
        attempt(rate, values[0])
    _around(attempt, *best(), 10 ** (1 / 3))
    rate, _ = best()
    for value in values[1:]:
        attempt(rate, value)
    _around(attempt, *best(), 10 ** (1 / 6))
    return Found(*best(), len(seen), seen[best()])


def _around(attempt: Callable, rate: float, value: float, factor: float) -> None:
    attempt(rate / factor, value)
    attempt(rate * factor, value)
