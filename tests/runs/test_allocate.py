import json

import numpy as np
import pytest

from curvjax.artefacts import ALLOCATION_SCHEMA, digest, read_record
from curvjax.runs.allocate import allocate
from curvjax.runs.program import AllocateSettings
from curvjax.runs.unit_costs import rank_costs, weight_counts

LAYER_COST = 3 * (16 + 24) + 2 * (16 + 16) + 2 * (16 + 8)
LAYER_WEIGHTS = 3 * 16 * 24 + 2 * 16 * 16 + 2 * 16 * 8


def amounts(record):
    return [unit["amount"] for unit in record["units"]]


@pytest.fixture
def modules(gains):
    """The layers' gains as if each projection of layers 0 to 11 had its own, of unequal costs."""
    units = [
        unit
        | {"name": path, "projections": {path: shape}}
        | {
            "gains": [
                gain | {"lower": (k + 1) * gain["lower"], "upper": (k + 1) * gain["upper"]} for gain in unit["gains"]
            ]
        }
        for unit in gains["units"]
        for k, (path, shape) in enumerate(unit["projections"].items())
    ]
    return gains | {"granularity": "module", "units": units}


def test_costs_and_sizes_are_those_of_the_projections(gains):
    assert rank_costs(gains["units"]).tolist() == [LAYER_COST] * 12
    assert weight_counts(gains["units"]).tolist() == [LAYER_WEIGHTS] * 12


def test_an_allocation_has_every_field_of_the_format(gains, tmp_path):
    record = allocate(gains, AllocateSettings(budget=2.0), tmp_path / "allocation.json")
    assert read_record(tmp_path / "allocation.json", schema=ALLOCATION_SCHEMA) == json.loads(json.dumps(record))
    assert record.keys() >= {"target", "program", "score", "gains_sha256", "model", "units", "dual", "dual_meaning"}
    assert record["gains_sha256"] == digest(gains)
    assert record["model"] == gains["model"]
    assert record["budget"].keys() == {"requested", "planned", "realised", "unit"}
    assert (record["status"], record["budget"]["unit"]) == ("optimal", "adapter parameters")
    assert record["residual"] < 1e-6
    fields = {"name", "index", "score", "quality", "cost", "continuous", "amount", "maximum", "held"}
    assert all(unit.keys() == fields for unit in record["units"])
    assert sum(unit["quality"] for unit in record["units"]) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("baseline", ["none", "uniform", "permuted", "reversed", "random"])
@pytest.mark.parametrize("budget", [1.0, 2.0, 2.5, 5.0])
def test_ranks_spend_their_budget_exactly(gains, budget, baseline):
    record = allocate(gains, AllocateSettings(budget=budget, baseline=baseline, seed=1))
    spent = sum(unit["cost"] * unit["amount"] for unit in record["units"])
    assert spent == record["budget"]["planned"] == record["budget"]["requested"] == budget * 12 * LAYER_COST
    assert sum(amounts(record)) == 12 * budget
    assert all(isinstance(amount, int) and 1 <= amount <= 8 for amount in amounts(record))


@pytest.mark.parametrize("baseline", ["none", "uniform", "permuted", "reversed", "random"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3337, 0.5, 0.9])
def test_sparsities_remove_exactly_the_weights_asked_for(gains, sparsity, baseline):
    record = allocate(gains, AllocateSettings(target="sparsity", budget=sparsity, baseline=baseline, seed=1))
    counts = np.asarray(amounts(record)) * LAYER_WEIGHTS
    assert np.abs(counts - np.round(counts)).max() < 1e-9  # a count over a size below 2^53
    assert round(counts.sum()) == record["budget"]["planned"] == round(sparsity * 12 * LAYER_WEIGHTS)
    assert max(amounts(record)) <= 0.95


def test_units_keep_integer_layer_order_and_larger_gains_get_more(gains):
    ranks = allocate(gains, AllocateSettings(budget=3.0))
    sparsities = allocate(gains, AllocateSettings(target="sparsity", budget=0.5))
    for record in (ranks, sparsities):
        assert [unit["name"] for unit in record["units"]] == [f"layers.{index}" for index in range(12)]
        assert [unit["index"] for unit in record["units"]] == list(range(12))
    order = np.argsort([unit["quality"] for unit in ranks["units"]])
    assert (np.diff(np.asarray(amounts(ranks))[order]) >= 0).all()
    assert (np.diff(np.asarray(amounts(sparsities))[order]) <= 1 / LAYER_WEIGHTS).all()


