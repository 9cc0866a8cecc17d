"""A logistic regression on real data, sampled by Langevin dynamics in few gradients.

    python examples/langevin.py [--fast] [--seed 0] [--out out]

The posterior of the weights of a logistic regression on scikit-learn's breast cancer
data, many chains at once from the prior. Prints what the warm-up learned, gradients for
an effective sample, and how well the model predicts; the same with adaptive steps. The
figure shows how the chains come to the posterior, and weights with their uncertainty.
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


def draw(found, file):
    """Chains over gradients, and weights."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
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
    ways = {"constant steps": {}}
    if not args.fast:
        ways["adaptive steps"] = {"tolerance": 0.1}
    for name, options in ways.items():
        found = run(**options)
        effective = px.simulation.diagnose(found.samples)
        cost = found.gradients / effective.ess_bulk.min()
        print(
            f"{name}: {found.warmup_gradients / chains:.0f} gradients a chain to warm "
            f"up, {cost:.1f} for an effective sample, step {found.step:.2f}, "
            f"R-hat {effective.r_hat.max():.3f}"
        )
        if not options:
            draw(found, args.out / "langevin.png")
            flat = found.samples.reshape(-1, x.shape[1])
            odds = jax.nn.sigmoid(x[TRAIN:] @ flat.T).mean(1)
            right = np.mean((odds > 0.5) == (sign[TRAIN:] > 0))
            print(f"right on {right:.1%} of {len(odds)} rows that were held out")
    print(f"figure: {args.out / 'langevin.png'}")


if __name__ == "__main__":
    main()
