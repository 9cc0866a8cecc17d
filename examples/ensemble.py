"""A hundred thousand paths in constant memory, killed and resumed, then fewer of them.

    python examples/ensemble.py [--fast] [--seed 0] [--out out]

Simulates the CIR model of interest rates on one seed a path, prints mean, quantiles and
the price of a bond beside the exact ones, cuts the run short and goes on from its
checkpoint, and prices the bond again by multilevel Monte Carlo, which also finds how
many steps the bias asks for. The figure shows the histogram and the levels.
"""

import argparse
import functools
import math
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import pathax as px


SPEED, LEVEL, NOISE, START, HORIZON = 1.0, 0.05, 0.2, 0.03, 2.0


def path(key):
    """The Brownian path of one key."""
    return px.brownian.VirtualBrownianTree(0.0, HORIZON, HORIZON / 2**14, (), key)


def rate_and_bond(path, level):
    """The rate at the horizon and the discount factor, with `2^(level + 2)` steps.

    Drift-implicit Euler steps of the square root, which keep it positive.
    """
    steps = 4 * 2**level
    h = HORIZON / steps
    ts = jnp.linspace(0.0, HORIZON, steps + 1)
    dw = jax.vmap(path.evaluate)(ts[:-1], ts[1:])
    drift = SPEED * LEVEL - NOISE**2 / 4

    def step(carry, w):
        y, area = carry
        t = y + NOISE / 2 * w
        new = (t + jnp.sqrt(t**2 + (2 + SPEED * h) * drift * h)) / (2 + SPEED * h)
        return (new, area + h * (y**2 + new**2) / 2), None

    start = jnp.float32(math.sqrt(START)), jnp.float32(0)
    (y, area), _ = jax.lax.scan(step, start, dw)
    return {"rate": y**2, "bond": jnp.exp(-area)}


def exact_bond():
    """Closed form of Cox, Ingersoll and Ross (1985), equation 23."""
    g = math.sqrt(SPEED**2 + 2 * NOISE**2)
    rise = math.expm1(g * HORIZON)
    below = (g + SPEED) * rise + 2 * g
    factor = (2 * g * math.exp((SPEED + g) * HORIZON / 2) / below) ** (
        2 * SPEED * LEVEL / NOISE**2
    )
    return factor * math.exp(-2 * rise / below * START)


def draw(edges, counts, estimate, file):
    """Histogram of rates, and paths and costs of the levels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    density = counts[1:-1] / counts.sum() / np.diff(edges)
    left.stairs(density, 100 * edges, fill=True, color="#3f51b5")
    left.set(xlabel="rate after two years, %", ylabel="density")
    table = estimate.levels
    numbers = [x.level for x in table]
    right.bar(numbers, [x.paths for x in table], color="#3f51b5")
    right.set(yscale="log", xlabel="level", ylabel="paths")
    right.set_title("multilevel Monte Carlo")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main():
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    key, n = jax.random.key(args.seed), 20_000 if args.fast else 200_000
    edges = np.linspace(0, 0.25, 101)
    solve = lambda key: rate_and_bond(path(key), 4)
    options = {"quantiles": (0.05, 0.5, 0.95), "histogram": edges, "chunk": 4096}
    run = functools.partial(px.simulation.ensemble, solve, key, **options)
    start = time.perf_counter()
    found = run(n)
    print(f"{n} paths of 64 steps in {time.perf_counter() - start:.1f} s")
    mean = LEVEL + (START - LEVEL) * math.exp(-SPEED * HORIZON)
    error = found.standard_error
    print(f"mean rate   {found.mean['rate']:.6f} +- {error['rate']:.6f}, {mean:.6f}")
    exact = exact_bond()
    print(f"bond price  {found.mean['bond']:.6f} +- {error['bond']:.6f}, {exact:.6f}")
    levels = [f"{q['rate']:.4f}" for q in found.quantiles]
    print(f"quantiles   {', '.join(levels)}")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "run.npz"
        run(n // 2 // 4096 * 4096, checkpoint=file)  # as if it had been killed here
        again = run(n, checkpoint=file)
    same = np.array_equal(again.mean["bond"], found.mean["bond"])
    print(f"cut short and resumed: {'the same' if same else 'NOT the same'} bits")
    asked = 2e-4 if args.fast else 5e-5
    bond = lambda path, level: rate_and_bond(path, level)["bond"]
    estimate = px.simulation.mlmc(bond, path, key, rmse=asked, chunk=4096)
    gap, gain = abs(estimate.mean - exact), estimate.plain_cost / estimate.cost
    print(f"multilevel  {estimate.mean:.6f}, error {gap:.1e}, asked for {asked:.0e}")
    print(f"at {1 / gain:.2f} of the cost of one level\n{estimate}")
    draw(edges, found.histogram["rate"], estimate, args.out / "ensemble.png")
    print(f"figure: {args.out / 'ensemble.png'}")


if __name__ == "__main__":
    main()
