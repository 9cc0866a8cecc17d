"""A neural operator predicts a flow to a few percent; refinement solves the flow.

    python examples/refine_flow.py [--fast] [--seed 0] [--out out]

Makes forced flows, trains a small spatiotemporal Fourier neural operator on them, lets
it predict ten frames of a flow that it has not seen, and makes the prediction solve the
equation by a few Gauss-Newton steps in space and time. Prints error, residual and time
of each step beside those of no network; the figure shows vorticity before and after,
the spectrum of the error, and error and residual after each step.
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
from tqdm import tqdm

import pathax as px


ops = px.operators
HORIZON, FRAMES = 2.0, 10


def make_flows(key, grid, equation, count):
    """Ten frames that go in, and the ten after them, of each flow."""
    times = 6.0 + HORIZON / FRAMES * np.arange(2 * FRAMES)
    run = jax.jit(
        lambda key: ops.integrate(
            equation, grid, ops.gaussian_field(key, grid), times, dt=0.05
        )
    )
    flows = [run(key) for key in tqdm(jax.random.split(key, count), desc="flows")]
    flows = np.stack(flows)
    return flows[:, :FRAMES], flows[:, FRAMES:]


def train(key, inputs, outputs, times, steps):
    """A small operator after some steps of AdamW."""
    model = ops.STFNO(
        (6, 6, 4), width=8, depth=3, frames=FRAMES, horizon=HORIZON, key=key
    )
    model = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model
    )

    def loss(model, batch, key):
        frames, wanted = batch
        found = jax.vmap(lambda x: model(x, times))(frames)
        errors = jnp.sum((found - wanted) ** 2, axis=(1, 2, 3))
        return jnp.mean(jnp.sqrt(errors / jnp.sum(wanted**2, axis=(1, 2, 3))))

    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
    tx = optax.adamw(rate, weight_decay=1e-4)
    step = jax.jit(px.training.train_step(model, loss, tx), donate_argnums=0)
    state = px.training.init_state(model, tx, key)
    rng = np.random.default_rng(0)
    bar = tqdm(range(steps), desc="training")
    for _ in bar:
        chosen = rng.integers(len(inputs), size=4)
        batch = (jnp.asarray(x[chosen], jnp.float32) for x in (inputs, outputs))
        state, metrics = step(state, tuple(batch))
        bar.set_postfix(loss=f"{float(metrics['loss']):.3f}")
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    return eqx.combine(state.params, static)


def relative(found, wanted):
    """Error over all frames, in L2."""
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


def follow(problem, start, wanted, times):
    """Error and residual after each step; also the first and the last fields."""
    fields, rows = [], []
    for steps in range(4):
        begin = time.perf_counter()
        found = ops.refine(problem, start, max_steps=steps, rtol=0.0)
        jax.block_until_ready(found)
        spent = time.perf_counter() - begin
        fields.append(found.trajectory(jnp.asarray(times)))
        eta = ops.estimate(problem.equation, found.trajectory).eta
        rows.append((steps, relative(fields[-1], wanted), float(eta), spent))
    return fields, rows


def draw(grid, fields, wanted, rows, file):
    """Vorticity of the last frame before and after, and what the errors do."""
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.2))
    scale = float(jnp.abs(wanted[-1]).max())
    for axis, field, title in zip(
        axes,
        (wanted[-1], fields[0][-1], fields[0][-1] - wanted[-1]),
        ("a solver's", "the operator's", "its error, 10 times"),
        strict=False,
    ):
        shown = field * (10 if "error" in title else 1)
        axis.imshow(shown.T, origin="lower", cmap="RdBu", vmin=-scale, vmax=scale)
        axis.set(title=title, xticks=[], yticks=[])
    spectrum = lambda u: np.asarray(ops.energy_spectrum(grid, u))
    axes[3].semilogy(spectrum(wanted[-1])[1:], color="black", label="the flow")
    for found, (steps, error, _, _) in zip(fields, rows, strict=True):
        curve = spectrum(found[-1] - wanted[-1])[1:]
        axes[3].semilogy(curve, label=f"{steps} steps: {error:.0e}")
    axes[3].set(
        xlabel="wavenumber", title="error's spectrum", xlim=(0, grid.shape[0] / 3)
    )
    axes[3].legend(fontsize=7)
    steps, errors, etas, _ = zip(*rows, strict=True)
    axes[4].semilogy(steps, errors, "o-", label="error")
    axes[4].semilogy(steps, etas, "s--", label="residual, the estimate")
    axes[4].set(xlabel="Gauss-Newton steps", xticks=steps)
    axes[4].legend(fontsize=7)
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
    jax.config.update("jax_enable_x64", True)  # refinement needs it
    size, count, steps = (32, 9, 60) if args.fast else (64, 33, 300)
    grid = ops.Grid((size, size), (1.0, 1.0))
    equation = ops.NavierStokes(1e-3, source=ops.diagonal_forcing(grid))
    keys = jax.random.split(jax.random.key(args.seed))
    inputs, outputs = make_flows(keys[0], grid, equation, count)
    times = HORIZON / FRAMES * np.arange(1, FRAMES + 1)
    model = train(
        keys[1], inputs[:-1], outputs[:-1], jnp.asarray(times, jnp.float32), steps
    )
    unseen, wanted = jnp.asarray(inputs[-1]), jnp.asarray(outputs[-1])
    problem = ops.SpaceTimeProblem(equation, grid, unseen[-1], HORIZON, degree=10)
    predicted = model.trajectory(unseen.astype(jnp.float32))
    start = lambda t: predicted(t.astype(jnp.float32)).astype(float)
    for name, begin in (("the operator", start), ("no change", None)):
        fields, rows = follow(problem, begin, wanted, times)
        print(f"from {name}\n  steps   error     residual  seconds with compilation")
        for n, error, eta, spent in rows:
            print(f"  {n}       {error:.1e}   {eta:.1e}   {spent:.1f}")
        if begin is not None:
            draw(grid, fields, wanted, rows, args.out / "refine_flow.png")
    print(f"figure: {args.out / 'refine_flow.png'}")


if __name__ == "__main__":
    main()
