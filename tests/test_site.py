"""The site has a page for all it names, a line for every public name, and real commands; `make docs` checks links."""

import ast
import functools
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import curvjax
from curvjax import cli
from curvjax.allocation import CONTROLS, RULES
from curvjax.scores import PLANS, SCORES

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAV = re.findall(r"^ +- .*?: ([\w/.]+\.md)$", SETTINGS, re.MULTILINE)
METHOD = (ROOT / "METHOD.md").read_text(encoding="utf-8")
DIRECTIVES = {
    name: page.name
    for page in sorted((PAGES / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
PACKAGES = ("curvjax", "curvjax.curvature", "curvjax.allocation", "curvjax.surgery", "curvjax.scores")


@functools.cache
def resolved(path):
    """What a directive stands for: an attribute of the longest part of its path that is a module."""
    home, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(home), name, None)
    return importlib.import_module(path) if found is None else found


def public_names(package):
    if package == "curvjax":
        return curvjax.__all__
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "curvjax.registry"]
    return [alias.asname or alias.name for node in imports for alias in node.names]


def shown(page):
    """A page's text, with what it includes of other files."""

    def included(match):
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        (section,) = re.findall(rf"\[start:{match[2]}\] -->\n(.*?)<!-- --8<-- \[end:{match[2]}\]", text, re.DOTALL)
        return section

    return re.sub(r'^--8<-- "(.+?):(.+?)"$', included, page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_page_of_the_navigation_exists_and_every_page_is_in_it():
    written = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.py")}
    experiments = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.md")}
    assert len(NAV) == len(set(NAV))
    assert set(NAV) == written | notebooks | experiments | {"METHOD.md", "CONTRIBUTING.md", "CHANGELOG.md"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_its_line(package):
    documented = {id(resolved(path)) for path in DIRECTIVES}
    home = importlib.import_module(package)
    assert [name for name in public_names(package) if id(getattr(home, name)) not in documented] == []


def test_every_published_method_has_its_line():
    entered = [*(SCORES[name].of for name in SCORES), *(PLANS[name].of for name in PLANS)]
    homes = {of.__module__ for of in entered} | {RULES[name].of.__module__ for name in RULES}
    homes |= {CONTROLS[name].__module__ for name in CONTROLS}
    assert homes - set(DIRECTIVES) == set(), "each needs a line `::: MODULE` in docs/pages/api"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_commands_and_flags_of_a_page_exist(page, capsys):
    text = shown(page).replace("\\\n", " ")
    lines = re.findall(r"^    (?!from |import ).*?\bcurvjax (\w+) (.*)$", text, re.MULTILINE)
    for name, words in lines:
        assert name in cli.COMMANDS
        chosen = re.findall(r"--(?:method|target|rule) \w+", words)
        with pytest.raises(SystemExit):
            cli.main([name, *" ".join(chosen).split(), "--help"])
        flags = set(re.findall(r"(--[a-z-]+)", words))
        assert flags - set(re.findall(r"(--[a-z-]+)", capsys.readouterr().out)) == set()


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_numbers_that_a_page_cites_are_those_of_the_method(page):
    defined = set(re.findall(r"^\*\*\[(M\d+)\]", METHOD, re.MULTILINE))
    assert set(re.findall(r"\[(M\d+)\]", shown(page))) <= defined


def test_the_citation_has_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_all_that_is_no_code_leaves_with_the_package():
    """py.typed goes by itself, as setuptools has it; the rest by name."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    named = {
        path for home, names in data.items() for name in names for path in (ROOT / home.replace(".", "/")).glob(name)
    }
    there = {path for path in (ROOT / "curvjax").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there == named | {ROOT / "curvjax" / "py.typed"}
