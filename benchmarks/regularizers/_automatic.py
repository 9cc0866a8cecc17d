"""A weight that sets itself: whether the evaluations come to their target."""

import jax
import numpy as np

import pathax as px

from .._case import Case, Config
from ._cases import FULL
from ._train import Setting, bootstrap, lanes


TASK, PARTS = "digits", (0.3, 0.5, 0.7)
# The weight starts small, and may grow by a factor of e in some thirty steps.
INITIAL, RATE = 1e-2, 0.05


def _measure(setting: Setting) -> dict:
    with jax.enable_x64(True):
        plain = lanes(setting, "plain")
        evaluations, accuracy = (x[:, 0] for x in plain["test"])
        found = {
            "targets": [],
            "evaluations": [],
            "change_pt": [],
            "low": [],
            "high": [],
        }
        for part in PARTS:
            target = float(part * evaluations.mean())
            weight = px.regularizers.DualAscent(target, initial=INITIAL, rate=RATE)
            own = lanes(setting, "step cost", weight)
            count, right = (x[:, 0] for x in own["test"])
            low, high = bootstrap(count)
            change = float(100 * np.mean(right - accuracy))
            values = (target, float(count.mean()), change, low, high)
            for kept, value in zip(found.values(), values, strict=True):
                kept.append(value)
    return found | {"plain": float(evaluations.mean())}


def automatic_cases(config: Config) -> list[Case]:
    """One task and three targets; left out of a fast run."""
    if config.fast:
        return []
    seeds, steps, *_ = FULL[TASK]
    setting = Setting(TASK, "adamw", seeds, steps, 1)
    parameters = {"seeds": seeds, "steps": steps, "parts": PARTS}
    return [
        Case(
            f"automatic/{TASK}",
            parameters | {"initial": INITIAL, "rate": RATE},
            measure=lambda _: _measure(setting),
            packages=("scikit-learn",),
        )
    ]
