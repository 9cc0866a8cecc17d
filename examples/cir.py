"""Short rates: steps that are short where the rate is close to zero, and bond prices.

    python examples/cir.py [--fast] [--seed 0] [--out out]

Solves the Cox-Ingersoll-Ross process, whose square root is not smooth at zero, by
high-order Strang splitting, with constant steps and with steps by the state, on the
same paths; tabulates the error of both; then prices bonds by simulation, beside the
closed form. The figure shows a path with its steps, the errors, and the prices.
"""

import argparse
import pathlib

import diffrax as dfx
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

import pathax as px


END, VOLATILE = 4.0, px.solvers.CIR(a=1.0, b=1.0, sigma=1.5)
RATE, RATES = 0.04, px.solvers.CIR(a=0.5, b=0.04, sigma=0.12)


def solve(key, cir, x, end, controller, dt0, saveat):
    """One path."""
    path = px.brownian.VirtualBrownianTree(
        0.0, end, end * 2**-18, (), key, dfx.SpaceTimeLevyArea
    )
    return dfx.diffeqsolve(
        cir.terms(path),
        px.solvers.HOStS.of(cir),
        0.0,
        end,
        dt0,
        jnp.asarray(x),
        stepsize_controller=controller,
        saveat=saveat,
        max_steps=2**14,
    )


def ends(keys, controller, dt0):
    """States at the end, and the mean number of steps."""

    def one(key):
        found = solve(key, VOLATILE, 1.0, END, controller, dt0, dfx.SaveAt(t1=True))
        return found.ys[0], found.stats["num_accepted_steps"]

    chunks = keys.reshape(-1, 50)
    x, steps = jax.jit(lambda k: jax.lax.map(jax.vmap(one), k))(chunks)
    return x.reshape(-1), float(steps.mean())


def errors(keys, levels):
    """Steps and errors of both kinds of steps, beside much shorter ones."""
    kinds = {
        "constant": lambda n: (dfx.ConstantStepSize(), END / 2 ** (n + 4)),
        "by the state": lambda n: (px.solvers.CIRController(2.0**-n), None),
    }
    out = {}
    for kind, make in kinds.items():
        exact, _ = ends(keys, *make(levels[-1] + 2))
        out[kind] = []
        for n in tqdm(levels, desc=kind):
            found, steps = ends(keys, *make(n))
            out[kind].append((steps, float(jnp.sqrt(jnp.mean((found - exact) ** 2)))))
    return out


def prices(key, years, paths):
    """Of bonds, simulated with their standard errors, and in closed form."""
    times = jnp.linspace(0.0, years[-1], 16 * len(years) + 1)

    def discounts(key):
        steps, saveat = dfx.StepTo(times), dfx.SaveAt(ts=times)
        x = solve(key, RATES, RATE, float(years[-1]), steps, None, saveat).ys
        whole = jnp.cumsum((x[1:] + x[:-1]) / 2 * jnp.diff(times))
        return jnp.exp(-whole[15::16])

    found = px.simulation.ensemble(discounts, key, paths, chunk=1000)
    return found.mean, found.standard_error, RATES.bond_price(jnp.array(RATE), years)


def draw(path, table, years, bonds, file):
    """The path and its steps, the errors, the prices."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    kept = np.isfinite(path.ts)
    t, x = np.asarray(path.ts)[kept], np.asarray(path.ys)[kept]
    axes[0].plot(t, x, lw=0.8)
    twin = axes[0].twinx()
    twin.semilogy(t[1:], np.diff(t), color="tab:red", lw=0.6)
    axes[0].set(xlabel="t", title="a path (blue) and its steps (red)")
    for kind, points in table.items():
        axes[1].loglog(*zip(*points, strict=True), "o-", label=kind)
    axes[1].xaxis.set_minor_formatter(NullFormatter())  # labels would overlap
    axes[1].set(xlabel="mean number of steps", title="error at the end")
    axes[1].legend()
    mean, error, exact = bonds
    axes[2].errorbar(years, mean - exact, 2 * error, fmt="o")
    axes[2].axhline(0, color="black", lw=0.5)
    axes[2].set(xlabel="years", title="bond price: simulated - exact, 2 s.e.")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main():
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(args.seed), 3)

    paths, levels = (100, range(1, 5)) if args.fast else (1000, range(1, 7))
    table = errors(jax.random.split(keys[0], paths), list(levels))
    print(f"{'steps':>14} {'mean number':>12} {'error':>10}")
    for kind, points in table.items():
        for steps, error in points:
            print(f"{kind:>14} {steps:>12.0f} {error:>10.2e}")

    years = np.arange(1.0, 11.0)
    bonds = prices(keys[1], years, 2_000 if args.fast else 20_000)
    print(f"\n{'years':>6} {'simulated':>10} {'exact':>8} {'s.e.':>8}")
    for year, mean, error, exact in zip(years, *bonds, strict=True):
        print(f"{year:>6.0f} {mean:>10.5f} {exact:>8.5f} {error:>8.5f}")

    controller = px.solvers.CIRController(2.0**-6)
    saveat = dfx.SaveAt(t0=True, steps=True)
    one = lambda key: solve(key, VOLATILE, 1.0, END, controller, None, saveat)
    path = jax.jit(one)(keys[2])
    file = args.out / "cir.png"
    draw(path, table, years, bonds, file)
    print(f"figure: {file}")


if __name__ == "__main__":
    main()
