"""A score, a rule, a program, a surgery and ways of training from outside the package go everywhere that its own go."""

import re
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import curvjax as cj
from curvjax.allocation import PROGRAMS
from curvjax.allocation.rules import RULES
from curvjax.cli import main
from curvjax.layers import layer_index
from curvjax.models import parameters, save_hf
from curvjax.records import Allocation, Comparison, Rebuilt, Scores
from curvjax.report import write_report
from curvjax.runs import evidence as measuring
from curvjax.runs.adapt import load_adapter
from curvjax.runs.allocate import program_of
from curvjax.runs.text import TextSettings, packed_text
from curvjax.scores import SCORES, score
from curvjax.surgery import SURGERIES, Lesson, LoRA, Magnitude, lora_parameters, surgery
from curvjax.surgery.method import Counts, account
from curvjax.testing import tiny_model, tiny_texts
from tests.records.samples import scores, unit_score
from tests.runs.tiny import write_texts

# What a contributor writes: seven names of a dozen lines each.


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


@cj.program
@dataclass(frozen=True)
class ToyBand(cj.Sparsity):
    """Sparsities that stay close: another program of a target that is there, for its rules and surgeries."""

    name: ClassVar[str] = "toy-band"
    max_sparsity: float = 0.55
    spread: float = 1.0


@surgery
@dataclass(frozen=True, kw_only=True)
class ToySurgery(Magnitude):
    """Magnitude, by another name."""

    name: ClassVar[str] = "toy-surgery"
    targets: ClassVar[tuple[str, ...]] = ("toy",)


@surgery
@dataclass(frozen=True, kw_only=True)
class ToyNorms:
    """The norms of layers that have an amount learn; a model comes out."""

    name: ClassVar[str] = "toy-norms"
    targets: ClassVar[tuple[str, ...]] = ("rank",)
    reads_text: ClassVar[bool] = False

    def __call__(self, model, amounts, batch=None, *, progress=None):
        return account(self, "rank", (model, model), Counts(amounts, amounts, sum(amounts.values())))

    def lesson(self, born):
        layers = {unit.index for unit in born.units if unit.planned}
        norms = [path for path in parameters(born.model) if path.endswith("norm.scale")]
        return Lesson(born.model, learns=[path for path in norms if layer_index(path) in layers])


class Ridge(NamedTuple):
    """The squares of what adapters hold, beside the loss."""

    weight: float

    def applied(self, model, key):
        return model

    def penalty(self, model):
        return self.weight * sum(jnp.sum(array**2) for array in lora_parameters(model).values())


@surgery
@dataclass(frozen=True, kw_only=True)
class ToyRidge(LoRA):
    """LoRA under another loss; an adapter comes out, as LoRA restores it."""

    name: ClassVar[str] = "toy-ridge"
    ridge: float = 1.0

    def lesson(self, born):
        return Lesson(born.model, regularizer=Ridge(self.ridge))


CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {"__name__": __name__}
for block in re.findall(r"^    (?:import|@).*\n(?:(?: {4}.*)?\n)*", CONTRIBUTING, re.MULTILINE):
    exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), EXAMPLES)

ENTERED = (
    (SCORES, "mass"),
    (RULES, "squares"),
    (PROGRAMS, "narrow"),
    *((SURGERIES, name) for name in ("last", "norms")),
    (SCORES, "toy-score"),
    (RULES, "toy-rule"),
    *((PROGRAMS, name) for name in ("toy", "toy-band")),
    *((SURGERIES, name) for name in ("toy-surgery", "toy-norms", "toy-ridge")),
)
KEPT = [(registry, name, registry.pop(name)) for registry, name in ENTERED]  # no other test is to see them


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """All of them, for the length of a test."""
    for registry, name, entry in KEPT:
        monkeypatch.setitem(registry, name, entry)
    monkeypatch.setattr(measuring, "_timed_gradients", lambda *_: ({}, 0.5))


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2)


@pytest.fixture(scope="module")
def text(model):
    return packed_text(tiny_texts(8), model, TextSettings(tokens=32, length=16), source="texts")


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


def test_the_examples_of_contributing_do_what_they_say(model, text):
    Narrow, Last, Norms = (EXAMPLES[name] for name in ("Narrow", "Last", "Norms"))
    scores, kernels = cj.score(model, text, "mass"), parameters(model.model)
    of_layer = [[path for path in kernels if layer_index(path) == k and path.endswith("kernel")] for k in (0, 1)]
    np.testing.assert_allclose(scores.values, [sum(abs(kernels[p]).sum() for p in paths) for paths in of_layer], 1e-6)
    first, second = (unit.continuous for unit in cj.allocate(scores, cj.Ranks(3.0), rule="squares").units)
    np.testing.assert_allclose(first / second, (scores.values[0] / scores.values[1]) ** 2)
    plan = cj.allocate(scores, Narrow(0.5))
    made = cj.rebuild(model, plan, Last())
    gone = {path for path, mask in made.arrays.items() if not mask[-1, -1]}
    assert gone == {path for paths in of_layer for path in paths}
    assert all(mask[0, 0] for mask in made.arrays.values())
    born = cj.rebuild(model, cj.allocate(scores, cj.Ranks(3.0)), Norms())
    assert {path.split(".")[-1] for path in Norms().lesson(born).learns} == {"scale"}


