"""The training loop."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._checkpoints import Checkpoints
from ._data import as_source
from ._metrics import EarlyStopping, plain
from ._step import TrainState, Weight, init_state, train_step


class FitResult(NamedTuple):
    """What [`pathax.training.fit`][] returns.

    **Attributes:**

    - `model`: the trained model.
    - `state`: the [`pathax.training.TrainState`][] it ends with.
    - `history`: one dictionary a report of this run, with `step` and the metrics.
    - `reason`: why it ended: `"steps"`, `"data"` (no more of it), `"early_stop"` or
      `"not_finite"`.
    """

    model: PyTree
    state: TrainState
    history: list[dict[str, Any]]
    reason: str


Log = Callable[[int, Mapping[str, Any]], Any]


def fit(
    model: PyTree,
    loss: Callable[..., Any],
    data: Any,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    steps: int,
    key: PRNGKeyArray,
    predict: Callable[..., PyTree] | None = None,
    residual: Callable[..., Array] | None = None,
    has_aux: bool = False,
    weights: Mapping[str, Weight] | None = None,
    accumulate: int = 1,
    compute_dtype: Any = None,
    nan: str = "raise",
    evaluate: Callable[[PyTree], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    log: Log | Iterable[Log] = (),
    log_every: int = 100,
    early_stopping: EarlyStopping | None = None,
    checkpoints: Checkpoints | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Train a model with any Optax transformation, ours or Optax's own.

    One compiled step takes the value, the gradient and whatever else the optimizer
    asks for (see [`pathax.optimizers.extras`][]), and updates the parameters. The rest
    is plain Python around it. A run that is killed and started again with the same
    arguments goes on from its last checkpoint and ends with the same bits.

    **Arguments:**

    - `model`: an Equinox module, or any tree of arrays. For optimizers that need
      statistics of layers, pass it through `pathax.curvature.kron.instrument` first.
    - `loss`: `loss(model, batch, key)`, a real scalar, the mean over the batch; with
      `weights` it is `loss(model, batch, key, weights)`.
    - `data`: [`pathax.training.Batches`][], a function from the number of a step to a
      batch, or an iterable of batches, which is started again at its end if it can be.
      To resume, an iterable is run through up to the place; the iterators of Grain
      restore their own state.
    - `optimizer`: an Optax transformation.
    - `steps`: how many in all, those before a resume included.
    - `key`: random key of the run; each step's is made from it.
    - `predict`, `residual`: `predict(model, batch, key)` and `residual(model, batch,
      key)`, for optimizers that need outputs or residuals.
    - `has_aux`: the loss returns a pair of the scalar and a dictionary of scalars,
      which are reported.
    - `weights`: by name, a number, an Optax schedule, or a weight that sets itself,
      such as [`pathax.regularizers.DualAscent`][]. The loss gets their values at each
      step, so a weight may change without anything being compiled again.
    - `accumulate`: take the batch in so many parts, one after another, with the memory
      of one part; the forward pass is then computed twice.
    - `compute_dtype`: dtype that parameters and batches are cast to for the loss, e.g.
      `jax.numpy.bfloat16`. Parameters and the optimizer keep theirs.
    - `nan`: what happens after a step whose value, gradient or update isn't finite. No
      such step changes the parameters. `"raise"` an error at the next report, `"stop"`
      and return the last good state, or `"skip"` and go on, counting.
    - `evaluate`: `evaluate(model)`, a dictionary of numbers to report.
    - `evaluate_every`: steps between evaluations; by default `log_every`.
    - `log`: callables `log(step, metrics)`, such as [`pathax.training.JSONLines`][].
    - `log_every`: steps between reports.
    - `early_stopping`: an [`pathax.training.EarlyStopping`][].
    - `checkpoints`: a [`pathax.training.Checkpoints`][]; if it has one, the run goes on
      from there.
    - `mesh`: a `jax.sharding.Mesh`. Batches are split over its first axis, parameters
      are copied to every device. With several processes each must be given the same
      arguments and the same (whole) batches.
    - `progress`: whether to show a bar; by default where the output is a terminal.

    **Returns:** a [`pathax.training.FitResult`][].

    **Raises:** `FloatingPointError` as said under `nan`, `ValueError` and `TypeError`
    for arguments that don't fit.

    **Cost:** per step that of the optimizer, plus a comparison and a selection per
    parameter to catch what isn't finite.

    **Example:**

    ```python
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import optax
    >>> import pathax as px
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
    >>> def loss(model, batch, key):
    ...     x, y = batch
    ...     return jnp.mean((model["slope"] * x - y) ** 2)
    >>> result = px.training.fit(
    ...     {"slope": jnp.zeros(())},
    ...     loss,
    ...     px.training.Batches((x, 3 * x), batch_size=32),
    ...     optax.adam(0.3),
    ...     steps=200,
    ...     key=jax.random.key(0),
    ... )
    >>> print(f"{result.model['slope']:.3f}")
    3.000

    ```
    """
    _check(steps, log_every, evaluate, evaluate_every)
    source, place = as_source(data), _Placement(mesh)
    step = train_step(
        model,
        loss,
        optimizer,
        predict=predict,
        residual=residual,
        has_aux=has_aux,
        weights=weights,
        accumulate=accumulate,
        compute_dtype=compute_dtype,
        nan=nan,
    )
    reports = _Reports(
        log, log_every, evaluate, evaluate_every or log_every, steps, early_stopping
    )
    state = place.everywhere(init_state(model, optimizer, key, weights))
    state = _resume(state, source, reports, checkpoints)
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    compiled = jax.jit(step, donate_argnums=0)
    done, reason = int(state.step), "steps"

    def save(step, state, *, final):
        if checkpoints is not None and (final or step % checkpoints.every == 0):
            _save(checkpoints, step, state, source, reports, nan)

    with _Bar(done, steps, progress) as bar:
        while done < steps:
            try:
                batch = source.next()
            except StopIteration:
                reason = "data"
                break
            state, metrics = compiled(state, place.batch(batch))
            done += 1
            stopped = False
            if reports.due(done):
                whole = lambda state=state: eqx.combine(state.params, static)
                _raise_if_bad(state, nan)
                stopped = reports.take(done, metrics, state, whole)
            bar.advance(reports.last)
            if nan == "stop" and reports.due(done) and int(state.bad_steps):
                reason = "not_finite"
                break
            if stopped:
                reason = "early_stop"
                break
            save(done, state, final=False)
    save(done, state, final=True)
    _raise_if_bad(state, nan)
    return FitResult(eqx.combine(state.params, static), state, reports.history, reason)


