"""What every optimizer promises, ours and those of Optax under our roof.

Most promises are about shapes, types and structures, and are checked without compiling
anything. The others share one compiled step a member.
"""

import contextlib
import dataclasses
import functools
import inspect
import pickle
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_members import MEMBERS, QUADRATIC, QUICK, STEPS, VALLEY, Member, Problem

import pathax as px


@functools.cache
def _problem(member: Member) -> Problem:
    return Problem(member)


@contextlib.contextmanager
def _as_written(member: Member) -> Iterator[None]:
    """Ours run under the suite's strictness, which Optax's own code does not bear."""
    if member.strict:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(params=MEMBERS, ids=lambda member: member.name)
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    with _as_written(request.param):
        yield _problem(request.param)


def _skip_unless(flag: bool, why: str) -> None:
    if not flag:
        pytest.skip(why)


def _avals(tree: Any) -> Any:
    """Shapes, types and weak types of all leaves, with the structure."""
    leaves, treedef = jax.tree.flatten(tree)
    shaped = [jax.typeof(x) if isinstance(x, jax.Array) else x for x in leaves]
    return treedef, [(x.shape, x.dtype, x.weak_type) for x in shaped]


def _abstract_update(problem: Problem, params: Any, tx: Any = None) -> tuple:
    """Gradients, state, updates and new state of one step, as shapes."""
    tx = problem.tx if tx is None else tx

    def run(params, batch):
        grads, extra = problem.extras(params, batch, tx)
        state = tx.init(params)
        return grads, state, *tx.update(grads, state, params, **extra)

    return jax.eval_shape(run, params, QUADRATIC)


def _equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _close(a: Any, b: Any, tolerance: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(1.0, float(np.abs(y).max(initial=0)))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


# Completeness -----------------------------------------------------------------------

# Public functions that make no transformation, and building blocks that the
# transformations above are made of.
NO_MEMBERS = {"extras", "inject", "needs"}


def test_every_public_optimizer_is_a_member():
    functions = {
        name
        for name in px.optimizers.__all__
        if not inspect.isclass(getattr(px.optimizers, name))
    }
    covered = {name for member in MEMBERS for name in member.covers}
    assert functions - NO_MEMBERS - covered == set()
    assert covered <= functions
    assert len({member.name for member in MEMBERS}) == len(MEMBERS)


# Shapes and types -------------------------------------------------------------------


def test_init_needs_no_values(problem):
    assert _avals(jax.eval_shape(problem.tx.init, problem.params)) == _avals(
        problem.state
    )


def test_a_step_keeps_all_types(problem):
    """So a second step does not compile again, and a loop can carry the state."""
    _skip_unless(problem.member.stable_types, "Optax's weak types change")
    grads, before, updates, after = _abstract_update(problem, problem.params)
    assert _avals(before) == _avals(after)
    assert jax.tree.structure(updates) == jax.tree.structure(problem.params)
    shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert shapes(updates) == shapes(grads)


def test_second_update_does_not_compile_again(problem):
    _skip_unless(problem.member.stable_types, "Optax's weak types change")
    params, state, _ = problem.compiled(problem.params, problem.state, QUADRATIC)
    problem.compiled(params, state, VALLEY)
    assert problem.traces == 1


def test_half_precision(problem):
    """bfloat16 parameters get such updates; what is kept does not change its type."""
    _skip_unless(problem.member.half, "Optax's own state changes type")
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    def run(params, batch):
        grads, extra = problem.extras(params, batch)
        state = problem.tx.init(params)
        return grads, state, *problem.tx.update(grads, state, params, **extra)

    grads, before, updates, after = jax.eval_shape(
        run, half(problem.params), half(QUADRATIC)
    )
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    assert _avals(before) == _avals(after)


def test_curvature_is_kept_in_single_precision(problem):
    """What adds up over steps has no fewer digits than float32."""
    _skip_unless(problem.member.ours, "ours")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params)
    state = jax.eval_shape(problem.tx.init, half)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    short = [jax.tree_util.keystr(p) for p, x in leaves if x.dtype == jnp.bfloat16]
    # Means of gradients follow Optax: `mu_dtype`, by default that of the parameters.
    allowed = re.compile(r"\.(mu|trace|grad)\b")
    assert [path for path in short if not allowed.search(path)] == []


