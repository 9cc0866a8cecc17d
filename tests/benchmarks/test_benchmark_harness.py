"""The harness times, stores, resumes, grows and reports as its README says."""

import json
import types
from pathlib import Path

import jax.numpy as jnp
import pytest

import benchmarks.__main__ as command_line
from benchmarks import _front, report
from benchmarks._case import Case, Config, Contender, SkippedError
from benchmarks._harness import Options, load, run_case, run_subject, subjects
from benchmarks._record import Store, device_slug, fingerprint, slug, without_paths
from benchmarks._report import Results, number, timing_table
from benchmarks._timing import calibrate, sample, summary, time_case


CONFIG = Config(fast=True, rounds=3, min_rounds=3, sample_seconds=1e-5)


def _timed(name: str = "sum/small", size: int = 8, **kwargs) -> Case:
    def make(factor):
        return lambda x: jnp.sum(factor * x), (jnp.ones(size),)

    return Case(
        name=name,
        parameters={"size": size},
        contenders=(
            Contender("pathax", lambda: make(1.0), work=lambda out: 2.0),
            Contender("peer", lambda: make(2.0), work=lambda out: 4.0),
            Contender("empty call", lambda: (lambda x: x, (jnp.ones(size),))),
        ),
        ratios={"speedup": ("peer", "pathax")},
        overhead="empty call",
        **kwargs,
    )


def _raising(run: int) -> dict:
    raise RuntimeError("no file " + "/".join(["", "some", "where", "x.py"]))


def _merge(earlier: dict, new: dict) -> dict:
    return {"samples": earlier["samples"] + new["samples"]}


def _subject(*cases: Case) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        cases=lambda config: list(cases),
        headline=lambda results: {"cases": len(results), "third": 1 / 3},
    )


def _run(folder: Path, *cases: Case, **options) -> tuple[list[str], dict, int]:
    said: list[str] = []
    chosen = Options(folder=folder, **options)
    out = run_subject("toy", _subject(*cases), CONFIG, "cpu", chosen, said.append)
    return said, *out


