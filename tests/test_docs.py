"""The documentation is complete and true: every name described, every example run."""

import ast
import doctest
import importlib
import inspect
import math
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import pathax


ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FOLDERS = [
    name
    for name in pathax.__all__
    if isinstance(getattr(pathax, name), types.ModuleType)
]


def _names(module: str) -> Iterator[tuple[str, str]]:
    """The public names of a folder, and those of folders inside it."""
    folder = importlib.import_module(f"pathax.{module}")
    for name in folder.__all__:
        yield module, name
        if isinstance(getattr(folder, name), types.ModuleType):
            yield from _names(f"{module}.{name}")


PUBLIC = [pair for folder in FOLDERS for pair in _names(folder)]

# Heads that the docstring of each kind of public object must have. CONTRIBUTING.md
# holds the template.
CLASS_HEADS = (
    "Arguments|Attributes",
    "Raises",
    "Cost",
    "Gradients",
    "Precision",
    "Reference",
    "Example",
)
RECORD_HEADS = ("Attributes",)
FUNCTION_HEADS = ("Arguments", "Returns", "Example")


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Examples run under JAX's own defaults, not under the suite's strictness."""
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, jax.numpy_rank_promotion("allow"):
        yield


# Public names -----------------------------------------------------------------------


def _is_record(cls: type) -> bool:
    """Whether a class only holds data: it defines no public method or property."""
    own = {k for k in vars(cls) if not k.startswith("_")}
    fields = set(getattr(cls, "__dataclass_fields__", ()))
    return own <= fields | set(getattr(cls, "_fields", ()))


def _heads(obj: object) -> tuple[str, ...]:
    if not getattr(obj, "__module__", "pathax").startswith("pathax"):
        return ()  # of another library, and described in its words
    if not inspect.isclass(obj):
        return FUNCTION_HEADS if callable(obj) else ()
    if obj.__name__.startswith("Abstract") or issubclass(obj, Exception):
        return ()
    return RECORD_HEADS if _is_record(obj) else CLASS_HEADS


def _has_head(doc: str, head: str) -> bool:
    return re.search(rf"^\*\*(?:{head})[:.]\*\*", doc, flags=re.MULTILINE) is not None


@pytest.mark.parametrize(("folder", "name"), PUBLIC, ids=map(".".join, PUBLIC))
def test_public_names_are_documented(folder: str, name: str):
    obj = getattr(importlib.import_module(f"pathax.{folder}"), name)
    doc = inspect.cleandoc(obj.__doc__ or "")
    summary = doc.split("\n\n")[0]
    assert summary.endswith("."), f"starts with one sentence, got {summary!r}"
    missing = [head for head in _heads(obj) if not _has_head(doc, head)]
    assert not missing, f"write {', '.join(f'**{head}:**' for head in missing)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_have_their_pages(folder: str):
    """One directive lists all of `__all__`, so the page cannot fall behind the code."""
    module = importlib.import_module(f"pathax.{folder}")
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    assert inspect.getdoc(module)
    page = (ROOT / "docs" / "api" / f"{folder}.md").read_text()
    assert re.search(rf"^::: pathax\.{folder}$", page, flags=re.MULTILINE)
    assert (ROOT / "docs" / "theory" / f"{folder}.md").is_file()


# Examples in docstrings -------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?")


class NumberChecker(doctest.OutputChecker):
    """Compares decimal fractions as numbers, the rest as text without its spacing."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        wanted, given = (
            (_NUMBER.sub("#", re.sub(r"\s+", "", text)), _NUMBER.findall(text))
            for text in (want, got)
        )
        if wanted[0] != given[0] or len(wanted[1]) != len(given[1]):
            return False
        pairs = zip(map(float, wanted[1]), map(float, given[1]), strict=True)
        return all(math.isclose(w, g, rel_tol=1e-3, abs_tol=1e-5) for w, g in pairs)


def _docstrings(path: Path) -> Iterator[doctest.DocTest]:
    """Read from the source, so that no decorator can hide an example."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, documented) and (doc := ast.get_docstring(node)):
            name = f"{module}.{getattr(node, 'name', '')}".rstrip(".")
            line = node.body[0].lineno - 1
            # No globals: an example must import what it needs, as its reader must.
            test = doctest.DocTestParser().get_doctest(doc, {}, name, str(path), line)
            if test.examples:
                yield test


DOCTESTS = [test for path in SOURCES for test in _docstrings(path)]


@pytest.mark.parametrize("test", DOCTESTS, ids=lambda test: test.name)
def test_docstring_examples(test: doctest.DocTest):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(NumberChecker(), verbose=False, optionflags=flags)
    lines: list[str] = []
    result = runner.run(test, out=lines.append)
    assert result.failed == 0, "".join(lines)


def test_number_checker_has_power():
    checker = NumberChecker()
    assert checker.check_output(
        "Array([1.5,  2.], dtype=x)", "Array([1.50001, 2.], dtype=x)", 0
    )
    assert not checker.check_output("1.5", "1.52", 0)
    assert not checker.check_output("(2,)", "(3,)", 0)
    assert not checker.check_output("[1.0, 2.0]", "[1.0]", 0)


# Code blocks in pages ---------------------------------------------------------------

# A block is left out only if the line above it says why: `<!-- skip: reason -->`.
_BLOCK = re.compile(
    r"(?P<skip><!-- skip: .+? -->\n\s*)?^(?P<indent> *)```python[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)```",
    flags=re.MULTILINE | re.DOTALL,
)


def _blocks(text: str) -> list[tuple[int, str]]:
    """Line number and text of each block that runs."""
    return [
        (text.count("\n", 0, match.start("code")), textwrap.dedent(match["code"]))
        for match in _BLOCK.finditer(text)
        if not match["skip"]
    ]


def _page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "path", [p for p in PAGES if _blocks(p.read_text())], ids=_page_name
)
def test_blocks_of_a_page(path: Path, tmp_path, monkeypatch):
    """The blocks of one page run in order and share their names."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, code in _blocks(path.read_text()):
        # Blank lines in front make tracebacks point at the page's own lines.
        exec(compile("\n" * line + code, _page_name(path), "exec"), names)


def test_blocks_are_found():
    text = "a\n```python\nx = 1\n```\n<!-- skip: why -->\n```python\ny = 2\n```\n"
    assert _blocks(text) == [(2, "x = 1\n")]


@pytest.mark.parametrize("path", PAGES, ids=_page_name)
def test_links_between_pages(path: Path):
    """Relative links outside the site's own pages; mkdocs checks those inside."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [t for t in targets if "://" not in t and not t.startswith("mailto:")]
    # Generated pages are included one level up, which their links count from.
    folder = path.parent.parent if path.parent.name == "generated" else path.parent
    missing = [t for t in local if not (folder / t).exists()]
    assert not missing, missing
