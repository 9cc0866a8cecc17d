"""What a subject hands to the harness: cases, contenders, and how they are run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class SkippedError(Exception):
    """Raised by a case that lacks a package or data; what was stored of it stays."""


@dataclass(frozen=True)
class Config:
    """What one run of the harness asks of every case.

    **Attributes:**

    - `fast`: a short run, for a quick look; subjects may leave out cases.
    - `device`: whether this is the entry for accelerators.
    - `platform`: JAX's name of the platform that runs, `"cpu"` or `"gpu"`.
    - `rounds`: samples taken of each contender.
    - `min_rounds`: samples taken even where the budget is spent.
    - `budget`: seconds after which a case takes no further sample.
    - `sample_seconds`: the least duration of one sample.
    """

    fast: bool = False
    device: bool = False
    platform: str = "cpu"
    rounds: int = 21
    min_rounds: int = 15
    budget: float = 60.0
    sample_seconds: float = 2e-3

    @classmethod
    def make(cls, *, fast: bool, device: bool, platform: str) -> "Config":
        """The configuration of a full or a fast run."""
        if fast:
            return cls(True, device, platform, rounds=9, min_rounds=5, budget=4.0)
        return cls(False, device, platform)


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    **Attributes:**

    - `name`: stable, e.g. `"pathax"` or `"diffrax"`.
    - `make`: takes nothing and returns `(function, arguments)`; the function is
      compiled for these arguments, and only the compiled call is timed.
    - `work`: takes the function's output and returns how much was done (e.g. solver
      steps), where contenders may differ in that.
    """

    name: str
    make: Callable[[], tuple[Callable, tuple]]
    work: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Case:
    """One row of a benchmark: either contenders to be timed, or a measurement.

    **Attributes:**

    - `name`: the stable key of the result, `family/what,exactly`.
    - `parameters`: everything the numbers depend on, as plain values. A stored result
      is used again only if they are unchanged.
    - `contenders`: what is timed, interleaved.
    - `ratios`: name -> (numerator, denominator), both names of contenders.
    - `overhead`: the contender that does nothing; ratios are reported net of it, too.
    - `measure`: instead of contenders, a function `run_index -> figures`.
    - `merge`: joins the figures of an earlier run with those of a new one, so that a
      study can grow (`--grow`).
    - `rounds`: fewer rounds than usual, for a case that takes long.
    - `packages`: what else takes part, beside the packages that always do; their
      versions are stored, and a result stands while they stay.
    - `revision`: raised when the meaning of the case changes.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    contenders: tuple[Contender, ...] = ()
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overhead: str | None = None
    measure: Callable[[int], dict] | None = None
    merge: Callable[[dict, dict], dict] | None = None
    rounds: int | None = None
    packages: tuple[str, ...] = ()
    revision: int = 1

    def __post_init__(self):
        if bool(self.contenders) == (self.measure is not None):
            raise ValueError(
                f"Case {self.name!r} must have either `contenders` or `measure`."
            )
        names = [c.name for c in self.contenders]
        if len(set(names)) < len(names):
            raise ValueError(f"Case {self.name!r} has contenders of equal name.")
        used = {n for pair in self.ratios.values() for n in pair}
        unknown = (used | {self.overhead} - {None}) - set(names)
        if unknown:
            raise ValueError(
                f"Case {self.name!r} must compare contenders that it has, {names}; "
                f"got {sorted(unknown)}."
            )

    @property
    def family(self) -> str:
        """The part of the name before the first slash."""
        return self.name.split("/")[0]
