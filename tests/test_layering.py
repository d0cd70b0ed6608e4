"""Imports point one way. What a room may import is written down here, and nothing more is allowed."""

import ast
import dataclasses
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from curvjax import records

PACKAGE = Path(__file__).parents[1] / "curvjax"

# room -> rooms that it may import. A room is a package, or a module at the top.
ALLOWED = {
    "layers": set(),
    "registry": set(),
    "storage": set(),
    "tick": set(),
    "records": {"layers", "storage"},
    "allocation": {"layers", "registry", "storage"},
    "data": set(),
    "curvature": {"layers"},
    "scores": {"allocation", "curvature", "layers", "registry"},
    "report": {"allocation", "curvature", "layers", "records", "tick"},
    "models": {"curvature", "data", "layers", "records", "registry"},
    "evaluation": {"data", "models", "tick"},
    "surgery": {"curvature", "data", "layers", "models", "records", "registry", "storage", "tick"},
    "training": {"data", "layers", "models", "registry", "surgery", "tick"},
    "interop": {"data", "evaluation", "models", "storage", "surgery", "tick"},
    "runs": {
        "allocation",
        "curvature",
        "data",
        "evaluation",
        "interop",
        "layers",
        "models",
        "records",
        "registry",
        "report",
        "scores",
        "storage",
        "surgery",
        "tick",
        "training",
    },
    "commands": {
        "allocation",
        "data",
        "interop",
        "models",
        "records",
        "report",
        "runs",
        "scores",
        "surgery",
        "training",
    },
    "verbs": {"allocation", "data", "interop", "models", "records", "runs", "scores", "surgery", "training"},
    "trials": {"allocation", "models", "records", "runs", "scores", "surgery", "verbs"},
    "testing": {"curvature", "data", "layers", "models", "records"},
    "cli": {"commands", "registry"},
    "__main__": {"cli"},
    "__init__": {"allocation", "models", "records", "runs", "surgery", "training", "trials", "verbs"},
}

# The same of the rooms within curvjax/surgery; the modules beside them serve all of these, and import none.
SURGERY = {"factoring": set(), "growing": set(), "pruning": {"factoring"}, "rounding": set(), "shrinking": {"pruning"}}

# Rooms that know arrays and callables only, so neither modules, nor data, nor files.
ARITHMETIC = {
    "curvature": {"jax", "jaxtyping", "numpy"},
    "allocation": {"jax", "jaxtyping", "numpy", "scipy"},
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

# Rooms that know records by their fields and never by the keys of their JSON.
BY_FIELDS = {"runs", "commands", "report", "verbs", "trials", "cli"}
OWN_FORM = {  # files of another form keep their own keys
    "runs/adapt.py",  # the description of an adapter's checkpoint
    "runs/evidence.py",  # seconds by field of `scores.Evidence`
    "runs/partial.py",  # lines of finished units
    "report/outcome_tables.py",  # a table of metrics
    "runs/stages.py",  # results of a run's stages
}


def keys(path: Path) -> dict[str, int]:
    """Constant strings that a file looks up, `x["name"]` or `x.get("name")`, and the lines where it does."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name: ast.expr | None = None
        if isinstance(node, ast.Subscript):
            name = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            found[name.value] = node.lineno
    return found


def field_names() -> set[str]:
    """Names of the fields of all values."""
    kinds = [kind for kind in vars(records).values() if dataclasses.is_dataclass(kind)]
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def test_only_records_knows_the_keys_of_its_json():
    known, found = field_names(), {}
    for path in FILES:
        place = path.relative_to(PACKAGE).as_posix()
        if room(path) in BY_FIELDS and (here := {name: line for name, line in keys(path).items() if name in known}):
            found[place] = here
    assert "rebuilt" in keys(PACKAGE / "runs" / "adapt.py")  # so the walk sees them
    assert found.keys() <= OWN_FORM, {place: here for place, here in found.items() if place not in OWN_FORM}


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


def test_the_rooms_of_surgery_are_in_order_too():
    used = {name: set() for name in (*SURGERY, "")}
    for path in (path for path in FILES if room(path) == "surgery" and path.parent.parent != PACKAGE):
        used[path.parent.name] |= {name.split(".")[2] for name in imported(path) if name.startswith("curvjax.surgery.")}
    for path in (PACKAGE / "surgery").glob("[!_]*.py"):
        used[""] |= {name.split(".")[2] for name in imported(path) if name.startswith("curvjax.surgery.")}
    assert {name: found & set(SURGERY) - {name} for name, found in used.items()} == SURGERY | {"": set()}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_knows_arrays_and_callables_only(name):
    roots = {module.partition(".")[0] for path in FILES if room(path) == name for module in imported(path)}
    assert roots <= ARITHMETIC[name] | PURE_STANDARD | CLOCKS_AND_THREADS | {"curvjax"}


def test_the_package_imports_neither_experiments_nor_tests():
    roots = {module.partition(".")[0] for path in FILES for module in imported(path)}
    assert not roots & {"experiments", "tests", "notebooks"}


def test_packages_only_re_export():
    for path in set(PACKAGE.rglob("__init__.py")) - {PACKAGE / "__init__.py"}:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_listing = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
            is_import = isinstance(statement, ast.ImportFrom)
            enters_all = ast.unparse(statement) == "import_all(__name__, __path__)"  # a registry's room
            assert is_docstring or is_listing or is_import or enters_all, (
                f"{path}:{statement.lineno}: {ast.unparse(statement)}"
            )