def test_no_leaves_and_empty_leaves(problem):
    _skip_unless(not problem.member.layers and problem.member.ours, "ours, on trees")
    params = {**problem.params, "empty": jnp.zeros((0, 2))}
    _, before, updates, after = _abstract_update(problem, params)
    assert updates["empty"].shape == (0, 2)
    assert updates["none"] is None
    assert _avals(before) == _avals(after)


def test_nothing_to_train(problem):
    """A group of parameters may be empty, as in `optax.multi_transform`."""
    _skip_unless(not problem.member.layers and problem.member.ours, "ours, on trees")
    tx = optax.masked(problem.tx, lambda params: jax.tree.map(lambda _: False, params))
    grads, before, updates, after = _abstract_update(problem, problem.params, tx)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    assert _avals(before) == _avals(after)


# Optax's tools ----------------------------------------------------------------------


def test_map_over_params_in_the_state(problem):
    """Every tree of the parameters' structure is found, as sharding rules need it."""
    _skip_unless(problem.member.maps_params, "its init asks for leaves")
    state = problem.state
    names = [jax.tree.map(lambda x: 1.0, problem.params)]
    names = names if problem.member.mirrors else []
    found = []

    def visit(leaf, *name):
        found.append(name)
        return leaf

    _equal(optax.tree.map_params(problem.tx, visit, state, *names), state)
    if not names:
        return
    number = len(jax.tree.leaves(problem.params))
    assert len(found) % number == 0


def test_inject_hyperparams(problem):
    member = problem.member
    _skip_unless(member.injects, "its options are transformations")
    keywords = {"static_args": member.static} if member.static else {}
    tx = px.optimizers.inject(member.factory, **keywords)(**member.options)
    _, before, updates, after = _abstract_update(problem, problem.params, tx)
    assert _avals(before) == _avals(after)
    plain = _abstract_update(problem, problem.params)[2]
    assert _avals(updates) == _avals(plain)
    numeric = {k for k, v in member.options.items() if isinstance(v, float)}
    schedules = {k for k in member.options if k == "learning_rate"}
    assert numeric | schedules <= set(before.hyperparams)


def test_multi_transform(problem):
    """One block of the parameters each; the objective sees all of them."""
    _skip_unless(problem.member.masks, "it asks for all parameters")
    # A function, since Optax would call a tree that is an Equinox module.
    labels = lambda p: jax.tree.map(lambda x: "sgd" if x.ndim == 1 else "ours", p)
    tx = optax.multi_transform({"ours": problem.tx, "sgd": optax.sgd(0.1)}, labels)
    _, before, updates, after = _abstract_update(problem, problem.params, tx)
    assert _avals(before) == _avals(after)
    assert jax.tree.structure(updates) == jax.tree.structure(problem.params)


def test_multi_steps(problem):
    _skip_unless(problem.member.stable_types, "Optax's weak types change")
    tx = optax.MultiSteps(problem.tx, 2)
    with jax.numpy_dtype_promotion("standard"):  # of Optax's own means
        _, before, _, after = _abstract_update(problem, problem.params, tx)
    kept = lambda state: _avals(state.inner_opt_state)
    assert kept(before) == kept(after)


def test_masked_is_the_problem_of_the_other_block(problem):
    """A frozen bias is a constant of the loss, curvature included."""
    member = problem.member
    _skip_unless(member.masks, "it asks for all parameters")
    mask = jax.tree.map(lambda x: x.ndim == 2, problem.params)
    masked = optax.masked(problem.tx, lambda _: mask)

    def run(params, batch):
        grads, extra = problem.extras(params, batch, masked)
        updates, _ = masked.update(grads, masked.init(params), params, **extra)
        outside = jax.tree.map(
            lambda u, g, inside: jnp.zeros(()) if inside else jnp.max(jnp.abs(u - g)),
            updates,
            grads,
            mask,
        )
        if member.layers:
            return updates, updates, outside
        # The same with the bias closed over.
        bias = params["b"]
        alone = {k: v for k, v in params.items() if k != "b"}
        full = lambda p: {**p, "b": bias}
        prepare = px.optimizers.extras(
            problem.tx,
            lambda p, batch: problem.loss(full(p), batch),
            predict=lambda p, batch: problem.predict(full(p), batch),
            residual=lambda p, batch: problem.residual(full(p), batch),
        )
        _, grads, extra = prepare(alone, batch)
        direct, _ = problem.tx.update(grads, problem.tx.init(alone), alone, **extra)
        same = {k: v for k, v in updates.items() if k != "b"}
        return same, direct, outside

    masked_updates, direct, outside = jax.jit(run, compiler_options=QUICK)(
        problem.params, VALLEY
    )
    _close(masked_updates, direct, 1e-5)
    assert max(float(x) for x in jax.tree.leaves(outside)) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(masked_updates))