def test_summary_is_ordered():
    out = summary([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (out["min"], out["median"], out["max"]) == (1.0, 3.0, 5.0)
    assert out["q1"] <= out["median"] <= out["q3"]


@pytest.mark.parametrize("in_order", [False, True])
def test_samples_count_their_calls(in_order):
    calls = []
    call = lambda: calls.append(None) or jnp.zeros(())
    assert sample(call, 5, in_order=in_order) > 0
    assert len(calls) == 5


def test_calibration_reaches_the_duration():
    call = lambda: jnp.zeros(())
    repeats = calibrate(call, 1e-4, in_order=False)
    assert repeats >= 1
    assert calibrate(call, 0.0, in_order=False) == 1


def test_timing_a_case():
    record = time_case(_timed(), CONFIG)
    assert record["rounds"] == 3
    for contender in record["contenders"].values():
        assert len(contender["times_s"]) == 3
        assert min(contender["times_s"]) > 0
        assert contender["compile_s"] > 0
    ratio = record["ratios"]["speedup"]
    pairs = zip(
        record["contenders"]["peer"]["times_s"],
        record["contenders"]["pathax"]["times_s"],
        strict=True,
    )
    assert ratio["median"] == pytest.approx(sorted(a / b for a, b in pairs)[1])
    assert ratio["per_work"] == pytest.approx(ratio["median"] / 2)
    assert "net" in ratio


def test_calls_much_shorter_than_a_sample_are_repeated():
    """Compiling one contender clears the caches that the others were compiled into."""
    config = Config(rounds=1, sample_seconds=2e-3)
    contenders = time_case(_timed(), config)["contenders"].values()
    assert min(contender["repeats"] for contender in contenders) > 1


def test_a_budget_ends_a_case_after_the_least_rounds():
    config = Config(rounds=50, min_rounds=2, budget=0.0, sample_seconds=1e-5)
    assert time_case(_timed(), config)["rounds"] == 2


def test_cases_are_checked():
    with pytest.raises(ValueError, match="either"):
        Case("x")
    contender = Contender("a", lambda: (abs, (1,)))
    with pytest.raises(ValueError, match="equal name"):
        Case("x", contenders=(contender, contender))
    with pytest.raises(ValueError, match="must compare"):
        Case("x", contenders=(contender,), ratios={"r": ("a", "b")})
    with pytest.raises(ValueError, match="must compare"):
        Case("x", contenders=(contender,), overhead="b")


def test_names_of_cases_differ(tmp_path):
    with pytest.raises(ValueError, match="must differ"):
        _run(tmp_path, _timed(), _timed())


def test_a_run_ends_with_its_headline_in_one_line(tmp_path):
    said, headline, failures = _run(tmp_path, _timed())
    assert json.loads(said[-1]) == headline == {"cases": 1, "third": 0.3333}
    assert failures == 0
    assert said[0].startswith("[1/1] sum/small: speedup")


def test_failures_are_kept_and_the_rest_runs(tmp_path, capsys):
    broken = Case("a/broken", measure=_raising)
    said, headline, failures = _run(tmp_path, broken, _timed())
    assert failures == 1
    assert headline["cases"] == 1
    assert "FAILED" in said[0]
    stored = Store(tmp_path, "cpu", "toy").cases["a/broken"]
    assert stored["error"] == "RuntimeError: no file <path>"


def test_what_is_skipped_fails_nothing_and_keeps_what_is_stored(tmp_path):
    here = [True]

    def measure(run):
        if not here[0]:
            raise SkippedError("needs a package")
        return {"value": 1.0}

    case = Case("a/needy", measure=measure)
    _run(tmp_path, case)
    here[0] = False
    said, headline, failures = _run(tmp_path, case)
    assert (failures, headline["cases"]) == (0, 0)
    assert said[0] == "[1/1] a/needy: skipped, needs a package"
    assert Store(tmp_path, "cpu", "toy").cases["a/needy"]["status"] == "ok"


def test_a_killed_run_resumes_where_it_was(tmp_path):
    runs = []

    def counted(name):
        def measure(run):
            runs.append(name)
            if name == "a/second" and len(runs) == 2:
                raise KeyboardInterrupt
            return {"value": 1.0}

        return Case(name, measure=measure)

    both = counted("a/first"), counted("a/second")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, *both, resume=True)
    _, headline, _ = _run(tmp_path, *both, resume=True)
    assert runs == ["a/first", "a/second", "a/second"]
    assert headline["cases"] == 2
    assert list((tmp_path / "cpu").glob("*.tmp")) == []


def test_without_resume_all_runs_again(tmp_path):
    runs = []
    case = Case("a/x", measure=lambda run: runs.append(run) or {"value": 1.0})
    for _ in range(2):
        _run(tmp_path, case)
    assert runs == [0, 0]


def test_a_fast_headline_takes_nothing_from_earlier_runs(tmp_path):
    _run(tmp_path, _timed("a/old"), _timed("a/new"))
    _, headline, _ = _run(tmp_path, _timed("a/old"), _timed("a/new"), pattern="*new")
    assert headline["cases"] == 1
    assert set(Store(tmp_path, "cpu", "toy").cases) == {"a/old", "a/new"}


def test_cases_that_are_no_more_are_dropped(tmp_path):
    _run(tmp_path, _timed("a/old"), _timed("a/kept"))
    _run(tmp_path, _timed("a/new"), _timed("a/kept"), resume=True)
    assert list(Store(tmp_path, "cpu", "toy").cases) == ["a/new", "a/kept"]


def test_fingerprints_follow_what_matters():
    base = fingerprint(_timed())
    assert base == fingerprint(_timed())
    assert base != fingerprint(_timed(size=9))
    assert base != fingerprint(_timed(revision=2))
    assert base != fingerprint(_timed(), fast=True)
    assert base != fingerprint(_timed(packages=("optax",)))


def test_studies_grow(tmp_path):
    case = Case("a/x", measure=lambda run: {"samples": 10**run}, merge=_merge)
    for _ in range(3):
        _run(tmp_path, case, resume=True, grow=True)
    record = Store(tmp_path, "cpu", "toy").cases["a/x"]
    assert (record["figures"]["samples"], record["runs"]) == (111, 3)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(None, _timed())[2] == 0
    assert list(tmp_path.iterdir()) == []


def test_no_pattern_matches(tmp_path):
    said, _, failures = _run(tmp_path, _timed(), pattern="nothing*")
    assert failures == 1
    assert "no case matches" in said[0]


def test_results_name_no_machine(tmp_path):
    _run(tmp_path, _timed())
    stored = json.loads((tmp_path / "cpu" / "toy.json").read_text())
    (env,) = stored["environments"].values()
    assert set(env) == {"versions", "commit", "hardware", "settings"}
    assert env["versions"]["pathax"] != "none"
    assert env["hardware"]["platform"] == "cpu"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("in " + "/".join(["", "a", "b.py"]) + ", line 3", "in <path>, line 3"),
        ("a ratio 3/4 of step/horizon", "a ratio 3/4 of step/horizon"),
    ],
)
def test_paths_are_taken_out(text, clean):
    assert without_paths(text) == clean


