"""Two posteriors of real data, sampled by Langevin dynamics in few gradients.

    python examples/langevin.py [--fast] [--seed 0] [--out out]

The weights of a logistic regression on scikit-learn's breast cancer data, many chains
at once from the prior: gradients for an effective sample, and how well the model
predicts; the same with adaptive steps. Then the effects of coaching in eight schools
(Rubin, 1981), a hierarchy in its centred form, whose spread is itself unknown: scales
that depend on the position follow it. The figure shows how chains come to the first
posterior, weights with their uncertainty, and the funnel of the second.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import pathax as px


TRAIN = 400


def data():
    """Standardized columns, a one for the bias last, and labels of either sign."""
    x, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))
    x, y = x[rows], y[rows]
    x = (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0)
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(2.0 * y - 1, jnp.float32)


def schools(x):
    """Minus the log density of eight effects, their mean, and the log of their spread.

    The mean is `N(0, 5^2)`, the spread half-Cauchy of scale 5.
    """
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects, mean, log_spread = x[:8], x[8], x[9]
    spread = jnp.exp(log_spread)
    prior = mean**2 / 50 + jnp.log1p((spread / 5) ** 2) - log_spread
    between = jnp.sum((effects - mean) ** 2) / (2 * spread**2) + 8 * log_spread
    return prior + between + jnp.sum(((effects - y) / error) ** 2) / 2


def report(name, found):
    """Gradients of the warm-up and for an effective sample, of the worst entry."""
    effective = px.simulation.diagnose(found.samples)
    cost = found.gradients / effective.ess_bulk.min()
    print(
        f"{name}: {found.warmup_gradients / len(found.samples):.0f} gradients a chain "
        f"to warm up, {cost:.1f} for an effective sample, step {found.step:.2f}, "
        f"R-hat {effective.r_hat.max():.3f}"
    )


def draw(found, hierarchy, file):
    """Chains over gradients, and weights; an effect over the spread of all."""
    figure, (left, right, last) = plt.subplots(1, 3, figsize=(13, 3.4))
    chains = len(found.samples)
    whole = np.concatenate([found.warmup_samples, found.samples[:, :12]], 1)
    spent = found.gradients_by_sample[: whole.shape[1]] / chains
    left.plot(spent, whole[:24, :, 20].T, lw=0.7, color="#3f51b5")
    left.axvline(found.warmup_gradients / chains, color="k", ls=":", lw=1)
    left.set(xlabel="gradients a chain, dotted: warm-up", ylabel="a weight, 24 chains")
    flat = np.asarray(found.samples).reshape(-1, whole.shape[-1])
    middle = np.argsort(flat.mean(0))
    low, high = np.quantile(flat[:, middle], [0.05, 0.95], axis=0)
    right.vlines(np.arange(len(middle)), low, high, color="#3f51b5")
    right.plot(flat.mean(0)[middle], "k.", ms=4)
    right.axhline(0, color="k", lw=0.5)
    right.set(xlabel="weight", ylabel="mean and 90% interval")
    flat = np.asarray(hierarchy.samples).reshape(-1, 10)[::4]
    last.plot(flat[:, 9], flat[:, 0], ".", ms=2, alpha=0.4, color="#3f51b5")
    last.set(xlabel="log of the spread of effects", ylabel="effect in the first school")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main():
    """Sample, count, predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    x, sign = data()

    def potential(w):
        fit = jax.nn.softplus(-sign[:TRAIN] * (x[:TRAIN] @ w))
        return jnp.sum(w**2) / 2 + jnp.sum(fit)

    first, second = jax.random.split(jax.random.key(args.seed))
    chains, samples = (64, 32) if args.fast else (128, 128)
    initial = jax.random.normal(first, (chains, x.shape[1]))
    run = lambda **options: px.simulation.langevin(
        potential, second, initial, samples=samples, **options
    )
    found = run()
    report("constant steps", found)
    if not args.fast:
        report("adaptive steps", run(tolerance=0.1))
    flat = found.samples.reshape(-1, x.shape[1])
    odds = jax.nn.sigmoid(x[TRAIN:] @ flat.T).mean(1)
    right = np.mean((odds > 0.5) == (sign[TRAIN:] > 0))
    print(f"right on {right:.1%} of {len(odds)} rows that were held out")

    start = jax.random.normal(first, (chains, 10))
    scales = {"mass": "conditional", "tolerance": 0.1}
    hierarchy = px.simulation.langevin(
        schools, second, start, samples=4 * samples, **scales
    )
    report("eight schools, conditional scales", hierarchy)
    effects = np.asarray(hierarchy.samples[..., :8]).reshape(-1, 8)
    print("mean effects:", ", ".join(f"{x:.1f}" for x in effects.mean(0)))
    draw(found, hierarchy, args.out / "langevin.png")
    print(f"figure: {args.out / 'langevin.png'}")


if __name__ == "__main__":
    main()