def test_apply_if_finite(problem):
    """A hundred gradients of NaN leave the state as it was."""
    tx = optax.apply_if_finite(problem.tx, max_consecutive_errors=200)

    def run(params, state, batch):
        _, extra = problem.extras(params, batch)
        nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
        step = lambda _, state: tx.update(nan, state, params, **extra)[1]
        return jax.lax.fori_loop(0, 100, step, state)

    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(run, compiler_options=QUICK)(
            problem.params, tx.init(problem.params), QUADRATIC
        )
    assert int(state.total_notfinite) == 100
    _equal(state.inner_state, problem.state)


# Runs -------------------------------------------------------------------------------


@functools.cache
def _runs(member: Member) -> tuple:
    """`STEPS` steps of both problems at once: a scan under a vmap."""
    problem = _problem(member)

    def run(params, state, batch):
        def one(carry, _):
            params, state, value = problem.step(*carry, batch)
            return (params, state), (params, value)

        (params, _), out = jax.lax.scan(one, (params, state), length=STEPS)
        return *out, problem.loss(params, batch)

    both = jax.tree.map(lambda *x: jnp.stack(x), QUADRATIC, VALLEY)
    run = jax.vmap(run, in_axes=(None, None, 0))
    return jax.jit(run, compiler_options=QUICK)(problem.params, problem.state, both)


@pytest.mark.parametrize("which", [0, 1], ids=["quadratic", "valley"])
def test_reaches_the_optimum(problem, which):
    _, values, last = _runs(problem.member)
    limit = (problem.member.quadratic, problem.member.valley)[which]
    assert float(last[which]) <= limit * float(values[which, 0])


def test_scan_and_vmap_are_the_loop(problem):
    along, values, _ = _runs(problem.member)
    for which, batch in enumerate((QUADRATIC, VALLEY)):
        params, state = problem.params, problem.state
        for step in range(3):
            params, state, value = problem.compiled(params, state, batch)
            _close(value, values[which, step], 1e-4)
            same = jax.tree.map(lambda x: x[which, step], along)  # noqa: B023
            _close(params, same, 1e-3)


def _after_two_steps(problem: Problem) -> tuple:
    params, state = problem.params, problem.state
    for _ in range(2):
        params, state, _ = problem.compiled(params, state, VALLEY)
    return params, state


def test_pickling(problem, tmp_path):
    """The next step from a state that went through a file is the same to the bit."""
    params, state = _after_two_steps(problem)
    expected = problem.compiled(params, state, VALLEY)
    _equal(
        problem.compiled(*pickle.loads(pickle.dumps((params, state))), VALLEY), expected
    )
    leaves, treedef = jax.tree.flatten((params, state))
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        loaded = treedef.unflatten([jnp.asarray(saved[name]) for name in saved.files])
    _equal(problem.compiled(*loaded, VALLEY), expected)


def test_checkpoints(problem, tmp_path):
    """Orbax brings back every bit."""
    _skip_unless(problem.member.orbax, "Orbax refuses empty arrays")
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="[train] not installed")
    params, state = _after_two_steps(problem)
    tree = {"params": params, "state": state}
    with checkpoint.StandardCheckpointer() as files:
        files.save(tmp_path / "step", tree)
        files.wait_until_finished()
        loaded = files.restore(tmp_path / "step", jax.eval_shape(lambda: tree))
    assert _avals(loaded) == _avals(tree)
    _equal(loaded, tree)


