"""What the packages offer: every name resolves, says what it is, and is meant to be seen."""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import curvjax

PACKAGE = Path(curvjax.__file__).parent
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def re_exported(name: str) -> dict[str, str]:
    """`public name -> module it comes from`, as the package's `__init__` says."""
    tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "curvjax.registry"]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


NAMES = [(package, name) for package in PACKAGES for name in re_exported(package)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_offers_its_own_names_and_no_others(package):
    module, names = importlib.import_module(f"curvjax.{package}"), re_exported(package)
    assert not [name for name in names if name.startswith("_")]
    assert not [source for source in names.values() if not source.startswith(f"curvjax.{package}.")]
    assert sorted(getattr(module, "__all__", names)) == sorted(names)
    shown = {name for name, value in vars(module).items() if not name.startswith("_")}
    submodules = {path.stem for path in (PACKAGE / package).iterdir()}
    assert shown - submodules - {"import_all"} <= set(names)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_resolves_and_says_what_it_is(package, name):
    value = getattr(importlib.import_module(f"curvjax.{package}"), name)
    assert not isinstance(value, ModuleType)
    if not (inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__")):
        return  # a constant or an alias of a type: the line that defines it speaks
    text = inspect.getdoc(value)
    assert text, f"{package}.{name} has no docstring"
    assert not text.startswith(f"{name}("), f"{package}.{name} has only the docstring that Python made up"


def test_every_name_at_the_top_is_the_one_of_its_room():
    assert len(curvjax.__all__) > 30
    for name in curvjax.__all__:
        value = getattr(curvjax, name)
        assert not isinstance(value, ModuleType), f"{name} is hidden by the package of this name"
        assert inspect.getdoc(value), name
        assert value is getattr(importlib.import_module(value.__module__), name)
    assert dir(curvjax) == curvjax.__all__


def test_the_types_at_the_top_are_those_that_are_imported():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(set(seen) - {"import_module", "TYPE_CHECKING", "Any"}) == curvjax.__all__


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match=r"has no attribute 'shoes'; it has ALLoRA, .*, wrap\."):
        _ = curvjax.shoes
