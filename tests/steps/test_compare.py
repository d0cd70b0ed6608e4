import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from curvjax.artefacts import COMPARE_SCHEMA, read_record
from curvjax.models import weights_hash
from curvjax.scores import PLANS, SCORES, Evidence
from curvjax.steps import compare as comparing
from curvjax.steps import evidence as measuring
from curvjax.steps.budgets import RULES
from curvjax.steps.calibration import calibration_batch
from curvjax.steps.compare import PLANS_OF, CompareSettings, compare
from curvjax.steps.evidence import EvidenceSettings
from tests.steps.tiny import texts

MEASURED = EvidenceSettings(tokens=32, length=16, stream_tokens=20, seed=3)
SETTINGS = CompareSettings(
    scores=("gradient-norm", "layer-card-energy", "zd"),
    rules=("program", "uniform", "reversed", "alphapruning", "ecoflap", "atp"),
    plans=("lamp", "magnitude-global"),
)


@pytest.fixture(autouse=True)
def drawn_gradients(monkeypatch):
    """The whole model's gradient takes long to compile; numbers stand for it."""

    def drawn(model, parts, kernels):
        keys = jax.random.split(jax.random.key(1), len(kernels))
        return {path: jax.random.normal(key, kernels[path].shape) for key, path in zip(keys, kernels, strict=True)}, 0.5

    monkeypatch.setattr(measuring, "_timed_gradients", drawn)


@pytest.fixture
def nothing_measured(monkeypatch):
    def measure(*_, **__):
        pytest.fail("measured before bad input was refused")

    monkeypatch.setattr(comparing, "measure_evidence", measure)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def record(kept, loaded, tmp_path):
    if not kept:
        kept["record"] = compare(loaded, texts(16), SETTINGS, MEASURED, tmp_path / "compare.json", source="texts")
        kept["file"] = read_record(tmp_path / "compare.json", schema=COMPARE_SCHEMA)
    return kept["record"]


def method(record, name):
    return next(method for method in record["methods"] if method["name"] == name)


def test_the_record_reads_back_and_says_what_was_compared(record, kept, loaded):
    assert kept["file"] == json.loads(json.dumps(record))
    assert record["model"] == {"name": loaded.name, "weights_sha256": weights_hash(loaded.model), "layers": 12}
    assert record["data"].keys() == {"source", "sha256", "tokens", "validation_tokens", "cut", *loaded.tokenizer.around}
    assert (record["data"]["source"], record["data"]["validation_tokens"]) == ("texts", 0)
    assert record["settings"]["scores"] == SETTINGS.scores
    assert record["evidence"]["stream_tokens"] == 20
    assert [(unit["name"], unit["index"], unit["weight"]) for unit in record["units"]] == [
        (f"layers.{k}", k, 1920.0) for k in range(12)
    ]
    assert record["budget"] == {"requested": 0.5 * 12 * 1920, "unit": "weights removed"}
    assert record.keys() >= {"versions", "machine", "gradient_seconds"}


def test_every_score_goes_through_every_rule_and_what_looks_at_no_score_stands_once(record):
    pairs = [
        f"{score} + {rule}" for score in SETTINGS.scores for rule in ("program", "reversed", "alphapruning", "ecoflap")
    ]
    assert [method["name"] for method in record["methods"]] == [*pairs, "uniform", "atp", "lamp", "magnitude-global"]
    for name in ("uniform", "atp", "lamp"):
        assert (method(record, name)["score"], method(record, name)["rule"]) == (None, name)
    assert (method(record, pairs[0])["score"], method(record, pairs[0])["rule"]) == ("gradient-norm", "program")


