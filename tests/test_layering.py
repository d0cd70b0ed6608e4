"""Imports point one way. What a room may import is written down here, and nothing more is allowed."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "curvjax"

# room -> rooms that it may import. A room is a package, or a module at the top.
ALLOWED = {
    "layers": set(),
    "artefacts": set(),
    "registry": set(),
    "records": {"layers"},
    "allocation": {"layers", "registry"},
    "data": set(),
    "curvature": {"layers"},
    "scores": {"curvature", "layers", "registry"},
    "report": {"allocation", "curvature", "records"},
    "models": {"curvature", "data", "layers", "records", "registry"},
    "evaluation": {"data", "models"},
    "surgery": {"data", "layers", "models"},
    "training": {"data", "models", "surgery"},
    "interop": {"data", "evaluation", "models", "surgery"},
    "runs": {
        "allocation",
        "artefacts",
        "curvature",
        "data",
        "evaluation",
        "interop",
        "layers",
        "models",
        "records",
        "report",
        "scores",
        "surgery",
        "training",
    },
    "commands": {"artefacts", "data", "models", "report", "runs", "surgery"},
    "testing": {"curvature", "data", "layers", "models", "records"},
    "cli": {"commands"},
    "__main__": {"cli"},
    "__init__": {"models"},
}

# Rooms that know arrays and callables only, so neither modules, nor data, nor files.
ARITHMETIC = {
    "curvature": {"jax", "jaxtyping", "numpy"},
    "allocation": {"jax", "jaxtyping", "numpy"},
    "scores": {"jax", "jaxtyping", "numpy"},
}
PURE_STANDARD = {
    "collections",
    "dataclasses",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "math",
    "types",
    "typing",
}
CLOCKS_AND_THREADS = {"contextlib", "queue", "threading", "time"}  # work dealt out to devices


def room(path: Path) -> str:
    """The package that holds a file, or the file itself where it lies at the top."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, inside functions and under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it in full"
            assert node.module is not None
            # `from curvjax import models` names a room as well
            names += [f"curvjax.{a.name}" for a in node.names] if node.module == "curvjax" else [node.module]
    return names


def arrows(path: Path) -> set[str]:
    """Rooms of this package that a file imports, its own left out."""
    parts = [name.split(".") for name in imported(path)]
    return {name[1] if len(name) > 1 else "__init__" for name in parts if name[0] == "curvjax"} - {room(path)}


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_its_place_in_the_order():
    assert {room(path) for path in FILES} == set(ALLOWED)


def test_the_order_has_no_cycle():
    tuple(TopologicalSorter(ALLOWED).static_order())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_points_backwards(path):
    surplus = arrows(path) - ALLOWED[room(path)]
    assert not surplus, f"{path}: {room(path)} may not import {sorted(surplus)}, only {sorted(ALLOWED[room(path)])}"


def test_no_allowed_arrow_is_unused():
    used = {name: set().union(*(arrows(path) for path in FILES if room(path) == name)) for name in ALLOWED}
    assert used == ALLOWED


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_knows_arrays_and_callables_only(name):
    roots = {module.partition(".")[0] for path in FILES if room(path) == name for module in imported(path)}
    assert roots <= ARITHMETIC[name] | PURE_STANDARD | CLOCKS_AND_THREADS | {"curvjax"}


def test_the_package_imports_neither_experiments_nor_tests():
    roots = {module.partition(".")[0] for path in FILES for module in imported(path)}
    assert not roots & {"experiments", "tests", "notebooks"}


def test_packages_only_re_export():
    for path in PACKAGE.glob("*/__init__.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_listing = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
            is_import = isinstance(statement, ast.ImportFrom)
            enters_all = ast.unparse(statement) == "import_all(__name__, __path__)"  # a registry's room
            assert is_docstring or is_listing or is_import or enters_all, (
                f"{path}:{statement.lineno}: {ast.unparse(statement)}"
            )