def test_slugs():
    assert slug("NVIDIA H200") == "nvidia-h200"
    assert device_slug() == "cpu"
    fake = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    assert device_slug(fake) == "nvidia-h200"


def test_subjects_are_found_and_unknown_ones_named():
    assert "brownian" in subjects()
    assert "report" not in subjects()
    with pytest.raises(SystemExit, match=r"no subject 'nonsense'.*brownian"):
        load("nonsense")


def test_command_line_lists_subjects(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert command_line.main([]) == 0
    assert "  brownian\n" in capsys.readouterr().out


def test_device_entry_without_accelerator_stores_nothing(capsys, tmp_path):
    parse = command_line._parser().parse_args
    assert command_line._folder(parse(["--device"]), "cpu") is None
    assert "no accelerator" in capsys.readouterr().out
    asked = parse(["--device", "--out", str(tmp_path)])
    assert command_line._folder(asked, "cpu") == tmp_path
    assert command_line._folder(parse(["--device"]), "gpu").name == "results"
    assert command_line._folder(parse(["--fast"]), "cpu").name == "tmp"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (1.5e-5, "1.50e-05"),
        (float("inf"), "inf"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_tables_quote_times_from_a_gpu_alone(tmp_path):
    _run(tmp_path, _timed())
    stored = Store(tmp_path, "cpu", "toy").data
    cpu = timing_table(Results("toy", "cpu", stored), "sum", "speedup")
    gpu = timing_table(Results("toy", "nvidia-h200", stored), "sum", "speedup")
    assert "time peer" not in cpu
    assert "time peer" in gpu


def test_report_of_a_subject(tmp_path):
    broken = Case("a/broken", measure=_raising)
    measured = Case("a/fine", measure=lambda run: {"error": 0.5})
    _run(tmp_path, broken, measured, _timed())
    page = report.render("toy", report.collect(tmp_path, "toy"), tmp_path)
    for text in ("pathax", "sum", "0.500", "failed case", "On a CPU", "2 of 2", "jax "):
        assert text in page, text


def test_report_of_a_subject_without_results(tmp_path):
    page = report.render("toy", report.collect(tmp_path, "toy"), tmp_path)
    assert "python -m benchmarks toy" in page


def test_report_command(tmp_path, capsys):
    empty = str(tmp_path / "results")
    assert report.main(["--results", empty, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks_brownian.md").exists()


def test_packages_of_a_case_are_stored(tmp_path):
    _run(tmp_path, _timed(packages=("optax",)))
    (env,) = Store(tmp_path, "cpu", "toy").data["environments"].values()
    assert env["versions"]["optax"] != "none"


def test_a_record_says_how_long_it_took():
    record = run_case(Case("a/x", measure=lambda run: {"run": run}), CONFIG)
    assert record["status"] == "ok"
    assert record["wall_s"] >= 0
    assert record["figures"] == {"run": 0}


def test_front_page_holds_what_was_measured(tmp_path):
    """What is missing is left out; the rest of the page stays as it is."""
    data = {"cases": {}, "headline": {"order_adaptive": 1.75, "order_constant": 0.5}}
    page = tmp_path / "README.md"
    page.write_text(f"before\n{_front.BEGIN}\nold\n{_front.END}\nafter\n")
    _front.write(page, {"cir": Results("cir", "cpu", data)})
    text = page.read_text()
    assert "1.75; 0.500" in text
    assert "old" not in text
    assert "Langevin" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