@pytest.mark.parametrize(("target", "budget"), [("rank", 3.0), ("sparsity", 0.5), ("experts", 4.0)])
def test_the_uniform_control_gives_all_units_the_same(gains, target, budget):
    record = allocate(gains, AllocateSettings(target=target, budget=budget, baseline="uniform"))
    assert amounts(record) == [budget] * 12


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("target", "budget"), [("rank", 3.0), ("experts", 3.5), ("sparsity", 0.5)])
def test_permuted_and_reversed_controls_hold_the_same_amounts(gains, target, budget, seed):
    own = amounts(allocate(gains, AllocateSettings(target=target, budget=budget)))
    dealt = amounts(allocate(gains, AllocateSettings(target=target, budget=budget, baseline="permuted", seed=seed)))
    turned = amounts(allocate(gains, AllocateSettings(target=target, budget=budget, baseline="reversed")))
    tolerance = 1.5 / LAYER_WEIGHTS if target == "sparsity" else 0  # ties of remainders go to the first unit
    assert np.abs(np.sort(dealt) - np.sort(own)).max() <= tolerance
    assert np.abs(np.asarray(turned[::-1]) - own).max() <= tolerance
    assert dealt != own


def test_a_control_leaves_unspent_what_the_priced_program_leaves_unspent(gains):
    priced = {"budget": 6.0, "alpha": 0.05}
    own = allocate(gains, AllocateSettings(**priced))
    dealt = allocate(gains, AllocateSettings(**priced, baseline="permuted", seed=1))
    assert own["status"] == "slack"
    assert own["budget"]["planned"] < own["budget"]["requested"]
    assert sorted(amounts(dealt)) == sorted(amounts(own))
    assert dealt["budget"]["planned"] == own["budget"]["planned"]


def test_seeds_deal_differently_and_repeatably(gains):
    def dealt(seed):
        return amounts(allocate(gains, AllocateSettings(budget=3.0, baseline="permuted", seed=seed)))

    assert dealt(1) == dealt(1)
    assert len({tuple(dealt(seed)) for seed in (1, 2, 3)}) == 3


@pytest.mark.parametrize("target", ["rank", "experts"])
def test_certified_ranges_contain_the_amounts(gains, target):
    record = allocate(gains, AllocateSettings(target=target, budget=3.0))
    ranges = record["certificate"]
    assert all(a <= b <= c for a, b, c in zip(ranges["least"], amounts(record), ranges["most"], strict=True))
    equal = [a == c for a, c in zip(ranges["least"], ranges["most"], strict=True)]
    assert (ranges["certified"], ranges["unique"]) == (sum(equal), all(equal))


def test_exact_scores_are_certified_in_full(gains):
    for unit in gains["units"]:
        unit["gains"][0]["upper"] = unit["gains"][0]["lower"]
    certificate = allocate(gains, AllocateSettings(budget=3.0))["certificate"]
    assert (certificate["certified"], certificate["unique"]) == (12, True)


@pytest.mark.parametrize(
    "settings",
    [{"score": "trace"}, {"score": "gradient-norm"}, {"baseline": "uniform"}, {"alpha": 1e-3}, {"floor": 0.1}],
)
def test_nothing_is_certified_where_the_bounds_say_nothing(gains, settings):
    assert allocate(gains, AllocateSettings(budget=3.0, **settings))["certificate"] is None


@pytest.mark.parametrize(("score", "column"), [("trace", "trace"), ("gradient-norm", "gradient_norm2")])
def test_other_columns_of_the_gains_decide_when_asked(gains, score, column):
    record = allocate(gains, AllocateSettings(score=score, budget=3.0))
    assert record["score"] == score
    assert [unit["score"] for unit in record["units"]] == [unit[column] for unit in gains["units"]]


def test_minimum_zero_lets_a_unit_go_without(gains):
    record = allocate(gains, AllocateSettings(budget=2.0, minimum=0))
    assert min(amounts(record)) == 0
    assert sum(amounts(record)) == 24
    assert all(unit["maximum"] == 8 for unit in record["units"])


def test_projections_of_unequal_cost_stay_within_the_budget(modules):
    record = allocate(modules, AllocateSettings(budget=2.0))
    costs = [unit["cost"] for unit in record["units"]]
    assert len(costs) == 84
    assert set(costs) == {24.0, 32.0, 40.0}
    spent = float(np.dot(costs, amounts(record)))
    assert spent == record["budget"]["planned"] <= record["budget"]["requested"]
    assert record["budget"]["requested"] - spent < min(costs)
    assert record["integers"]["unspent"] == pytest.approx(record["budget"]["requested"] - spent)
    assert record["certificate"] is None
    sides = [min(shape) for unit in modules["units"] for shape in unit["projections"].values()]
    assert [unit["maximum"] for unit in record["units"]] == sides


