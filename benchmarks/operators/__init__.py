"""Neural operators: models beside their peers, heads beside the published one.

Families of cases:

- `fno`: the FNO beside that of `neuraloperator`, trained from the same weights on
  Burgers' equation; `fno-step`: time of a training step in one to three dimensions;
- `head`: the spatiotemporal operator with its head and with the published one, trained
  on ten frames and asked for more of them, and on a finer grid;
- `residual`: what the published micro-step residual says of noise;
- `train`: operators trained by AdamW and by second-order methods, for the same
  processor time, at the best of four rates each.
"""

from collections.abc import Mapping

from .._case import Case, Config
from ._fno import fno_cases
from ._head import head_cases
from ._train import train_cases


def cases(config: Config) -> list[Case]:
    """All cases of the subject."""
    return [*fno_cases(config), *head_cases(config), *train_cases(config)]


def headline(results: Mapping[str, dict]) -> dict[str, float | None]:
    """The figures to watch; `None` where the cases were not run.

    - `fno_error`, `neuraloperator_error`: relative L2 error on unseen fields of
      Burgers' equation after the same steps from the same weights;
    - `fno_speedup_1d`, `_2d`, `_3d`: time of a training step of `neuraloperator` over
      ours;
    - `frames_drift`, `frames_drift_published`: error with four times the frames of the
      training over that with as many;
    - `micro_step_over_static`: the published residual of noise over its true one.
    """
    figures = lambda case: results.get(case, {}).get("figures", {})
    burgers, head = figures("fno/burgers"), figures("head/forced flow")
    residual = figures("residual/micro-step")

    def over(found, top, bottom):
        return found[top] / found[bottom] if top in found else None

    return {
        "fno_error": burgers.get("error pathax"),
        "neuraloperator_error": burgers.get("error neuraloperator"),
        **{
            f"fno_speedup_{d}": figures(f"fno-step/{d}").get("speedup")
            for d in ("1d", "2d", "3d")
        },
        "frames_drift": over(
            head, "error pathax, 40 frames", "error pathax, 10 frames"
        ),
        "frames_drift_published": over(
            head, "error published, 40 frames", "error published, 10 frames"
        ),
        "micro_step_over_static": over(
            residual, "noise, micro-step 1e-05", "noise, static residual"
        ),
    }
