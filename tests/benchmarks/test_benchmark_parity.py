"""The command that compares optimizers with their authors' code."""

from benchmarks._harness import subjects
from benchmarks.optimizers_parity.__main__ import checks, main


def test_checks_are_found_and_no_subject_of_their_own():
    assert "adahessian_sophia" in checks()
    assert "optimizers_parity" not in subjects()


def test_without_the_authors_code_nothing_is_claimed(tmp_path, capsys):
    assert main(["--official", str(tmp_path), "adahessian_sophia"]) == 1
    assert capsys.readouterr().out.startswith("skip adahessian_sophia: no ")