@pytest.mark.parametrize("baseline", ["uniform", "permuted", "reversed", "random"])
def test_controls_of_unequal_cost_stay_within_the_budget(modules, baseline):
    record = allocate(modules, AllocateSettings(budget=2.0, baseline=baseline, seed=1))
    spent = sum(unit["cost"] * unit["amount"] for unit in record["units"])
    assert spent == record["budget"]["planned"] <= record["budget"]["requested"]
    assert record["integers"]["unspent"] == pytest.approx(record["budget"]["requested"] - spent)
    if baseline == "uniform":
        assert set(amounts(record)) == {2}


def test_module_sparsities_are_exact_at_unequal_sizes(modules):
    record = allocate(modules, AllocateSettings(target="sparsity", budget=0.4))
    counts = [unit["amount"] * unit["cost"] for unit in record["units"]]
    assert np.allclose(counts, np.round(counts), rtol=0, atol=1e-9)
    assert round(sum(counts)) == record["budget"]["planned"] == round(0.4 * 12 * LAYER_WEIGHTS)


@pytest.mark.parametrize("baseline", ["none", "uniform", "permuted"])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"budget": 8.5}, "mean rank of 8.5 .* allow a mean of at most 8 "),
        ({"budget": 20.0, "minimum": 9}, "with a minimum of 9 is out of reach: .* a minimum of 8"),
        (
            {"budget": 0.5},
            "mean rank of 0.5 with a minimum of 1 is out of reach; give a budget of at least the minimum",
        ),
        ({"budget": 2.0, "minimum": -1}, "minimum of at least 0"),
        ({"target": "experts", "budget": 2.0, "minimum": 0}, "minimum of at least 1"),
        ({"target": "sparsity", "budget": 0.96}, "out of reach.*(0 to|maxima hold|the maxima) "),
        ({"target": "sparsity", "budget": 1.5}, "sparsity must be at least 0 and at most 1; got 1.5"),
        ({"target": "sparsity", "budget": -0.1}, "sparsity must be at least 0 and at most 1; got -0.1"),
    ],
)
def test_a_budget_out_of_reach_is_refused_with_the_limit(gains, settings, match, baseline):
    with pytest.raises(ValueError, match=match):
        allocate(gains, AllocateSettings(**settings, baseline=baseline))


def test_a_budget_at_the_limit_fills_every_unit(gains):
    record = allocate(gains, AllocateSettings(budget=8.0))
    assert amounts(record) == [8] * 12
    assert record["status"] == "at_capacity"


def test_a_unit_without_a_projection_is_refused_by_name(gains):
    gains["units"][11]["projections"] = {}
    with pytest.raises(ValueError, match=r"1 units have no projection matrix to adapt, e\.g\. \['layers\.11'\]"):
        allocate(gains, AllocateSettings(budget=2.0))


def test_an_allocation_that_is_refused_writes_nothing(gains, tmp_path):
    with pytest.raises(ValueError, match="out of reach"):
        allocate(gains, AllocateSettings(budget=100.0), tmp_path / "allocation.json")
    assert list(tmp_path.iterdir()) == []


def test_allowed_ranks_are_the_only_ones_and_the_best_that_fit(gains):
    record = allocate(gains, AllocateSettings(budget=4.0, allowed=(2, 4, 8)))
    assert set(amounts(record)) <= {2, 4, 8}
    assert record["budget"]["planned"] <= record["budget"]["requested"]
    assert record["integers"]["exact"]
    free = allocate(gains, AllocateSettings(budget=4.0))
    q = np.asarray([unit["quality"] for unit in gains and record["units"]])
    benefit = [q @ np.log(np.asarray(amounts(one))) for one in (record, free)]
    assert benefit[0] <= benefit[1]
    assert record["integers"]["gap"] >= 0
    uniform = allocate(gains, AllocateSettings(budget=4.0, allowed=(2, 4, 8), baseline="uniform"))
    assert sum(amounts(uniform)) <= 48
    assert q @ np.log(np.asarray(amounts(uniform))) <= benefit[0] + 1e-12


