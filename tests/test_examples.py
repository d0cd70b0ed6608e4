"""Every verb and value that `import curvjax as cj` offers has an example, and it runs as printed."""

import doctest
import functools
import importlib
import inspect

import pytest

import curvjax as cj
from curvjax import verbs

EXAMPLES = {name: getattr(cj, name) for name in cj.__all__}
IN_ROOMS = {
    "curvjax.allocation": ("CONTROLS", "PROGRAMS"),
    "curvjax.allocation.rules": ("RULES", "rule"),
    "curvjax.records": ("Value",),
    "curvjax.registry": ("Registry",),
    "curvjax.scores": ("score", "plan"),
    "curvjax.surgery": ("surgery",),
    "curvjax.training": ("optimizer", "described", "state_size"),
    "curvjax.testing": ("tiny_scores", "tiny_model", "tiny_texts", "tiny_questions"),
}
for home, names in IN_ROOMS.items():
    found = {name: getattr(importlib.import_module(home), name) for name in names}
    EXAMPLES |= {f"{home}.{name}": value for name, value in found.items() if callable(value)}


@pytest.fixture(autouse=True, scope="module")
def shared():
    """One model and one text for all examples: what takes long is to read and to compile them."""
    kept = {}

    def once(function):
        def of(source, *rest, **settings):
            key = function.__name__, source, *sorted(settings.items())
            if key not in kept:
                kept[key] = function(source, *rest, **settings)
            return kept[key]

        return functools.update_wrapper(of, function)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "read"):
            patch.setattr(verbs, name, once(getattr(verbs, name)))
        yield


@pytest.mark.demo_model
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_has_an_example_and_the_example_is_right(name):
    value = EXAMPLES[name]
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    assert test.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    assert not runner.run(test, out=report.append).failed, "".join(report)


def test_examples_are_of_what_is_offered():
    assert not [name for name, value in EXAMPLES.items() if inspect.ismodule(value)]
