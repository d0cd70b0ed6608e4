"""One thing has one name: no two modules define the same public class or function, but for pairs that are one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import curvjax

PACKAGE = Path(curvjax.__file__).parent

# What may have a name together, by the places that define it, and why.
TOGETHER = {
    # A verb calls the function of its name: models and texts are values there, and files here.
    frozenset({"front door", "runs"}): None,
    # One paper, one name: what it measures, what it makes of that, and how it rebuilds; the files are called so too.
    frozenset({"scores", "rules"}): None,
    frozenset({"scores", "surgery"}): ("adaquant",),
    # A command is called what it makes.
    frozenset({"commands", "records"}): ("Run", "Transfer"),
    frozenset({"commands", "scores"}): ("Score",),
    frozenset({"commands", "surgery"}): ("Factorize", "Upcycle"),
    # `@score` enters one, as users write it; `cj.score` measures one.
    frozenset({"front door", "runs", "scores"}): ("score",),
}
PAPERS = {"scores", "rules"}


def place(module):
    """`rules` for allocation/rules/owl.py, `runs` for runs/adapt.py, `surgery` for all its rooms, `front door`
    for what users import first."""
    if module.as_posix() in {"verbs.py", "trials.py"}:
        return "front door"
    return "surgery" if module.parts[0] == "surgery" else module.parent.name


def twice(package):
    """`name -> modules` of all public classes and functions at the top of more than one module."""
    found = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(package))
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def is_one_thing(name, modules):
    """Whether the modules may define `name` together."""
    places = frozenset(place(module) for module in modules)
    if len(places) < len(modules) or places not in TOGETHER:
        return False
    if places == PAPERS and {module.stem for module in modules} != {name}:
        return False
    return TOGETHER[places] is None or name in TOGETHER[places]


def test_a_public_name_means_one_thing():
    found = {name: modules for name, modules in twice(PACKAGE).items() if not is_one_thing(name, modules)}
    shown = [f"{name} in {', '.join(map(str, modules))}" for name, modules in found.items()]
    assert not shown, f"call one by what sets it apart, or make it private: {'; '.join(shown)}"


def test_every_exception_is_one():
    names = {name for names in TOGETHER.values() for name in names or ()}
    assert names <= twice(PACKAGE).keys()
    assert {frozenset(map(place, modules)) for modules in twice(PACKAGE).values()} == TOGETHER.keys()


def test_the_same_name_for_two_things_is_seen(tmp_path):
    texts = {
        "report/tables.py": "class Table: ...\ndef _rows(): ...\n",
        "allocation/menu.py": "class Table: ...\ndef _rows(): ...\n",
        "allocation/rules/owl.py": "def owl(): ...\n",
        "scores/owl.py": "def owl(): ...\n",
        "scores/dlp.py": "def spread(): ...\n",
        "allocation/rules/mola.py": "def spread(): ...\n",
        "verbs.py": "def adapt(): ...\n",
        "runs/adapt.py": "def adapt(): ...\n",
        "runs/begin.py": "def start(): ...\n",
        "runs/resume.py": "def start(): ...\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = twice(tmp_path)
    assert found.keys() == {"Table", "owl", "spread", "adapt", "start"}
    assert {name for name, modules in found.items() if is_one_thing(name, modules)} == {"owl", "adapt"}
