"""Tables and plots of Langevin dynamics."""

import math
from pathlib import Path

from .._report import Results, new_plot, number, save_plot, table


# Of the published runs with constant steps, time 32: steps and errors.
PUBLISHED_ORDER = ((64, 2.54e-2), (128, 3.31e-3), (256, 4.21e-4), (512, 5.25e-5))
PUBLISHED_ORDER += ((1024, 6.65e-6), (2048, 8.54e-7))

# Gradients of the published runs until twice the least distance of any method, where
# they are known: the best of theirs, without an adapted mass, and NUTS. Their distances
# are at other levels, of more chains, so only the order of a row is comparable.
PUBLISHED_RACE = {
    "banana": (672, 60),
    "breast": (325, 70),
    "image": (338, 508),
    "thyroid": (221, 149),
    "titanic": (288, 237),
    "waveform": (289, 238),
}


def sections(results: Results, folder: Path) -> list[str]:
    """Markdown of all families that were run."""
    parts = [
        ("Strong order on a funnel", _orders(results, folder)),
        ("Samples, beside NUTS", _samples(results)),
        ("Gradients until the law is right, beside NUTS", _races(results, folder)),
    ]
    return [x for title, body in parts if body for x in (f"#### {title}", *body)]


def _orders(results: Results, folder: Path) -> list[str]:
    rows = []
    for name, record in results.family("order").items():
        found = record["figures"]
        for way, points in found.items():
            if isinstance(points, list):
                text = ", ".join(f"{number(n)}: {number(e)}" for n, e in points)
                order = number(found["order"]) if way == "constant" else "–"
                rows.append([name.split("/")[1], way, text, order])
    if not rows:
        return []
    note = (
        "Gradients and root-mean-square error at time 32: `diffrax.QUICSORT` with "
        "constant steps; with steps that adapt by a step in two halves; and solvers of "
        "pathax by their own estimates."
    )
    text = table(["dtype", "steps", "gradients: error", "order"], rows)
    return [note, text, _order_plot(results, folder)]


def _order_plot(results: Results, folder: Path) -> str:
    figure, axes = new_plot(5.5, 3.6)
    for name, record in results.family("order").items():
        for way, points in record["figures"].items():
            if isinstance(points, list):
                label = f"{way}, {name.split('/')[1]}"
                axes.loglog(*zip(*points, strict=True), "o-", label=label)
    # Two gradients a step.
    steps, errors = zip(*PUBLISHED_ORDER, strict=True)
    axes.loglog([2 * n for n in steps], errors, "kx", label="constant, published")
    axes.set(xlabel="gradients", ylabel="error")
    axes.legend(fontsize=7)
    file = save_plot(figure, folder, f"benchmarks_langevin_{results.device}_order")
    return f"![Error against gradients](generated/{file})"


def _samples(results: Results) -> list[str]:
    rows = []
    for name, record in results.family("mcmc").items():
        found = record["figures"]
        sides = [key.removeprefix("ess ") for key in found if key.startswith("ess ")]
        for side in sides:
            keys = ("gradients", "warm-up", "ess", "evals an effective sample")
            rows.append(
                [
                    f"{name.split('/')[1]}, d = {found['dimension']}",
                    side,
                    *(number(found[f"{key} {side}"]) for key in keys),
                    f"{found[f'r_hat {side}']:.3f}",
                    number(found[f"distance {side}"]),
                    *(
                        number(found.get(f"{what} error {side}"))
                        for what in ("mean", "deviation")
                    ),
                ]
            )
    if not rows:
        return []
    head = ["", "", "gradients", "of the warm-up", "effective samples"]
    head += ["gradients for one", "R-hat", "energy distance", "mean off", "sd off"]
    note = (
        "All numbers are a chain's. All gradients count, of the warm-up, of trials "
        "and of rejected steps too; those for one effective sample are without the "
        "warm-up. "
        "Effective samples are those of the worst coordinate, by the rank-normalized "
        "bulk. The energy distance, without bias and so of either sign, is that to an "
        "independent reference of what is drawn after the warm-up with equally many "
        "gradients. *Mean off* is the largest error of a mean in standard deviations, "
        "*sd off* that of a standard deviation, relative, where the posterior is "
        "published. NUTS has a window adaptation of 300 steps a chain; on the two "
        "hierarchies, the funnel and the schools, target acceptance rates of 0.8 and "
        "0.95 were tried, and the better one counts. There ours has conditional "
        "scales and adaptive steps: scales of the funnel are of the form that the "
        "warm-up fits, those of the schools are not."
    )
    return [note, table(head, rows)]


def _races(results: Results, folder: Path) -> list[str]:
    races = results.family("race")
    if not races:
        return []
    rows, wins = [], 0
    for name, record in races.items():
        found, key = record["figures"], name.split("/")[1]
        ours, theirs = found["pathax"], found["NUTS"]
        wins += ours is not None and (theirs is None or ours < theirs)
        published = PUBLISHED_RACE.get(key, (None, None))
        ratio = None if ours is None or theirs is None else ours / theirs
        rows.append(
            [
                f"{key}, d = {found['dimension']}",
                *map(number, (found["start"], found["level"], ours, theirs, ratio)),
                *map(number, published),
            ]
        )
    head = ["", "distance at the start", "level", "pathax", "NUTS", "pathax over NUTS"]
    head += ["published Langevin", "published NUTS"]
    note = (
        "Gradients a chain until the law of 256 chains, started from the prior, is as "
        "near to the target as 256 independent draws resolve: the unbiased energy "
        "distance is below the expected one of so many draws. The warm-up is on both "
        "curves. A dash: not within the run. Published numbers are to twice the least "
        "distance of any method, without an adapted mass for Langevin dynamics. "
        f"Fewer gradients than NUTS on {wins} of {len(races)}."
    )
    return [note, table(head, rows), _race_plot(results, folder)]


def _race_plot(results: Results, folder: Path) -> str:
    """Small plots, one a set, drawn into one pair of axes each."""
    races = results.family("race")
    figure, axes = new_plot(9, 2.0 * math.ceil(len(races) / 5))
    axes.remove()
    grid = figure.subplots(math.ceil(len(races) / 5), 5, squeeze=False)
    for place in grid.flat[len(races) :]:
        place.remove()
    for place, (name, record) in zip(grid.flat, races.items(), strict=False):
        found = record["figures"]
        for side in ("pathax", "NUTS"):
            spent, far = zip(*found[f"curve {side}"], strict=True)
            floor = found["level"] / 20
            place.loglog(spent, [max(x, floor) for x in far], ".-", ms=3, label=side)
        place.axhline(found["level"], color="k", lw=0.6, ls=":")
        place.set_title(name.split("/")[1], fontsize=8)
        place.tick_params(labelsize=6)
    grid.flat[0].legend(fontsize=6)
    file = save_plot(figure, folder, f"benchmarks_langevin_{results.device}_race")
    return f"![Energy distance against gradients](generated/{file})"
