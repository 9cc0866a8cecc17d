"""Second-order optimizers on real digits: one training step drives them all.

    python examples/optimizers.py [--fast] [--seed 0] [--out out]

Trains one network on the 8 x 8 digits of scikit-learn with AdamW and with several
second-order methods, each for the same number of steps, and plots the loss against
steps and against time. Rates are those of a small grid on another seed, written below.
"""

import argparse
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import pathax as px


METHODS = {
    "AdamW": lambda: optax.adamw(1e-2, weight_decay=0.0),
    "AdaHessian, every 5": lambda: px.optimizers.adahessian(0.03, update_interval=5),
    "Sophia-G": lambda: px.optimizers.sophia_g(1e-3, weight_decay=0.0),
    "M-FAC": lambda: px.optimizers.mfac(0.3, window=32, damping=0.1),
    "MKOR": lambda: optax.chain(
        px.optimizers.scale_by_mkor(), optax.sgd(0.5, momentum=0.9)
    ),
    "SOAP": lambda: px.optimizers.soap(1e-2, weight_decay=0.0),
}


def digits():
    """1797 images and labels, or a message where scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "This example needs digits: pip install scikit-learn"
        ) from None
    x, y = load_digits(return_X_y=True)
    return np.asarray(x / 16, np.float32), np.asarray(y, np.int32)


def logits(model, batch, key):
    """Outputs of the network, which Sophia-G draws labels from."""
    del key
    return jax.vmap(model)(batch[0])


def loss(model, batch, key):
    """Mean cross-entropy."""
    outputs = logits(model, batch, key)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def train(make, data, steps, seed):
    """Loss on all data after steps and seconds, counted from the first report."""
    model = eqx.nn.MLP(64, 10, 128, 2, key=jax.random.key(seed))
    whole = eqx.filter_jit(lambda model: loss(model, data, None))
    times = []
    result = px.training.fit(
        px.curvature.kron.instrument(model),
        loss,
        px.training.Batches(data, 128, seed=seed),
        make(),
        steps=steps,
        key=jax.random.key(seed),
        predict=logits,
        evaluate=lambda model: {"whole": whole(model)},
        log=lambda step, metrics: times.append(time.perf_counter()),
        log_every=10,
    )
    values = np.array([report["whole"] for report in result.history])
    outputs = logits(result.model, data, None)
    right = float(jnp.mean(jnp.argmax(outputs, axis=1) == data[1]))
    return np.array(times) - times[0], values, right


def draw(curves, path):
    """Loss against steps, and against seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for name, (times, values, _) in curves.items():
        axes[0].semilogy(10 * np.arange(1, len(values) + 1), values, label=name)
        axes[1].semilogy(times, values, label=name)
    axes[0].set(xlabel="steps", ylabel="mean cross-entropy, all digits")
    axes[1].set(xlabel="seconds after the first report")
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """Train, print a table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    data, steps = digits(), 60 if args.fast else 400
    curves = {}
    print(f"{'method':<22}{'loss':>10}{'accuracy':>10}{'ms a step':>11}")
    for name, make in METHODS.items():
        curves[name] = train(make, data, steps, args.seed)
        times, values, right = curves[name]
        pace = 1e3 * times[-1] / (steps - 10)
        print(f"{name:<22}{values[-1]:>10.4f}{right:>10.3f}{pace:>11.2f}")
    path = args.out / "optimizers.png"
    draw(curves, path)
    print(f"Figure: {path}")


if __name__ == "__main__":
    main()
