"""What an experiment takes of the package is still there: they run by hand, for minutes; nothing else would tell."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def ours(path):
    """`(module, name)` of all imports from the package and from other experiments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in {"curvjax", "experiments"}:
            yield from ((node.module, alias.name) for alias in node.names)


def defined(module):
    """Names at the top of an experiment, and its modules: it may need what is not installed, and is not imported."""
    place = ROOT / module.replace(".", "/")
    if place.is_dir():
        return {path.stem for path in place.glob("*.py")}
    found = set()
    for node in ast.parse(place.with_suffix(".py").read_text(encoding="utf-8")).body:
        names = [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {*names, *(getattr(each, "id", "") for each in targets), getattr(node, "name", "")}
    return found


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT / "experiments")))
def test_what_an_experiment_imports_of_ours_is_there(path):
    for module, name in ours(path):
        if module.startswith("experiments"):
            assert name in defined(module), f"{module} has no {name}"
        elif not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_most_experiments_import_something_of_ours():
    assert sum(any(ours(path)) for path in EXPERIMENTS) > len(EXPERIMENTS) / 2
