from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from curvjax.allocation import Bits, Experts, Ranks, Sparsity
from curvjax.layers import UnitShape
from curvjax.records import Comparison, FieldCost
from curvjax.runs import compare as comparing
from curvjax.runs import evidence as measuring
from curvjax.runs.allocate import rules_of
from curvjax.runs.compare import CompareSettings, compare
from curvjax.runs.measure import ScoreSettings, scored_units
from curvjax.runs.text import with_validation
from curvjax.scores import PLANS, SCORES, Evidence
from curvjax.scores.evidence import Widths
from tests.runs.stand_ins import drawn_gradients
from tests.runs.tiny import ROWS, rows, texts

MEASURED = ScoreSettings(stream_tokens=20, seed=3)
SETTINGS = CompareSettings(
    scores=("gradient-norm", "layer-card-energy", "zd"),
    rules=("program", "uniform", "alphapruning", "ecoflap", "atp"),
    controls=("none", "reversed"),
    plans=("lamp", "magnitude-global"),
)
HALF = Sparsity(0.5)


@pytest.fixture(autouse=True, scope="module")
def _drawn_gradients():
    """The whole model's gradient takes long to compile; numbers stand for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_timed_gradients", drawn_gradients)
        yield


@pytest.fixture
def nothing_measured(monkeypatch):
    def measure(*_, **__):
        pytest.fail("measured before bad input was refused")

    monkeypatch.setattr(comparing, "measure_evidence", measure)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "compare.json"


@pytest.fixture(scope="module")
def record(loaded, text, path):
    return compare(loaded, text, HALF, SETTINGS, MEASURED, path=path)


def method(record, name):
    return next(method for method in record.methods if method.name == name)


def score_of(record, name):
    return next(score for score in record.scores if score.name == name)


def test_the_record_reads_back_and_says_what_was_compared(record, path, loaded, text):
    assert Comparison.load(path) == record
    assert (record.origin.model, record.origin.text) == (loaded.origin, text.origin)
    assert (record.validation_tokens, record.granularity, record.target) == (0, "layer", "sparsity")
    assert record.origin.settings["scores"] == list(SETTINGS.scores)
    assert record.origin.settings["stream_tokens"] == 20
    assert [(unit.name, unit.index, unit.size, unit.cost) for unit in record.units] == [
        (f"layers.{k}", k, 1920, 1.0) for k in range(12)
    ]
    assert (record.requested, record.unit) == (0.5 * 12 * 1920, "weights removed")


def test_every_score_goes_through_every_rule_and_what_looks_at_no_score_stands_once(record):
    names = [f"{score} + {rule}" for score in SETTINGS.scores for rule in ("program", "alphapruning", "ecoflap")]
    names += [f"{score} + reversed + program" for score in SETTINGS.scores]
    assert [method.name for method in record.methods] == [*names, "uniform", "atp", "lamp", "magnitude-global"]
    for name in ("uniform", "atp", "lamp"):
        assert (method(record, name).score, method(record, name).rule) == (None, name)
    assert (method(record, names[0]).score, method(record, names[0]).rule) == ("gradient-norm", "program")
    assert method(record, "zd + reversed + program").control == "reversed"


def test_scores_are_those_of_the_evidence(record, loaded, text):
    found = measuring.measure_evidence(
        loaded.model, text, scored_units(loaded.model, MEASURED), ["kernels", "gradients", "moments"], MEASURED
    )
    for score in record.scores:
        np.testing.assert_allclose(score.values, SCORES[score.name].of(found.evidence), rtol=1e-6)
        assert (score.needs, score.source) == (SCORES[score.name].needs, SCORES[score.name].source)
    lamp = PLANS["lamp"].of(found.evidence, total=0.5)
    np.testing.assert_allclose(method(record, "lamp").amounts, 1920 * lamp, rtol=1e-9)


def test_amounts_spend_the_budget_and_follow_the_score(record):
    for found in record.methods:
        if found.refused is None:
            assert found.spent == sum(found.amounts) == record.requested
            assert all(type(amount) is int for amount in found.amounts)
            np.testing.assert_allclose(found.amounts, found.continuous, atol=1)
    values = score_of(record, "gradient-norm").values
    for name, seen in (("program", values), ("reversed + program", values[::-1])):
        assert spearmanr(seen, method(record, f"gradient-norm + {name}").continuous)[0] == pytest.approx(-1)


def test_what_a_rule_refuses_stands_with_its_reason(record):
    assert max(score_of(record, "zd").values) < 0  # minus a share
    refused = method(record, "zd + ecoflap")
    assert refused.amounts is refused.continuous is refused.spent is None
    assert "q must be at least 0" in refused.refused
    assert [found.name for found in record.methods if found.refused] == ["zd + ecoflap"]


def test_costs_add_up_over_the_fields_of_a_score(record):
    fields = {cost.field: cost.gradient_equivalents for cost in record.costs}
    assert fields.keys() == {"kernels", "gradients", "moments"}
    for score in record.scores:
        assert score.evidence_gradients == pytest.approx(sum(fields[field] for field in SCORES[score.name].needs))
        assert score.gradient_equivalents == score.evidence_gradients + score.own_gradients
        assert method(record, f"{score.name} + program").gradient_equivalents == score.gradient_equivalents
    assert method(record, "uniform").gradient_equivalents == 0
    assert method(record, "lamp").gradient_equivalents >= fields["kernels"]


def test_rank_correlations_are_spearmans(record):
    found = record.of_scores
    assert found.names == SETTINGS.scores
    for i, one in enumerate(record.scores):
        for j, other in enumerate(record.scores):
            assert found.matrix[i][j] == pytest.approx(spearmanr(one.values, other.values)[0])
    amounts = record.of_amounts
    assert amounts.names == tuple(found.name for found in record.methods if not found.refused)
    row = amounts.matrix[amounts.names.index("uniform")]
    assert row == (None,) * len(row)  # a constant has no order


def test_amounts_are_correlated_as_shares_whatever_the_sizes(loaded, text):
    settings = CompareSettings(scores=("zd",), rules=("uniform", "alphapruning"), plans=("lamp",))
    found = compare(loaded, text, HALF, settings, replace(MEASURED, granularity="module"))
    assert len({unit.size for unit in found.units}) > 1
    row = found.of_amounts.matrix[found.of_amounts.names.index("uniform")]
    assert row == (None,) * len(row)


def test_plans_of_sparsity_keep_the_bounds_and_ties(loaded, text):
    module = replace(MEASURED, granularity="module")
    names = [unit.name for unit in scored_units(loaded.model, module)]
    settings = CompareSettings(scores=(), rules=("uniform",), plans=("lamp", "magnitude-global"))
    program = Sparsity(0.5, frozen=(names[0],), max_sparsity=0.6, tie="layer")
    found = compare(loaded, text, program, settings, module)
    shares = {each.name: np.asarray(each.amounts) / [unit.size for unit in found.units] for each in found.methods}
    assert shares.keys() == {"uniform", *settings.plans}
    layer = np.asarray([unit.index for unit in found.units])
    for name, share in shares.items():
        assert (share <= 0.6).all()
        assert share[0] == 0
        assert all(np.ptp(share[layer == k]) < 0.01 for k in set(layer)), name  # one weight more or less
        assert method(found, name).spent == round(found.requested)


@pytest.mark.parametrize("program", [Ranks(2), Experts(3), Bits(4)], ids=lambda program: program.target)
def test_capacity_is_shared_out_by_every_rule(loaded, text, program):
    settings = CompareSettings(scores=("gradient-norm",), rules=tuple(rules_of(program.target)))
    found = compare(loaded, text, program, settings, MEASURED)
    assert [method.refused for method in found.methods] == [None] * len(found.methods)
    for each in found.methods:
        assert all(type(amount) is int for amount in each.amounts)
        if each.rule != "floor" and program.target != "bits":
            assert sum(each.amounts) == 12 * program.budget
    assert found.unit == {"rank": "adapter parameters", "experts": "experts", "bits": "bits"}[program.target]


OF_BITS = ("adaquant", "autoscheme", "dynamic-quant", "hawq", "radio")
BITS = CompareSettings(scores=(), rules=("uniform",), plans=OF_BITS)


@pytest.fixture
def rounded_at(monkeypatch):
    """Evidence of bits drawn for the widths that are asked for: what it is made of is tested elsewhere."""
    asked = []

    def measure(model, text, units, needs, settings, *, widths, **_):
        asked.append(widths)
        rng, columns = np.random.default_rng(1), np.asarray(widths.menu)
        table = rng.uniform(1, 2, (len(units), 1)) * 4.0**-columns
        fields = dict.fromkeys(["bit_harms", "bit_errors", "bit_losses", "low_slopes"], jnp.asarray(table))
        kernels = {path: jnp.ones((2, 2)) for unit in units for path in unit.paths}
        found = Evidence(units, kernels=kernels, traces=jnp.ones(len(units)), widths=widths, **fields)
        costs = tuple(FieldCost(field=name, seconds=1.0, gradient_equivalents=1.0) for name in needs)
        return measuring.MeasuredEvidence(found, costs, 1.0)

    monkeypatch.setattr(comparing, "measure_evidence", measure)
    return asked


def test_plans_of_bits_honour_the_widths_allowed_frozen_and_tied(loaded, text, rounded_at):
    names = [unit.name for unit in scored_units(loaded.model, replace(MEASURED, granularity="module"))]
    program = Bits(4.0, allowed=(3, 5, 6), frozen=(names[0],), tie="projection")
    found = compare(loaded, text, program, BITS, replace(MEASURED, granularity="module"))
    assert rounded_at[-1] == Widths((3, 5, 6), 3)
    for each in found.methods[1:]:
        assert each.refused is None
        widths = dict(zip(names, each.amounts, strict=True))
        assert set(each.amounts) <= {3, 5, 6}
        kind = names[0].split(".", 2)[2]
        assert {width for name, width in widths.items() if name.endswith(kind)} == {6}  # tied to the frozen one
        for other in {name.split(".", 2)[2] for name in names}:
            assert len({width for name, width in widths.items() if name.endswith(other)}) == 1
        assert each.spent <= found.requested * (1 + 1e-12)


def test_a_file_holds_what_no_width_is_chosen_for(loaded, text, rounded_at):
    program = Bits(30_000, budget_of="file", stored_group=8)
    found = compare(loaded, text, program, BITS, MEASURED)
    rest = loaded.origin.parameters - sum(unit.size for unit in found.units)
    assert found.program["beside"] == 4 * rest
    for each in found.methods:
        assert each.refused is None
        assert each.spent <= found.requested == 30_000 - 4 * rest
    assert found.methods[0].spent > 0.8 * found.requested


def test_evidence_of_another_low_width_stands_with_its_reason(loaded, text, rounded_at):
    found = comparing.measured_for(loaded, text, BITS, MEASURED, Bits(3))
    other = compare(loaded, text, Bits(3.5), BITS, MEASURED, found=found)
    reasons = {each.name: each.refused for each in other.methods if each.refused}
    assert reasons.keys() == {"dynamic-quant"}
    assert "starts from 3, but its slopes were measured where all units have 2" in reasons["dynamic-quant"]


@pytest.mark.parametrize("plan", ["eva", "welore"])
@pytest.mark.parametrize("program", [Ranks(4), Ranks(4, minimum=2, frozen=("layers.3",), allowed=(2, 4, 8))])
def test_plans_of_ranks_share_them_out_at_their_cost(loaded, text, program, plan):
    found = compare(loaded, text, program, CompareSettings(scores=(), rules=("uniform",), plans=(plan,)), MEASURED)
    each = method(found, plan)
    assert each.refused is None
    assert len(set(each.continuous)) > 1
    assert plan != "eva" or len(set(each.amounts)) > 1  # random weights: WeLore's round to equal ranks
    assert 0.9 * found.requested <= each.spent <= found.requested
    if program.frozen:
        assert each.amounts[3] == 2
        assert set(each.amounts) <= {2, 4, 8}
    else:
        shapes = comparing.unit_shapes(loaded.model, scored_units(loaded.model, MEASURED))
        count = len(shapes[0].projections)
        needed = measuring.measure_evidence(
            loaded.model, text, scored_units(loaded.model, MEASURED), ["kernels", "moments"], MEASURED
        )
        ranks = np.asarray(PLANS[plan].of(needed.evidence, total=4.0 * 12 * count)) / count  # costs are equal here
        np.testing.assert_allclose(each.continuous, ranks, rtol=1e-6)


def test_a_unit_of_several_matrices_takes_their_mean_rank():
    names = ("q", "k", "v"), ("up",)
    shapes = [UnitShape(f"layers.{k}", k, dict.fromkeys(inside, (8, 8))) for k, inside in enumerate(names)]
    program, asked = Ranks(2), []

    def plan(evidence, *, total):
        asked.append(total)
        return [6.0, 2.0]

    found = comparing._of_ranks(plan, None, program, program.pose(shapes), shapes)
    assert (asked, found.continuous.tolist(), found.whole.amount.tolist()) == ([8.0], [2.0, 2.0], [2, 2])


def test_a_gains_record_is_used_with_its_own_cost(loaded, text, gains):
    settings = CompareSettings(scores=("gain",), rules=("program",))
    found = compare(loaded, text, HALF, settings, MEASURED, gains=gains)
    (score,) = found.scores
    assert score.values == tuple(gains.values)
    assert score.evidence_gradients == gains.origin.cost.gradient_equivalents
    assert found.costs[0].recorded


def test_a_score_without_a_value_refuses_for_all_its_methods(loaded, text, monkeypatch):
    empty = measuring.MeasuredEvidence(
        Evidence(()), (FieldCost(field="stream", seconds=1.0, gradient_equivalents=2.0),), 0.5
    )
    monkeypatch.setattr(comparing, "measure_evidence", lambda *_, **__: empty)
    settings = CompareSettings(scores=("shortgpt",), rules=("program", "uniform"))
    found = compare(loaded, text, HALF, settings, MEASURED)
    assert found.scores[0].values is None
    assert "needs at least one unit" in found.scores[0].refused
    assert "needs at least one unit" in method(found, "shortgpt + program").refused
    assert method(found, "uniform").refused is None
    assert Comparison.from_json(found.to_json()) == found


def test_the_validation_text_is_handed_on_and_counted(loaded, monkeypatch):
    asked = {}

    def measure(model, text, units, needs, settings, *, validation, **_):
        asked.update(text=text, needs=needs, validation=validation)
        cost = FieldCost(field="grams", seconds=1.0, gradient_equivalents=2.0)
        return measuring.MeasuredEvidence(Evidence(()), (cost,), 0.5)

    monkeypatch.setattr(comparing, "measure_evidence", measure)
    calibration, validation = with_validation(rows(loaded, texts(16)), loaded, ROWS)
    settings = CompareSettings(scores=("layerif",))
    found = compare(loaded, calibration, HALF, settings, MEASURED, validation=validation)
    assert (asked["text"], asked["validation"], asked["needs"]) == (calibration, validation, {"grams"})
    assert found.validation_tokens == validation.origin.tokens > 0


@pytest.mark.parametrize(
    ("program", "settings", "message"),
    [
        (HALF, {"scores": ("owl", "zeta")}, "unknown scores: zeta; there are "),
        (HALF, {"rules": ("zeta",)}, "unknown rules: zeta; there are "),
        (HALF, {"controls": ("zeta",)}, "unknown controls: zeta; there are none, permuted"),
        (HALF, {"plans": ("zeta",)}, "unknown plans: zeta; there are "),
        (HALF, {"rules": ("layerif",)}, "rules layerif are not of sparsity; there are program, .*owl"),
        (Ranks(2), {"rules": ("owl",)}, "rules owl are not of rank; there are program, .*layerif"),
        (HALF, {"plans": ("rdp",)}, "plans rdp are not of sparsity; there are .*lamp, magnitude-global"),
        (Ranks(2), {"plans": ("lamp",)}, "plans lamp are not of rank; there are eva, welore"),
        (Experts(2), {"plans": ("lamp",)}, "plans lamp are not of experts; there are none"),
        (HALF, {"rules": ()}, r"nothing shares out the budget: name rules \(program, "),
        (Sparsity(0.97), {}, "out of reach"),
        (Ranks(100), {}, "a mean rank of 100 with a minimum of 1 is out of reach"),
        (Ranks(2, frozen=("layers.12",)), {}, "1 frozen units are not in the scores"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(loaded, text, nothing_measured, program, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(loaded, text, program, CompareSettings(**settings), MEASURED)


def test_gains_of_another_model_are_refused(loaded, text, gains, stranger):
    others = replace(gains, origin=replace(gains.origin, model=stranger.origin))
    with pytest.raises(ValueError, match="the gains record was made for model 'stranger'"):
        compare(loaded, text, HALF, CompareSettings(scores=("gain",)), MEASURED, gains=others)


def test_plans_of_a_target_say_what_they_remove():
    sparsity = {"lamp", "magnitude-global", "wanda-global", "gradient-global"}
    bits = set(OF_BITS)
    assert {name for name, plan in PLANS.items() if plan.target} == sparsity | bits | {"eva", "welore"}
    assert all("to remove" in plan.amount for plan in PLANS.values() if plan.target == "sparsity")
