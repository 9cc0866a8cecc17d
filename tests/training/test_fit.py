"""The training loop: what it trains with, what it reports, how it goes on."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px
from pathax.training import Batches, Checkpoints, EarlyStopping, JSONLines, fit


SIZE, BATCH = 64, 16


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 3)).astype(np.float32)
    return x, np.tanh(x @ np.array([1.0, -2.0, 0.5], np.float32))


def _model(seed=0):
    return eqx.nn.MLP(3, "scalar", 8, 1, jnp.tanh, key=jax.random.key(seed))


def _predict(model, batch, key):
    return jax.vmap(model)(batch[0])


def _residual(model, batch, key):
    return _predict(model, batch, key) - batch[1]


def _loss(model, batch, key):
    return jnp.mean(_residual(model, batch, key) ** 2)


def _noisy(model, batch, key):
    x, y = batch
    return _loss(model, (x + 0.1 * jax.random.normal(key, x.shape), y), key)


def _fit(data, steps=6, loss=_noisy, optimizer=None, **kwargs):
    kwargs = {"key": jax.random.key(1), "log_every": 2} | kwargs
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    return fit(_model(), loss, Batches(data, BATCH), optimizer, steps=steps, **kwargs)


def _same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.array_equal(np.asarray(x), np.asarray(y)) if eqx.is_array(x) else x == y
        for x, y in leaves
    )


def _raw(state):
    return state._replace(key=jax.random.key_data(state.key))


def _assert_equal(result, other):
    assert _same(_raw(result.state), _raw(other.state))


# What drives it -----------------------------------------------------------------------


def test_it_is_the_loop_written_by_hand(data):
    """Twenty lines of plain JAX give the same bits."""
    optimizer, key, model = optax.adam(1e-2), jax.random.key(1), _model()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state, batches = optimizer.init(params), Batches(data, BATCH)

    @jax.jit
    def step(params, state, batch, i):
        key_step = jax.random.split(jax.random.fold_in(key, i))[0]
        objective = lambda p: _noisy(eqx.combine(p, static), batch, key_step)
        grads = jax.grad(objective)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(6):
        params, state = step(params, state, batches.next(), i)
    result = _fit(data)
    for x, y in zip(
        jax.tree.leaves(params), jax.tree.leaves(result.state.params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7)
    assert result.reason == "steps"
    assert [report["step"] for report in result.history] == [2, 4, 6]


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "lbfgs": optax.lbfgs(),
    "adahessian": px.optimizers.adahessian(0.1),
    "sophia_g": px.optimizers.sophia_g(1e-2, likelihood="gaussian"),
    "ekfac": px.optimizers.ekfac(0.01, momentum=None),
    "several": optax.MultiSteps(px.optimizers.adahessian(0.1), every_k_schedule=2),
    "newton": px.optimizers.gradient_normalized_newton(
        curvature="ggn", likelihood="gaussian", solver="lanczos", krylov_size=8
    ),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_gets_its_extras(data, name):
    model = px.curvature.kron.instrument(_model())
    result = fit(
        model,
        _loss,
        Batches(data, BATCH),
        OPTIMIZERS[name],
        steps=20,
        key=jax.random.key(1),
        predict=_predict,
        log_every=1,
    )
    losses = [report["loss"] for report in result.history]
    assert losses[-1] < losses[0]


def test_layer_statistics(data):
    model = px.curvature.kron.instrument(_model())
    optimizer = optax.chain(px.optimizers.scale_by_mkor(), optax.sgd(0.05))
    result = fit(
        model,
        _loss,
        Batches(data, BATCH),
        optimizer,
        steps=10,
        key=jax.random.key(0),
        log_every=1,
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_nothing_is_compiled_after_the_first_step(data):
    traces = []

    def loss(model, batch, key, weights):
        traces.append(1)
        return weights["scale"] * _loss(model, batch, key)

    schedule = optax.linear_schedule(1.0, 0.0, 12)
    result = _fit(data, 12, loss, weights={"scale": schedule}, log_every=1)
    assert len(traces) == 1  # three epochs
    assert result.history[-1]["loss"] < 0.2 * result.history[0]["loss"]


def test_accumulation_is_the_whole_batch(data):
    whole = _fit(data, 4, _loss)
    parts = _fit(data, 4, _loss, accumulate=4)
    for x, y in zip(
        jax.tree.leaves(whole.state.params),
        jax.tree.leaves(parts.state.params),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_lower_precision_keeps_full_parameters(data):
    seen = []

    def loss(model, batch, key):
        seen.append({x.dtype for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))})
        return _loss(model, batch, key)

    result = _fit(data, 2, loss, compute_dtype=jnp.bfloat16)
    assert seen[0] == {jnp.dtype(jnp.bfloat16)}
    leaves = jax.tree.leaves(result.state.params)
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}


def test_the_users_model_is_left_alone(data):
    model = _model()
    before = [np.array(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))]
    key = jax.random.key(0)
    fit(model, _loss, Batches(data, BATCH), optax.sgd(0.1), steps=1, key=key)
    after = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


# What goes wrong ----------------------------------------------------------------------


def _explodes(at):
    """A loss that is not a number from one batch of a numbered stream."""
    base = _loss

    def loss(model, batch, key):
        *pair, number = batch
        return base(model, pair, key) + jnp.where(number == at, jnp.nan, 0.0)

    return loss


def _numbered(data):
    return lambda i: (data[0][:BATCH], data[1][:BATCH], np.int32(i))


def _run(data, nan, steps=6):
    return fit(
        _model(),
        _explodes(2),
        _numbered(data),
        optax.adam(1e-2),
        steps=steps,
        key=jax.random.key(0),
        log_every=3,
        nan=nan,
    )


def test_nan_raises(data):
    with pytest.raises(FloatingPointError, match="Step 2 gave"):
        _run(data, "raise")


def test_nan_stops_at_the_last_good_state(data):
    result, good = _run(data, "stop"), _run(data, "stop", steps=2)
    assert result.reason == "not_finite"
    assert _same(result.state.params, good.state.params)
    assert _same(result.state.opt_state, good.state.opt_state)


def test_nan_is_skipped(data):
    result = _run(data, "skip")
    assert int(result.state.bad_steps) == 1
    assert result.history[-1]["bad_steps"] == 1
    assert np.isfinite(result.history[-1]["loss"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"nan": "ignore"}, '`nan` must be "raise"'),
        ({"accumulate": 0}, "`accumulate` must be an integer"),
        ({"accumulate": 3}, "multiple of it; got 16 examples"),
        ({"compute_dtype": jnp.float16}, "bfloat16"),
        ({"compute_dtype": jnp.int32}, "floating-point dtype"),
        ({"log_every": 0}, "`log_every` must be at least 1"),
        ({"evaluate_every": 3}, "goes with `evaluate"),
    ],
)
def test_bad_arguments(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        _fit(data, 1, **kwargs)


def test_arrays_alone_are_refused(data):
    with pytest.raises(TypeError, match=r"write `data=pathax\.training\.Batches"):
        fit(_model(), _loss, data, optax.sgd(0.1), steps=1, key=jax.random.key(0))


# Reports ------------------------------------------------------------------------------


def test_metrics_evaluation_and_logs(data, tmp_path):
    path = tmp_path / "runs" / "log.jsonl"

    def loss(model, batch, key):
        value = _loss(model, batch, key)
        return value, {"root": jnp.sqrt(value)}

    def evaluate(model):
        return {"error": jnp.abs(_residual(model, data, None)).max()}

    seen = []
    result = _fit(
        data,
        5,
        loss,
        has_aux=True,
        evaluate=evaluate,
        evaluate_every=4,
        log=[JSONLines(path), lambda step, metrics: seen.append(step)],
    )
    assert seen == [2, 4, 5]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == result.history
    assert ["error" in line for line in lines] == [False, True, True]
    assert lines[0]["root"] == pytest.approx(lines[0]["loss"] ** 0.5, rel=1e-5)


def test_early_stopping(data):
    stop = EarlyStopping("loss", patience=2, min_delta=10.0)
    result = _fit(data, 100, early_stopping=stop, log_every=1)
    assert (result.reason, int(result.state.step)) == ("early_stop", 3)


def test_data_may_end(data):
    batches = Batches(data, BATCH, epochs=1)
    result = fit(
        _model(), _loss, batches, optax.sgd(0.1), steps=99, key=jax.random.key(0)
    )
    assert (result.reason, int(result.state.step)) == ("data", SIZE // BATCH)


def test_progress_bar(data, capsys):
    _fit(data, 4, progress=True)
    assert "4/4" in capsys.readouterr().err


# Going on -----------------------------------------------------------------------------


def test_a_resumed_run_has_the_same_bits(data, tmp_path):
    path, log = tmp_path / "run", tmp_path / "log.jsonl"
    stop = lambda: EarlyStopping("loss", patience=50)
    whole = _fit(data, 9, log_every=1)
    for steps in (4, 9):
        folder = Checkpoints(path, every=3)
        resumed = _fit(
            data,
            steps,
            log_every=1,
            checkpoints=folder,
            early_stopping=stop(),
            log=JSONLines(log),
        )
    _assert_equal(whole, resumed)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == whole.history
    assert not _same(whole.state.params, _fit(data, 8).state.params)


def test_another_model_does_not_fit_the_checkpoint(data, tmp_path):
    _fit(data, 1, checkpoints=Checkpoints(tmp_path / "run"))
    with pytest.raises(ValueError, match="holds another state"):
        _fit(
            data,
            2,
            optimizer=optax.sgd(0.1, momentum=0.9),
            checkpoints=Checkpoints(tmp_path / "run"),
        )


def test_a_bad_step_is_not_what_is_gone_on_from(data, tmp_path):
    folder = tmp_path / "run"
    kwargs = {"key": jax.random.key(0), "log_every": 6, "steps": 6}
    arguments = (_model(), _explodes(2), _numbered(data), optax.adam(1e-2))
    with pytest.raises(FloatingPointError):
        fit(*arguments, checkpoints=Checkpoints(folder, every=1), **kwargs)
    assert Checkpoints(folder).latest() == 2


@pytest.mark.parametrize("parts", [2, 8])
def test_many_devices_give_the_same_numbers(data, devices, parts):
    """To rounding: a sum over devices is taken in another order."""
    mesh = jax.sharding.Mesh(devices.devices[:parts], ("data",))
    one, many = _fit(data, 6, _loss), _fit(data, 6, _loss, mesh=mesh)
    for x, y in zip(
        jax.tree.leaves(one.state.params),
        jax.tree.leaves(many.state.params),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_batches_must_divide_over_devices(data, devices):
    with pytest.raises(ValueError, match="multiple of their number"):
        fit(
            _model(),
            _loss,
            Batches(data, 12),
            optax.sgd(0.1),
            steps=1,
            key=jax.random.key(0),
            mesh=devices,
        )