def test_two_devices_are_one(problem, devices):
    """A batch over two devices gives the steps of the whole batch on one."""
    mesh = jax.sharding.Mesh(devices.devices[:2], ("batch",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda x: jax.device_put(x, spread if x.ndim else copied)
    params, state = jax.device_put((problem.params, problem.state), copied)
    step = jax.jit(problem.step, compiler_options=QUICK)
    params, state, value = step(params, state, jax.tree.map(place, VALLEY))
    expected = problem.compiled(problem.params, problem.state, VALLEY)
    _close((params, value), (expected[0], expected[2]), 1e-4)


# Complex parameters -----------------------------------------------------------------


def test_complex_parameters(problem):
    """Gradients of complex leaves lead downhill, and types are kept."""
    member = problem.member
    _skip_unless(member.complex and not member.layers, "real parameters alone")
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(
        rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64
    )
    a, best = draw(6, 3), draw(3, 2)
    target = a @ best
    params = {"b": jnp.zeros(2, jnp.float32), "w": best + draw(3, 2) / 4}

    def predict(p):
        z = a @ p["w"] + p["b"].astype(jnp.complex64)[None, :]
        return jnp.stack([z.real, z.imag], axis=-1)

    def residual(p):
        parts = jnp.stack([target.real, target.imag], axis=-1)
        return (predict(p) - parts).reshape(-1)

    loss = lambda p: jnp.mean(residual(p) ** 2) / 2
    prepare = px.optimizers.extras(problem.tx, loss, predict=predict, residual=residual)

    def run(params):
        def one(carry, _):
            params, state = carry
            value, grads, extra = prepare(params)
            updates, state = problem.tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), value

        start = (params, problem.tx.init(params))
        return jax.lax.scan(one, start, length=STEPS)[1]

    values = jax.jit(run, compiler_options=QUICK)(params)
    assert np.isfinite(values).all()
    assert float(values[-1]) <= 0.2 * float(values[0])


# Extra arguments --------------------------------------------------------------------


def test_what_it_needs_is_found(problem):
    assert px.optimizers.needs(problem.tx, problem.params) == problem.member.needs


def test_a_missing_extra_is_named(problem):
    member = problem.member
    _skip_unless(member.ours, "Optax has errors of its own")
    for name in sorted(member.needs):
        with pytest.raises(px.optimizers.MissingExtraError) as caught:
            _update_without(problem, {name} | _twins(name))
        assert caught.value.name == name
        assert f"`{name}`" in str(caught.value)
        assert f"{name}=" in str(caught.value)


def _twins(name: str) -> set[str]:
    """Extras that stand in for one another."""
    return {
        "obj_fn": {"value_fn"},
        "predict_fn": {"residual_fn"},
    }.get(name, set())


def _update_without(problem: Problem, names: set[str]) -> None:
    def run(params, batch):
        grads, extra = problem.extras(params, batch)
        extra = {k: v for k, v in extra.items() if k not in names}
        return problem.tx.update(grads, problem.tx.init(params), params, **extra)

    jax.eval_shape(run, problem.params, QUADRATIC)


def test_unknown_extras_are_ignored(problem):
    _skip_unless(problem.member.ignores_unknown, "Optax's line searches refuse them")

    def run(params, batch):
        grads, extra = problem.extras(params, batch)
        extra = {**extra, "of_somebody_else": object()}
        return problem.tx.update(grads, problem.tx.init(params), params, **extra)

    updates, _ = jax.eval_shape(run, problem.params, QUADRATIC)
    assert jax.tree.structure(updates) == jax.tree.structure(problem.params)


# Negative controls ------------------------------------------------------------------


def _broken(update, init=None) -> Problem:
    """A member whose transformation breaks one promise."""
    base = dataclasses.replace(MEMBERS[-1], name="broken")
    problem = Problem(base)
    start = init or (lambda params: jnp.zeros((), jnp.int32))
    problem.tx = optax.GradientTransformationExtraArgs(start, update)
    problem.state = problem.tx.init(problem.params)
    return problem


def test_checks_find_what_is_broken():
    weak = lambda u, s, p=None, **e: (u, jnp.asarray(1.0) * 1)
    with pytest.raises(AssertionError):
        test_a_step_keeps_all_types(_broken(weak))
    wide = lambda u, s, p=None, **e: (
        jax.tree.map(lambda x: x.astype(jnp.float32), u),
        s,
    )
    with pytest.raises(AssertionError):
        test_half_precision(_broken(wide))
    strict = lambda u, s, p=None: (u, s)
    with pytest.raises(TypeError):
        test_unknown_extras_are_ignored(_broken(strict))
