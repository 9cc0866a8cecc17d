"""Rules of the house that no linter knows: who may import whom, what may inherit what.

All checks read the sources, so they hold for code that no other test runs.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pathax


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pathax"

# Folder -> folders it may import from, besides itself. Data flows down this table.
ALLOWED_IMPORTS: dict[str, set[str]] = {
    "brownian": set(),
    "solvers": {"brownian"},
    "simulation": {"brownian", "solvers"},
    "regularizers": {"brownian", "solvers"},
    "operators": set(),
    "curvature": set(),
    "optimizers": {"curvature"},
    "training": {
        "brownian",
        "curvature",
        "operators",
        "optimizers",
        "regularizers",
        "simulation",
        "solvers",
    },
}

# Modules outside their library's public API that may be used, each with its reason.
# Key: path below src/pathax, imported name.
EXCEPTIONS: dict[tuple[str, str], str] = {}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80  # docstring not counted

SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*.md", "*.toml", "*.cff", "*.yml", ".ci/run", "Makefile")
    for path in ROOT.glob(pattern)
) + sorted(
    path
    for folder in ("src", "tests", "docs", "examples", "benchmarks", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".md", ".yml", ".json", ".toml"}
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=_name(path))


def _imports(path: Path) -> Iterator[str]:
    """Full dotted names of everything that a file of the package imports."""
    package = list(path.relative_to(PACKAGE.parent).parts[:-1])
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _reached_folders(path: Path) -> set[str]:
    parts = (name.split(".") for name in _imports(path))
    return {p[1] for p in parts if p[0] == "pathax" and len(p) > 1}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_go_down_the_house(path: Path):
    inside = path.relative_to(PACKAGE).parts
    if len(inside) == 1:  # the front door re-exports every folder
        return
    folder = inside[0]
    assert folder in ALLOWED_IMPORTS, f"list {folder!r} in ALLOWED_IMPORTS"
    reached = _reached_folders(path) - {folder}
    wrong = reached - ALLOWED_IMPORTS[folder]
    assert not wrong, f"{folder} must not import {sorted(wrong)}"


def test_the_table_of_imports_has_no_cycle():
    seen: set[str] = set()
    for folder, allowed in ALLOWED_IMPORTS.items():
        assert allowed <= seen, f"{folder} imports what stands below it"
        seen.add(folder)


def _is_private(module: str) -> bool:
    first, *rest = module.split(".")
    if first in {"pathax", "__future__"}:
        return False
    hidden = any(p.startswith("_") and not p.startswith("__") for p in [first, *rest])
    unstable = module.startswith(("jaxlib", "jax.interpreters", "equinox.internal"))
    return hidden or unstable


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_public_modules_of_other_libraries(path: Path):
    inside = path.relative_to(PACKAGE).as_posix()
    used = {name for name in _imports(path) if _is_private(name)}
    excused = {module for file, module in EXCEPTIONS if file == inside}
    assert used <= excused, f"private: {sorted(used - excused)}"
    assert excused <= used, f"no longer needed: {sorted(excused - used)}"


def test_private_modules_are_recognised():
    private = ("jax._src.core", "jaxlib.xla_client", "equinox.internal.while_loop")
    public = ("jax.numpy", "equinox.Module", "pathax.brownian._tree", "numpy.linalg")
    assert all(map(_is_private, private))
    assert not any(map(_is_private, public))


def _modules() -> list:
    walk = pkgutil.walk_packages(pathax.__path__, prefix="pathax.")
    return [pathax, *(importlib.import_module(info.name) for info in walk)]


def _classes() -> set[type]:
    members = (inspect.getmembers(module, inspect.isclass) for module in _modules())
    classes = {cls for pairs in members for _, cls in pairs}
    return {cls for cls in classes if cls.__module__.startswith("pathax.")}


def _is_abstract(cls: type) -> bool:
    return cls.__name__.lstrip("_").startswith("Abstract")


def test_classes_are_abstract_or_final():
    """Whoever reads a method of a concrete class knows that this is what runs."""
    wrong = [
        f"{cls.__qualname__} inherits the concrete {base.__qualname__}"
        for cls in _classes()
        for base in cls.__mro__[1:]
        if base.__module__.startswith("pathax.") and not _is_abstract(base)
    ]
    assert not wrong, wrong


def test_abstract_classes_say_so():
    wrong = [
        cls.__qualname__
        for cls in _classes()
        if inspect.isabstract(cls) and not _is_abstract(cls)
    ]
    assert not wrong, f"must be named Abstract...: {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_are_short(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return total
    doc = node.body[0]
    return total - ((doc.end_lineno or doc.lineno) - doc.lineno + 1)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_functions_are_short(path: Path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(_tree(path)) if isinstance(n, functions)]
    long = {n.name: _code_lines(n) for n in nodes}
    assert all(lines <= MAX_FUNCTION_LINES for lines in long.values()), long


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_texts_hold_no_machine_paths(path: Path):
    folders = "|".join(["work", "root", "tmp", "home", "Users"])
    found = re.findall(rf"(?<![\w.])/(?:{folders})/[^\s\"')]*", path.read_text())
    assert not found, found