def test_scores_are_those_of_the_evidence(record, loaded):
    found = measuring.measure_evidence(
        loaded.model,
        comparing._texts(texts(16), loaded, MEASURED, validation=False)[0],
        comparing.UNITS["layer"](comparing.parameters(loaded.model)),
        ["kernels", "gradients", "moments"],
        MEASURED,
    )
    for name, score in record["scores"].items():
        np.testing.assert_allclose(score["values"], SCORES[name].of(found.evidence), rtol=1e-6)
        assert (score["needs"], score["source"]) == (list(SCORES[name].needs), SCORES[name].source)
    lamp = PLANS["lamp"].of(found.evidence, total=0.5)
    np.testing.assert_allclose(method(record, "lamp")["amounts"], lamp, rtol=1e-9)


def test_amounts_spend_the_budget_and_follow_the_score(record):
    for found in record["methods"]:
        if found["refused"] is None:
            assert found["spent"] == pytest.approx(record["budget"]["requested"], rel=1e-9)
            assert found["spent"] == pytest.approx(1920 * sum(found["amounts"]))
            np.testing.assert_allclose(found["amounts"], found["continuous"], atol=1 / 1920)
    values = record["scores"]["gradient-norm"]["values"]
    assert spearmanr(values, method(record, "gradient-norm + program")["continuous"])[0] == pytest.approx(-1)
    assert spearmanr(values[::-1], method(record, "gradient-norm + reversed")["continuous"])[0] == pytest.approx(-1)


def test_what_a_rule_refuses_stands_with_its_reason(record):
    assert max(record["scores"]["zd"]["values"]) < 0  # minus a share
    refused = method(record, "zd + ecoflap")
    assert refused["amounts"] is refused["continuous"] is refused["spent"] is None
    assert "q must be at least 0" in refused["refused"]
    assert [found["name"] for found in record["methods"] if found["refused"]] == ["zd + ecoflap"]


def test_costs_add_up_over_the_fields_of_a_score(record):
    fields = {cost["field"]: cost["gradient_equivalents"] for cost in record["costs"]}
    assert fields.keys() == {"kernels", "gradients", "moments"}
    for name, score in record["scores"].items():
        assert score["evidence_gradients"] == pytest.approx(sum(fields[field] for field in SCORES[name].needs))
        assert score["gradient_equivalents"] == score["evidence_gradients"] + score["own_gradients"]
        assert method(record, f"{name} + program")["gradient_equivalents"] == score["gradient_equivalents"]
    assert method(record, "uniform")["gradient_equivalents"] == 0
    assert method(record, "lamp")["gradient_equivalents"] >= fields["kernels"]


def test_rank_correlations_are_spearmans(record):
    found = record["rank_correlation"]["scores"]
    assert found["names"] == list(SETTINGS.scores)
    for i, one in enumerate(found["names"]):
        for j, other in enumerate(found["names"]):
            expected = spearmanr(record["scores"][one]["values"], record["scores"][other]["values"])[0]
            assert found["matrix"][i][j] == pytest.approx(expected)
    amounts = record["rank_correlation"]["amounts"]
    assert amounts["names"] == [found["name"] for found in record["methods"] if not found["refused"]]
    row = amounts["matrix"][amounts["names"].index("uniform")]
    assert row == [None] * len(row)  # a constant has no order


@pytest.mark.parametrize(("target", "budget"), [("rank", 2.0), ("experts", 3.0)])
def test_capacity_is_shared_out_by_every_rule(loaded, target, budget):
    settings = CompareSettings(
        target=target, budget=budget, scores=("gradient-norm",), rules=("program", *RULES[target]), plans=()
    )
    found = compare(loaded, texts(16), settings, MEASURED, source="texts")
    assert [method["refused"] for method in found["methods"]] == [None] * len(found["methods"])
    for each in found["methods"]:
        assert all(isinstance(amount, int) for amount in each["amounts"])
        if each["rule"] != "floor":
            assert sum(each["amounts"]) == 12 * budget
    assert found["budget"]["unit"] == {"rank": "adapter parameters", "experts": "experts"}[target]