def test_another_program_of_a_target_goes_through_its_rules_and_surgeries(model, text, tmp_path):
    scores = cj.score(model, text, "toy-score")
    plan, by_rule = (cj.allocate(scores, ToyBand(0.5), rule=rule) for rule in ("program", "owl"))
    assert (plan.target, plan.program_name) == ("sparsity", "toy-band")
    assert max(plan.amounts.values()) <= 0.55 * 1920 < max(cj.allocate(scores, cj.Sparsity(0.5)).amounts.values())
    assert cj.rebuild(model, plan, Magnitude()).total == sum(by_rule.amounts.values()) == 1920
    assert program_of(Allocation.load(plan.save(tmp_path / "allocation.json"))) == ToyBand(0.5)
    assert program_of(replace(plan, program_name="", program=asdict(cj.Sparsity(0.3)))) == cj.Sparsity(0.3)
    found = cj.compare(model, text, ToyBand(0.5), scores=["toy-score"], rules=["program", "owl"])
    assert (found.target, found.program_name) == ("sparsity", "toy-band")
    assert [method.refused for method in found.methods] == [None, None]


@pytest.fixture
def run(capsys):
    """The output of a command."""

    def run(*words):
        main([*map(str, words)])
        return capsys.readouterr().out

    return run


def test_the_commands_and_the_report_take_them(model, tmp_path, run):
    source, out = tmp_path / "model", tmp_path / "out"
    save_hf(model.model, source, tokenizer=model.tokenizer)
    some = ("--data", write_texts(tmp_path / "texts", tiny_texts(8)), "--tokens", 32, "--length", 16)
    assert "1,920" in run("score", source, "--score", "toy-score", *some, "--out", out)
    plan = out / "allocation-toy.json"
    run("allocate", out / "toy-score.json", "--target", "toy", "--budget", 0.25, "--rule", "toy-rule", "--out", plan)
    band = ("--target", "toy-band", "--budget", 0.25, "--spread", 2, "--rule", "owl", "--out", out / "allocation.json")
    assert "of 960 weights removed" in run("allocate", out / "toy-score.json", *band)
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


BRIEFLY = {"steps": 2, "length": 16, "rows": 2, "warmup": 0, "learning_rate": 0.1}


def test_a_command_trains_what_a_way_from_outside_says_and_leaves_a_model(model, tmp_path, text, run):
    source, plan = tmp_path / "model", tmp_path / "allocation.json"
    save_hf(model.model, source, tokenizer=model.tokenizer)
    found = cj.allocate(cj.score(model, text, "toy-score"), cj.Ranks(2), rule="uniform")
    replace(found, units=(found.units[0], replace(found.units[1], amount=0))).save(plan)
    words = [word for name, value in BRIEFLY.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--data", write_texts(tmp_path / "texts", tiny_texts(8)), "--out", tmp_path / "out"]
    lines = run("adapt", source, plan, "--method", "toy-norms", *words).splitlines()
    assert lines[-1] == str(tmp_path / "out" / "model")
    before, after = parameters(model.model), parameters(cj.load(lines[-1]).model)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if path.startswith("layers.0.") and path.endswith("norm.scale")}
    with pytest.raises(SystemExit):
        run("adapt", source, plan, "--method", "toy-norms", *words, "--merge")


def test_an_adapter_of_a_way_from_outside_learns_by_its_loss_and_is_restored(model, tmp_path, text):
    plan = cj.allocate(cj.score(model, text, "toy-score"), cj.Ranks(2), rule="uniform")
    texts = write_texts(tmp_path / "texts", tiny_texts(8))
    sizes = []
    for ridge in (0.0, 10.0):
        out = tmp_path / str(ridge)
        found = cj.adapt(model, plan, texts, out, method=ToyRidge(ridge=ridge), **BRIEFLY)
        learned, again = (lora_parameters(each.model) for each in (found, load_adapter(model, out / "adapter")))
        assert all(np.array_equal(learned[path], again[path]) for path in learned)
        sizes.append(sum(float(jnp.sum(array**2)) for array in learned.values()))
    assert sizes[1] < sizes[0]


def test_names_that_are_taken_are_refused_with_whose_they_are():
    with pytest.raises(ValueError, match=r"there is a score 'erk' already, of curvjax\.scores\.erk; choose"):
        score("erk", needs=("kernels",), source="this file")(toy_score)
    with pytest.raises(
        ValueError, match=r"there is a method 'magnitude' already, of curvjax\.surgery\.pruning\.magnitude"
    ):
        surgery(type("Magnitude", (ToySurgery,), {"name": "magnitude", "__module__": __name__}))
    assert SCORES["erk"].source != "this file"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package whose one module is the text."""

    def install(text):
        about = tmp_path / "mine-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[curvjax]\nmine = mine_of_a_test\n")
        (tmp_path / "mine_of_a_test.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("mine_of_a_test", None)


def test_commands_know_what_an_installed_package_enters(installed, run):
    installed('import curvjax as cj\n@cj.rule("mine", "rank")\ndef mine(q, budget):\n    """Mine."""\n    return q\n')
    try:
        assert re.search(r"rule\W+mine\b", run("methods"))
    finally:
        del RULES["mine"]


def test_an_installed_package_that_fails_is_named(installed, capsys):
    installed("1 / 0")
    with pytest.raises(SystemExit):
        main(["methods"])
    assert "'mine' enters methods by 'mine_of_a_test', which fails: division by zero" in capsys.readouterr().err
