"""A score, a rule, a program and a surgery from outside the package go everywhere that its own go."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import curvjax as cj
from curvjax.allocation import PROGRAMS
from curvjax.allocation.rules import RULES
from curvjax.cli import main
from curvjax.models import save_hf
from curvjax.records import Comparison, Rebuilt, Scores
from curvjax.report import write_report
from curvjax.runs import evidence as measuring
from curvjax.runs.text import TextSettings, packed
from curvjax.scores import SCORES, score
from curvjax.surgery import SURGERIES, Magnitude, surgery
from curvjax.testing import tiny_model, tiny_texts
from tests.records.samples import scores, unit_score
from tests.runs.tiny import write_texts

# What a contributor writes: four names of twelve lines at most.


@score("toy-score", needs=("kernels",), source="this file")
def toy_score(evidence):
    """The number of weights of a unit, the deeper the more."""
    kernels = evidence.kernels
    sizes = [sum(kernels[path].size for path in unit.paths if path in kernels) for unit in evidence.units]
    return np.asarray(sizes) * (1.0 + np.arange(len(sizes)))


@cj.rule("toy-rule", "sparsity", "toy")
def toy_rule(scores, budget):
    """As much of each unit."""
    return np.full(len(scores), budget.total / budget.weight.sum())


@cj.program
@dataclass(frozen=True)
class Toy(cj.Sparsity):
    """Sparsities, by another name."""

    target: ClassVar[str] = "toy"


@surgery
@dataclass(frozen=True, kw_only=True)
class ToySurgery(Magnitude):
    """Magnitude, by another name."""

    name: ClassVar[str] = "toy-surgery"
    targets: ClassVar[tuple[str, ...]] = ("toy",)


ENTERED = ((SCORES, "toy-score"), (RULES, "toy-rule"), (PROGRAMS, "toy"), (SURGERIES, "toy-surgery"))
KEPT = [(registry, name, registry.pop(name)) for registry, name in ENTERED]  # no other test is to see them


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The four, for the length of a test."""
    for registry, name, entry in KEPT:
        monkeypatch.setitem(registry, name, entry)
    monkeypatch.setattr(measuring, "_timed_gradients", lambda *_: ({}, 0.5))


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2)


@pytest.fixture(scope="module")
def text(model):
    return packed(tiny_texts(8), model, TextSettings(tokens=32, length=16), source="texts")


def test_all_verbs_take_them(model, text):
    scores = cj.score(model, text, "toy-score")
    assert scores.values.tolist() == [1920.0, 2 * 1920.0]
    plan = cj.allocate(scores, Toy(0.5))
    by_rule = cj.allocate(scores, Toy(0.5), rule="toy-rule")
    assert sum(plan.amounts.values()) == sum(by_rule.amounts.values()) == 1920
    assert list(by_rule.amounts.values()) == [960, 960]
    assert plan.amounts["layers.0"] > plan.amounts["layers.1"]
    made = cj.rebuild(model, plan, ToySurgery())
    assert {unit.name: unit.realised for unit in made.units} == plan.amounts
    found = cj.compare(model, text, Toy(0.5), scores=["toy-score"], rules=["program", "toy-rule"])
    assert [(method.name, method.refused) for method in found.methods] == [
        ("toy-score + program", None),
        ("toy-score + toy-rule", None),
    ]


def test_the_commands_and_the_report_take_them(model, tmp_path, capsys):
    def run(*words):
        main([*map(str, words)])
        return capsys.readouterr().out

    source, out = tmp_path / "model", tmp_path / "out"
    save_hf(model.model, source, tokenizer=model.tokenizer)
    some = ("--data", write_texts(tmp_path / "texts", tiny_texts(8)), "--tokens", 32, "--length", 16)
    assert "1,920" in run("score", source, "--score", "toy-score", *some, "--out", out)
    plan = out / "allocation-toy.json"
    run("allocate", out / "toy-score.json", "--target", "toy", "--budget", 0.25, "--rule", "toy-rule", "--out", plan)
    run("rebuild", source, plan, "--method", "toy-surgery", "--pattern", "n:4", "--out", tmp_path / "rebuilt")
    found = Rebuilt.load(tmp_path / "rebuilt" / "rebuilt.json")
    assert (found.method, found.target, found.total) == ("toy-surgery", "toy", 960)
    chosen = ("--scores", "toy-score", "erk", "--rules", "program", "toy-rule")
    run("compare", source, "--target", "toy", "--budget", 0.25, *chosen, *some, "--out", out)
    assert len(Comparison.load(out / "compare.json").methods) == 4
    listed = run("methods")
    assert [name for _, name, _ in KEPT if name not in listed] == []
    assert Scores.load(out / "toy-score.json").source == "this file"
    gains = scores(*map(unit_score, range(2)))  # what the report draws beside the allocation
    replace(gains, origin=found.origin).save(out / "gains.json")
    assert "toy-rule" in write_report(out).read_text(encoding="utf-8")


def test_names_that_are_taken_are_refused_with_whose_they_are():
    with pytest.raises(ValueError, match=r"there is a score 'erk' already, of curvjax\.scores\.erk; choose"):
        score("erk", needs=("kernels",), source="this file")(toy_score)
    with pytest.raises(ValueError, match=r"there is a method 'magnitude' already, of curvjax\.surgery\.magnitude"):
        surgery(type("Magnitude", (ToySurgery,), {"name": "magnitude", "__module__": __name__}))
    assert SCORES["erk"].source != "this file"