def _check(steps: int, log_every: int, evaluate: Any, every: int | None) -> None:
    if steps < 0 or log_every < 1:
        raise ValueError(
            "`steps` must not be negative and `log_every` must be at least 1; got "
            f"{steps} and {log_every}."
        )
    if every is not None and (evaluate is None or every < 1):
        raise ValueError(
            "`evaluate_every` must be at least 1 and goes with `evaluate=...`; got "
            f"{every} and {evaluate}."
        )


def _raise_if_bad(state: TrainState, nan: str) -> None:
    if nan == "raise" and int(state.bad_steps):
        raise FloatingPointError(
            f"Step {int(state.first_bad)} gave a value, a gradient or an update that "
            "is not finite. The parameters are those before it. Lower the learning "
            'rate or clip gradients; `nan="skip"` leaves such steps out, `nan="stop"` '
            "returns the last good state; `jax.config.update('jax_debug_nans', True)` "
            "finds the operation."
        )


# Where arrays live ------------------------------------------------------------------


class _Placement:
    """Puts state and batches on the devices of a mesh, in one process or in many."""

    def __init__(self, mesh: jax.sharding.Mesh | None):
        self.mesh = mesh
        if mesh is not None:
            spec = jax.sharding.PartitionSpec
            self.split = jax.sharding.NamedSharding(mesh, spec(mesh.axis_names[0]))
            self.copied = jax.sharding.NamedSharding(mesh, spec())
            self.parts = mesh.shape[mesh.axis_names[0]]

    def batch(self, batch: PyTree) -> PyTree:
        """The batch, split along its leading axis."""
        if self.mesh is None:
            return batch
        return jax.tree.map(self._split, batch)

    def everywhere(self, tree: PyTree) -> PyTree:
        """The tree, whole on every device."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: _put(x, self.copied), tree)

    def _split(self, x: Any) -> Array:
        shape = np.shape(x)
        if not shape:
            return _put(x, self.copied)
        if shape[0] % self.parts:
            raise ValueError(
                f"A batch of {shape[0]} examples can't be split over {self.parts} "
                "devices: choose a batch size that is a multiple of their number."
            )
        return _put(x, self.split)


def _put(x: Any, sharding: jax.sharding.Sharding) -> Array:
    """The array with that sharding; each process holds all of it to begin with."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(
            _put(jax.random.key_data(x), sharding), impl=impl
        )
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])