def test_all_ranks_allowed_are_the_program_without_a_menu(gains):
    menu = allocate(gains, AllocateSettings(budget=3.0, allowed=tuple(range(1, 9))))
    plain = allocate(gains, AllocateSettings(budget=3.0))
    q = np.asarray([unit["quality"] for unit in plain["units"]])
    values = [q @ np.log(np.asarray(amounts(one))) for one in (menu, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("utility", ["power", "saturating"])
def test_other_utilities_are_rounded_exactly_too(gains, utility):
    record = allocate(gains, AllocateSettings(budget=3.0, utility=utility))
    assert record["integers"]["exact"]
    assert sum(amounts(record)) == 36
    order = np.argsort([unit["quality"] for unit in record["units"]])
    assert (np.diff(np.asarray(amounts(record))[order]) >= 0).all()
    assert record["certificate"] is None


def test_frozen_units_stay_at_the_minimum(gains):
    for settings in ({"budget": 2.0}, {"budget": 2.0, "allowed": (1, 2, 4)}):
        record = allocate(gains, AllocateSettings(frozen=("layers.0", "layers.11"), **settings))
        assert amounts(record)[0] == amounts(record)[11] == 1
        assert record["budget"]["planned"] <= record["budget"]["requested"]
    sparse = allocate(gains, AllocateSettings(target="sparsity", budget=0.5, frozen=("layers.3",)))
    assert amounts(sparse)[3] == 0
    with pytest.raises(ValueError, match=r"1 frozen units are not in the gains, e\.g\. \['layers\.12'\]"):
        allocate(gains, AllocateSettings(budget=2.0, frozen=("layers.12",)))


@pytest.mark.parametrize("target", ["rank", "sparsity", "bits"])
def test_tied_projections_receive_the_same(modules, target):
    budget = {"rank": 2.0, "sparsity": 0.5, "bits": 4.0}[target]
    by_layer = allocate(modules, AllocateSettings(target=target, budget=budget, tie="layer"))
    by_kind = allocate(modules, AllocateSettings(target=target, budget=budget, tie="projection"))
    rows = np.asarray(amounts(by_layer), float).reshape(12, 7)
    columns = np.asarray(amounts(by_kind), float).reshape(12, 7)
    tolerance = 1e-2 if target == "sparsity" else 0  # whole weights
    assert np.ptp(rows, axis=1).max() <= tolerance < np.ptp(rows, axis=0).max()
    assert np.ptp(columns, axis=0).max() <= tolerance
    assert by_layer["budget"]["planned"] <= by_layer["budget"]["requested"] * (1 + 1e-12) + 1


def test_tying_projections_needs_projections(gains):
    with pytest.raises(ValueError, match="score with --granularity module"):
        allocate(gains, AllocateSettings(budget=2.0, tie="projection"))


def test_patterns_are_whole_and_remove_at_least_what_was_asked(gains):
    record = allocate(gains, AllocateSettings(target="sparsity", budget=0.5, pattern=4))
    assert set(np.asarray(amounts(record)) * 4) <= {0.0, 1.0, 2.0, 3.0}
    assert np.mean(amounts(record)) == 0.5
    eighths = allocate(gains, AllocateSettings(target="sparsity", budget=0.55, pattern=8))
    assert 0.55 <= np.mean(amounts(eighths)) < 0.55 + 1 / 96 + 1e-9
    assert eighths["budget"]["planned"] >= eighths["budget"]["requested"]


def test_bits_meet_their_budget_and_follow_the_scores(gains):
    for score in ("zeta2", "trace"):
        record = allocate(gains, AllocateSettings(target="bits", budget=4.0, score=score))
        assert set(amounts(record)) <= {2, 3, 4, 8}
        assert record["budget"]["planned"] <= record["budget"]["requested"] == 4 * 12 * LAYER_WEIGHTS
        assert record["integers"]["exact"]
    uniform = allocate(gains, AllocateSettings(target="bits", budget=4.0, baseline="uniform"))
    assert amounts(uniform) == [4] * 12
    chosen = allocate(gains, AllocateSettings(target="bits", budget=5.0, allowed=(2, 8)))
    assert set(amounts(chosen)) == {2, 8}
    dealt = allocate(gains, AllocateSettings(target="bits", budget=5.0, allowed=(2, 8), baseline="permuted", seed=1))
    assert sorted(amounts(dealt)) == sorted(amounts(chosen)) != amounts(dealt)
    with pytest.raises(ValueError, match=r"out of reach: the cheapest choices cost"):
        allocate(gains, AllocateSettings(target="bits", budget=1.5))


def test_costs_come_from_a_table_where_one_is_given(gains, tmp_path):
    table = {f"layers.{k}": 1.0 + k % 3 for k in range(12)}
    (tmp_path / "latency.json").write_text(json.dumps(table))
    record = allocate(gains, AllocateSettings(budget=3.0, cost=str(tmp_path / "latency.json")))
    assert [unit["cost"] for unit in record["units"]] == list(table.values())
    assert record["budget"]["requested"] == 3.0 * sum(table.values())
    assert record["budget"]["unit"] == "units of latency"
    units = allocate(gains, AllocateSettings(budget=3.0, cost="units"))
    assert {unit["cost"] for unit in units["units"]} == {1.0}
    assert units["budget"]["unit"] == "ranks"
    flops = allocate(gains, AllocateSettings(budget=3.0, cost="flops"))
    assert {unit["cost"] for unit in flops["units"]} == {2.0 * LAYER_COST}
    assert (flops["budget"]["unit"], amounts(flops)) == ("FLOPs per token", amounts(units))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no table of costs at"),
        ("{", "is not valid JSON"),
        ("[1]", "must give one cost for each of the 12 units: 12 are missing"),
        (
            json.dumps({f"layers.{k}": 1 for k in range(11)} | {"layers.99": 1}),
            r"1 are missing, e\.g\. \['layers\.11'\], and 1",
        ),
        (json.dumps({f"layers.{k}": k for k in range(12)}), "'layers.0' has 0"),
        (json.dumps({f"layers.{k}": True for k in range(12)}), "'layers.0' has True"),
    ],
)
def test_a_table_of_costs_that_does_not_fit_is_refused(gains, tmp_path, content, match):
    path = tmp_path / "costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=match):
        allocate(gains, AllocateSettings(budget=3.0, cost=str(path)))


