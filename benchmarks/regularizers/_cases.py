"""Which methods are trained on which tasks, and for how long."""

from .._case import Case, Config
from ._methods import METHODS, weights_of
from ._tasks import TASKS
from ._train import Setting, paired


OURS = ("step cost", "local", "local, by steps")
PUBLISHED = ("error", "stiffness", "published unbiased", "published biased")
PEERS = ("steer", "taynode", "rnode", "weight decay")
FEW = ("step cost", "local", "error")
SECOND_ORDER = ("soap", "shampoo")

# Seeds, steps of training, weights, and methods.
FULL = {
    "digits": (5, 300, 5, OURS + PUBLISHED + PEERS),
    "mnist": (5, 250, 3, OURS + PUBLISHED + PEERS[:3]),
    "clinical": (5, 200, 3, FEW + PUBLISHED[1:] + PEERS[:2]),
    "vowels": (5, 120, 3, FEW),
    "spiral ODE": (5, 300, 3, FEW + PUBLISHED[1:2]),
    "spiral SDE": (5, 120, 3, FEW + PUBLISHED[3:]),
    "digits SDE": (5, 150, 3, FEW + PUBLISHED[3:]),
    "speakers CDE": (5, 100, 3, FEW),
}
FAST = {"digits": (5, 300, 3, FEW)}


def _case(setting: Setting, method: str) -> Case:
    task = TASKS[setting.task]
    if method not in (*OURS, "error"):  # whose fronts are compared
        setting = setting._replace(weights=min(setting.weights, 3))
    parts = [setting.task, method.replace(",", "")]
    if setting.optimizer != "adamw":
        parts.append(setting.optimizer)
    parameters = {
        "task": setting.task,
        "optimizer": setting.optimizer,
        "seeds": setting.seeds,
        "steps": setting.steps,
        "grid": weights_of(task, method, setting.weights),
        "tolerance": task.tolerance,
        "batch": task.batch,
        "learning_rate": task.learning_rate,
        "dtype": "float64" if task.double else "float32",
    }
    return Case(
        f"train/{','.join(parts)}",
        parameters,
        measure=lambda _: paired(setting, method),
        packages=task.packages,
        revision=3,
    )


def training_cases(config: Config) -> list[Case]:
    """Each method beside none, on each task; the step cost by other optimizers, too, of
    one weight, that in the middle."""
    out = []
    for task, (*numbers, methods) in (FAST if config.fast else FULL).items():
        setting = Setting(task, "adamw", *numbers)
        out += [_case(setting, method) for method in METHODS if method in methods]
        if not config.fast:
            out += [
                _case(setting._replace(optimizer=optimizer, weights=1), "step cost")
                for optimizer in SECOND_ORDER
            ]
    return out