# Reports and checkpoints ------------------------------------------------------------


class _Reports:
    """Says what happens, to the history and to the callables, and when to stop."""

    def __init__(self, log, log_every, evaluate, evaluate_every, steps, early_stopping):
        self.logs = (log,) if callable(log) else tuple(log)
        self.every, self.steps = log_every, steps
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.early_stopping = early_stopping
        self.history: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        last = step == self.steps
        evaluated = self.evaluate is not None and step % self.evaluate_every == 0
        return last or evaluated or step % self.every == 0

    def take(self, step, metrics, state, model) -> bool:
        """Report; whether to stop."""
        found = dict(metrics)
        if int(state.bad_steps):
            found["bad_steps"] = int(state.bad_steps)
        last = step == self.steps
        if self.evaluate is not None and (last or step % self.evaluate_every == 0):
            found |= self.evaluate(model())
        self.last = plain(found)
        self.history.append({"step": step, **self.last})
        if jax.process_index() == 0:
            for log in self.logs:
                log(step, self.last)
        stop = self.early_stopping
        return stop is not None and stop.update(self.last)

    def resume(self, step: int, notes: Mapping[str, Any]) -> None:
        if self.early_stopping is not None and notes.get("early_stopping"):
            self.early_stopping.restore(notes["early_stopping"])
        for log in self.logs:
            if jax.process_index() == 0 and hasattr(log, "resume"):
                log.resume(step)

    def notes(self) -> dict[str, Any]:
        stop = self.early_stopping
        return {"early_stopping": None if stop is None else stop.state()}


def _resume(state, source, reports, checkpoints: Checkpoints | None) -> TrainState:
    if checkpoints is None or checkpoints.latest() is None:
        reports.resume(0, {})
        return state
    state, notes = checkpoints.restore(state)
    source.seek(notes["data"])
    reports.resume(int(state.step), notes)
    return state


def _save(checkpoints, step, state, source, reports, nan: str) -> None:
    # A run that is stuck after a bad step must go on from before it.
    stuck = nan != "skip" and int(state.bad_steps)
    if checkpoints.latest() != step and not stuck:
        checkpoints.save(step, state, {"data": source.position(), **reports.notes()})


class _Bar:
    """A progress bar, if there is a terminal (or one is asked for) and tqdm."""

    def __init__(self, done: int, steps: int, progress: bool | None):
        self.bar = None
        if jax.process_index() or progress is False:
            return
        if progress is None and not sys.stderr.isatty():
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            if progress:
                raise ImportError(
                    "A progress bar needs tqdm; write `pip install 'pathax[train]'`, "
                    "or `progress=False`."
                ) from None
            return
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def advance(self, metrics: Mapping[str, Any]) -> None:
        if self.bar is None:
            return
        if "loss" in metrics:
            self.bar.set_postfix(loss=metrics["loss"], refresh=False)
        self.bar.update()