def test_a_sweep_is_the_curve_of_what_more_budget_buys(gains):
    record = allocate(gains, AllocateSettings(budget=3.0, sweep=(2.0, 3.0, 4.0, 6.0)))
    path = record["path"]
    assert [point["budget"] for point in path] == [2.0, 3.0, 4.0, 6.0]
    assert path[1]["continuous"] == pytest.approx([unit["continuous"] for unit in record["units"]])
    assert path[1]["dual"] == pytest.approx(record["dual"])
    assert (np.diff([point["objective"] for point in path]) < 0).all()
    assert (np.diff([point["dual"] for point in path]) < 0).all()
    sparse = allocate(gains, AllocateSettings(target="sparsity", budget=0.5, sweep=(0.3, 0.6)))
    assert [np.mean(point["continuous"]) for point in sparse["path"]] == pytest.approx([0.3, 0.6])


def test_evidence_and_remarks_stand_in_the_record(gains):
    record = allocate(gains, AllocateSettings(budget=3.0))
    assert record["gap"] < 1e-12
    assert "alpha and gamma cancel" in record["remark"]
    assert {unit["held"] for unit in record["units"]} <= {None, "lower", "upper"}
    assert allocate(gains, AllocateSettings(budget=6.0, alpha=0.05))["remark"] is None
    sparse = allocate(gains, AllocateSettings(target="sparsity", budget=0.5))
    ranges = sparse["certificate"]
    middle = [unit["continuous"] for unit in sparse["units"]]
    assert all(a <= b <= c for a, b, c in zip(ranges["least"], middle, ranges["most"], strict=True))
    assert ranges["widest"] < 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pattern": 4}, r"\['pattern'\] say nothing about rank"),
        ({"target": "sparsity", "allowed": (1,)}, r"\['allowed'\] say nothing about sparsity"),
        ({"allowed": (-1,)}, "must be at least 0"),
    ],
)
def test_settings_of_another_target_are_refused_at_once(settings, match):
    with pytest.raises(ValueError, match=match):
        AllocateSettings(**settings)


def test_allowed_values_that_no_unit_can_take_are_refused(gains):
    with pytest.raises(
        ValueError, match=r"12 units can take none of the allowed values \[16\], e\.g\. unit 0.*from 1 to 8"
    ):
        allocate(gains, AllocateSettings(budget=4.0, allowed=(16,)))


def test_a_unit_without_gain_takes_nothing_from_a_menu_whatever_the_exponent(gains):
    gains["units"][4]["gains"][0] |= {"lower": 0.0, "upper": 0.0}
    record = allocate(gains, AllocateSettings(budget=3.0, beta=0.0, allowed=(1, 2, 4, 8)))
    assert amounts(record)[4] == 1


@pytest.mark.parametrize(
    "settings", [{"target": "bits", "budget": 5.0, "allowed": (2, 8)}, {"budget": 4.0, "allowed": (2, 4, 8)}]
)
def test_random_scores_fill_a_menu_too(gains, settings):
    dealt = [allocate(gains, AllocateSettings(**settings, baseline="random", seed=seed)) for seed in (1, 2)]
    assert amounts(dealt[0]) != amounts(dealt[1])
    for record in dealt:
        assert record["budget"]["planned"] <= record["budget"]["requested"]
