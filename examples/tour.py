"""A tour of pathax: an adaptive SDE on one seed, and the law of its noise.

    python examples/tour.py [--fast] [--seed 0] [--out out]

Solves a two-dimensional SDE with non-commutative noise by SPaRK with adaptive steps,
reading all noise from one key; checks that a tighter tolerance, on the same key, gives
the same path; and tabulates the variances of the noise in float32 beside those of
`diffrax.VirtualBrownianTree`. Prints the tables and writes a figure.
"""

import argparse
import functools as ft
import pathlib
import time

import diffrax
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import pathax as px


T = 4.0
TREES = {
    "pathax": px.brownian.VirtualBrownianTree,
    "diffrax": diffrax.VirtualBrownianTree,
}


def drift(t, y, args):
    """A double well in the first component, a linear pull in the second."""
    del t, args
    return jnp.array([y[0] - y[0] ** 3, y[0] - y[1]])


def diffusion(t, y, args):
    """Two columns whose flows don't commute."""
    del t, args
    return 0.5 * jnp.array([[1.0, 0.3 * y[1]], [jnp.sin(y[0]), 1.0]])


@ft.partial(jax.jit, static_argnames=("tree", "dense"))
def solve(key, rtol, tree="pathax", dense=False):
    """One path of the SDE on `[0, T]` with adaptive steps."""
    path = TREES[tree](0.0, T, 2**-14, (2,), key, diffrax.SpaceTimeLevyArea)
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)
    )
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol, rtol, pcoeff=0.1, icoeff=0.3, dtmin=2**-13),
        store_rejected_steps=1000,
    )
    return diffrax.diffeqsolve(
        terms,
        diffrax.SPaRK(),
        0.0,
        T,
        0.05,
        jnp.array([0.0, 1.0]),
        saveat=diffrax.SaveAt(ts=jnp.linspace(0, T, 400) if dense else jnp.array([T])),
        stepsize_controller=controller,
        max_steps=20_000,
    )


@ft.partial(jax.jit, static_argnames="tree")
def variance_ratios(keys, h, tree):
    """Sample variance over exact variance of W, H and K on `[0.7, 0.7 + h]`."""

    def increment(key):
        levy_area = diffrax.SpaceTimeTimeLevyArea
        path = TREES[tree](0.0, 1.0, 2**-21, (), key, levy_area)
        out = path.evaluate(jnp.float32(0.7), jnp.float32(0.7) + h, use_levy=True)
        return jnp.stack([out.W, out.H, out.K])

    length = (jnp.float32(0.7) + h) - jnp.float32(0.7)
    exact = length * jnp.array([1, 1 / 12, 1 / 720])
    return jnp.mean(jax.vmap(increment)(keys) ** 2, axis=0) / exact


def law_table(key, paths):
    """Ratios for both trees at steps from 2^-2 to 2^-20 of the horizon."""
    keys = jax.random.split(key, paths)
    exponents = np.arange(2, 21, 2)
    return exponents, {
        tree: np.array(
            [variance_ratios(keys, jnp.float32(2.0**-j), tree) for j in exponents]
        )
        for tree in TREES
    }


def seconds_per_step(key, repeats):
    """Median times of a whole adaptive solve, a step, the two trees in turn."""
    times = {tree: [] for tree in TREES}
    for _ in range(repeats + 1):
        for tree in TREES:
            begin = time.perf_counter()
            steps = int(solve(key, 1e-3, tree).stats["num_steps"])
            times[tree].append((time.perf_counter() - begin) / steps)
    return {tree: float(np.median(t[1:])) for tree, t in times.items()}


def draw(solution, exponents, ratios, file):
    """The path, and the variance of K by step size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(solution.ts, solution.ys)
    left.set(xlabel="t", title="SPaRK, adaptive steps, one key")
    left.legend(["y₁", "y₂"])
    for tree, marker in zip(TREES, "os", strict=True):
        values = np.maximum(ratios[tree][:, 2], 1e-3)
        right.semilogy(exponents, values, marker + "-", label=tree)
    right.axhline(1, color="black", lw=0.5)
    right.set(
        xlabel="−log₂(step / horizon)",
        title="variance of K over exact, float32; 0 drawn at 10⁻³",
    )
    right.legend()
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main():
    """Run the tour."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="fewer paths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    options = parser.parse_args()
    path_key, law_key = jax.random.split(jax.random.key(options.seed))

    print(f"An SDE with non-commutative noise on [0, {T:g}], one key, adaptive SPaRK")
    print(f"{'tolerance':>10} {'accepted':>9} {'rejected':>9} {'end point':>22}")
    for rtol in (1e-2, 1e-3, 1e-4):
        out = solve(path_key, rtol)
        accepted, rejected = (
            int(out.stats[f"num_{kind}_steps"]) for kind in ("accepted", "rejected")
        )
        end = np.array2string(np.asarray(out.ys[-1]), precision=4)
        print(f"{rtol:>10g} {accepted:>9} {rejected:>9} {end:>22}")

    exponents, ratios = law_table(law_key, 4_000 if options.fast else 20_000)
    print("\nSample variance over exact variance, float32 (1 is right)")
    print(f"{'step/horizon':>13}", *(f"{t} {x:>9}" for t in TREES for x in "WHK"))
    for i, j in enumerate(exponents):
        row = np.concatenate([ratios[tree][i] for tree in TREES])
        widths = [len(t) + 10 for t in TREES for _ in "WHK"]
        print(
            f"{f'2^-{j}':>13}",
            *(f"{x:>{w}.3f}" for x, w in zip(row, widths, strict=True)),
        )

    times = seconds_per_step(path_key, 5 if options.fast else 15)
    ratio = times["diffrax"] / times["pathax"]
    print(f"\nTime a step of the adaptive solve: diffrax over pathax {ratio:.1f}")
    file = options.out / "tour.png"
    draw(solve(path_key, 1e-3, dense=True), exponents, ratios, file)
    print(f"Figure: {file}")


if __name__ == "__main__":
    main()