def test_a_gains_record_is_used_with_its_own_cost(loaded, record):
    gains = {
        "model": {"name": "tiny", "weights_sha256": weights_hash(loaded.model)},
        "units": [
            {"name": f"layers.{k}", "trace": 1.0, "gains": [{"lower": 1.0 + k, "upper": 2.0 + k}]} for k in range(12)
        ],
        "totals": {"seconds": 3.0, "gradient_equivalents": 40.0},
    }
    settings = CompareSettings(scores=("gain",), rules=("program",))
    found = compare(loaded, texts(16), settings, MEASURED, source="texts", gains=gains)
    assert found["scores"]["gain"]["values"] == [1.5 + k for k in range(12)]
    assert found["scores"]["gain"]["evidence_gradients"] == 40.0
    assert found["costs"][0]["recorded"]


def test_a_score_without_a_value_refuses_for_all_its_methods(loaded, monkeypatch):
    empty = measuring.Measured(Evidence(()), (measuring.Cost("stream", 1.0, 2.0),), 0.5)
    monkeypatch.setattr(comparing, "measure_evidence", lambda *_, **__: empty)
    settings = CompareSettings(scores=("shortgpt",), rules=("program", "uniform"))
    found = compare(loaded, texts(16), settings, MEASURED, source="texts")
    assert found["scores"]["shortgpt"]["values"] is None
    assert "needs at least one unit" in found["scores"]["shortgpt"]["refused"]
    assert "needs at least one unit" in method(found, "shortgpt + program")["refused"]
    assert method(found, "uniform")["refused"] is None


def test_the_validation_gradient_comes_from_other_documents(loaded, monkeypatch):
    asked = {}

    def measure(model, texts, units, needs, settings, **_):
        asked.update(texts=texts, needs=needs)
        return measuring.Measured(Evidence(()), (measuring.Cost("grams", 1.0, 2.0),), 0.5)

    monkeypatch.setattr(comparing, "measure_evidence", measure)
    documents = texts(16)
    found = compare(loaded, documents, CompareSettings(scores=("layerif",)), MEASURED, source="texts")
    fourth = [document for k, document in enumerate(documents) if k in {3, 7, 11, 15}]
    others = [document for document in documents if document not in fourth]
    for batch, chosen in zip(asked["texts"], (others, fourth), strict=True):
        expected = calibration_batch(chosen, loaded, tokens=32, length=16)
        assert all(jnp.array_equal(x, y) for x, y in zip(batch, expected, strict=True))
    assert asked["needs"] == {"grams"}
    assert found["data"]["validation_tokens"] == int(asked["texts"].validation.weights.sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ("owl", "zeta")}, r"unknown scores: zeta; there are gain, gradient-norm, "),
        ({"rules": ("layerif",)}, r"unknown rules of sparsity: layerif; there are program, uniform, .*owl"),
        ({"target": "rank", "rules": ("owl",)}, r"unknown rules of rank: owl; there are program, .*layerif"),
        ({"plans": ("rdp",)}, r"unknown plans of sparsity: rdp; there are lamp, magnitude-global"),
        ({"target": "rank", "budget": 2.0, "plans": ("lamp",)}, r"unknown plans of rank: lamp; there are none"),
        ({"rules": ()}, r"nothing shares out the budget: name rules \(program, uniform"),
        ({"budget": 0.97}, "out of reach"),
        ({"target": "rank", "budget": 100.0}, "a mean rank of 100 with a minimum of 1 is out of reach"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(loaded, nothing_measured, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(loaded, texts(16), CompareSettings(**settings), MEASURED, source="texts")


def test_too_few_documents_are_refused_before_anything_is_measured(loaded, nothing_measured):
    with pytest.raises(ValueError, match=r"1 documents fill 1 rows of 16 tokens; 2 are needed"):
        compare(loaded, texts(1), CompareSettings(), MEASURED, source="texts")


def test_plans_of_a_target_are_known():
    assert {name for names in PLANS_OF.values() for name in names} <= set(PLANS)
    assert all("to remove" in PLANS[name].amount for name in PLANS_OF["sparsity"])
