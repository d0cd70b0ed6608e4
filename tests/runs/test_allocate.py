from dataclasses import replace

import numpy as np
import pytest

from curvjax.allocation import PROGRAMS, Bits, Experts, Ranks, Sparsity
from curvjax.allocation.rules import RULES
from curvjax.records import Allocation, Scores
from curvjax.runs.allocate import allocate, program_of, rules_of
from curvjax.testing import tiny_scores

LAYER_COST = 3 * (16 + 24) + 2 * (16 + 16) + 2 * (16 + 8)
LAYER_WEIGHTS = 3 * 16 * 24 + 2 * 16 * 16 + 2 * 16 * 8
WAYS = [
    {},
    {"rule": "uniform"},
    {"control": "permuted", "seed": 1},
    {"control": "reversed"},
    {"control": "random", "seed": 1},
]
PROGRAMS_OF = {"rank": Ranks(3), "experts": Experts(3), "sparsity": Sparsity(0.5), "bits": Bits(4)}
BY_RULE = [(target, rule) for target in PROGRAMS_OF for rule in rules_of(target)]
OTHERS = [(target, name) for target in PROGRAMS_OF for name in RULES if target not in RULES[name].targets]
SCORES = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0]


def amounts(allocation):
    return list(allocation.amounts.values())


def qualities(allocation):
    return np.asarray([unit.quality for unit in allocation.units])


def with_unit(scores, k, **changes):
    units = list(scores.units)
    units[k] = replace(units[k], **changes)
    return replace(scores, units=tuple(units))


def test_an_allocation_says_what_it_is_of_and_comes_back_from_its_file(gains, tmp_path):
    found = allocate(gains, Ranks(2))
    assert Allocation.load(found.save(tmp_path / "allocation.json")) == found
    assert found.scores_sha256 == gains.sha256
    assert found.origin.model == gains.origin.model
    assert (found.target, found.score, found.rule, found.control) == ("rank", "gain", "program", "none")
    assert (found.status, found.budget.unit) == ("optimal", "adapter parameters")
    assert found.residual < 1e-6
    assert [unit.cost for unit in found.units] == [LAYER_COST] * 12
    assert [unit.size for unit in found.units] == [LAYER_WEIGHTS] * 12
    assert qualities(found).sum() == pytest.approx(1.0, rel=1e-12)
    assert program_of(found) == Ranks(2)


@pytest.mark.parametrize(("target", "rule"), BY_RULE)
def test_every_rule_shares_out_its_budget_in_whole_amounts_that_come_back_from_json(target, rule):
    scores, program = tiny_scores(SCORES), PROGRAMS_OF[target]
    found = allocate(scores, program, rule=rule)
    assert Allocation.from_json(found.to_json()) == found
    assert all(type(amount) is int for amount in amounts(found))
    cost, size = np.asarray([unit.cost for unit in found.units]), [unit.size for unit in found.units]
    assert found.spent == found.budget.planned == pytest.approx(cost @ amounts(found))
    room = cost[0] * len(SCORES) * (rule == "floor")
    assert found.budget.requested - room <= found.spent <= found.budget.requested * (1 + 1e-12)
    assert all(0 <= unit.amount <= (unit.maximum or np.inf) for unit in found.units)
    assert max(abs(unit.amount - unit.continuous) for unit in found.units) <= 1 + (target == "bits")
    if target == "sparsity":
        np.testing.assert_allclose(found.shares, np.asarray(amounts(found)) / size)
    if rule != "program":
        assert found.dual is found.residual is found.certificate is found.units[0].quality is None
        assert found.sweep == ()


@pytest.mark.parametrize("target", PROGRAMS_OF)
def test_rules_say_whether_they_look_at_scores(target):
    chosen = Bits(5) if target == "bits" else PROGRAMS_OF[target]  # 4 bits each are the best of 4 on average
    for rule in rules_of(target):
        both = [allocate(tiny_scores(scores), chosen, rule=rule) for scores in (SCORES, SCORES[::-1])]
        one, other = ([unit.continuous for unit in found.units] for found in both)
        assert (one != other) == (rule == "program" or RULES[rule].reads_scores), rule


@pytest.mark.parametrize(("target", "rule"), OTHERS)
def test_a_rule_of_another_target_is_refused(target, rule):
    with pytest.raises(ValueError, match=rf"the rule '{rule}' is of .*, not of {target}; there are program, "):
        allocate(tiny_scores(SCORES), PROGRAMS_OF[target], rule=rule)


@pytest.mark.parametrize(
    ("way", "match"),
    [
        ({"rule": "uniforn"}, "unknown rules: uniforn; there are "),
        ({"control": "shuffled"}, "unknown controls: shuffled; there are none, permuted"),
    ],
)
def test_unknown_names_are_refused(way, match):
    with pytest.raises(ValueError, match=match):
        allocate(tiny_scores(SCORES), Ranks(3), **way)


def test_a_rule_takes_the_setting_that_comparisons_choose_and_says_it():
    scores = tiny_scores(SCORES)
    near, far = (allocate(scores, Sparsity(0.5), rule="owl", rule_setting=spread) for spread in (0.04, 0.25))
    assert allocate(scores, Sparsity(0.5), rule="owl").amounts == allocate(
        scores, Sparsity(0.5), rule="owl", rule_setting=0.08
    ).amounts  # fmt: skip
    assert far.origin.settings["spread"] == 0.25
    apart = [np.ptp([unit.continuous / unit.size for unit in each.units]) for each in (near, far)]
    assert apart == pytest.approx([0.08, 0.5])
    with pytest.raises(ValueError, match=r"spread must be .* got 1\.5"):
        allocate(scores, Sparsity(0.5), rule="owl", rule_setting=1.5)


@pytest.mark.parametrize("rule", ["program", "uniform", "ecoflap"])
def test_a_setting_of_a_rule_that_has_none_is_refused(rule):
    with pytest.raises(ValueError, match=rf"the rule '{rule}' has no setting of its own; there are .*owl \(spread\)"):
        allocate(tiny_scores(SCORES), Sparsity(0.5), rule=rule, rule_setting=0.1)


def test_rules_get_the_scores_as_they_are():
    exponents = np.linspace(2.0, 6.0, 8)
    found = allocate(tiny_scores(-exponents), Sparsity(0.5), rule="alphapruning")
    share = [unit.continuous / unit.size for unit in found.units]
    np.testing.assert_allclose(share, 0.5 * np.linspace(0.7, 1.3, 8), rtol=1e-9)


def test_negative_measures_enter_the_program_by_their_reciprocals():
    measure = np.asarray([1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0])  # larger: remove more
    scores = tiny_scores(-measure)
    scores = replace(scores, units=tuple(replace(unit, lower=None, upper=None) for unit in scores.units))
    found = allocate(scores, Sparsity(0.4, kappa=1.0))
    share = [unit.continuous / unit.size for unit in found.units]
    np.testing.assert_allclose(share, 0.4 * measure / measure.mean(), rtol=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", [1.0, 2.0, 2.5, 5.0])
def test_ranks_spend_their_budget_exactly(gains, budget, way):
    found = allocate(gains, Ranks(budget), **way)
    assert found.spent == found.budget.planned == found.budget.requested == budget * 12 * LAYER_COST
    assert sum(amounts(found)) == 12 * budget
    assert all(1 <= amount <= 8 for amount in amounts(found))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3337, 0.5, 0.9])
def test_sparsities_remove_exactly_the_weights_asked_for(gains, sparsity, way):
    found = allocate(gains, Sparsity(sparsity), **way)
    assert sum(amounts(found)) == found.budget.planned == round(sparsity * 12 * LAYER_WEIGHTS)
    assert max(found.shares) <= 0.95


def test_units_keep_integer_layer_order_and_larger_gains_get_more(gains):
    ranks, sparsities = allocate(gains, Ranks(3)), allocate(gains, Sparsity(0.5))
    for found in (ranks, sparsities):
        assert [unit.name for unit in found.units] == [f"layers.{index}" for index in range(12)]
        assert [unit.index for unit in found.units] == list(range(12))
    order = np.argsort(qualities(ranks))
    assert (np.diff(np.asarray(amounts(ranks))[order]) >= 0).all()
    assert (np.diff(np.asarray(amounts(sparsities))[order]) <= 1).all()


@pytest.mark.parametrize(
    ("program", "amount"), [(Ranks(3), 3), (Sparsity(0.5), LAYER_WEIGHTS // 2), (Experts(4), 4), (Bits(4), 4)]
)
def test_the_uniform_rule_gives_all_units_the_same(gains, program, amount):
    assert amounts(allocate(gains, program, rule="uniform")) == [amount] * 12


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("program", [Ranks(3), Experts(3.5), Sparsity(0.5)], ids=lambda program: program.target)
def test_permuted_and_reversed_controls_hold_the_same_amounts(gains, program, seed):
    own = amounts(allocate(gains, program))
    dealt = amounts(allocate(gains, program, control="permuted", seed=seed))
    turned = amounts(allocate(gains, program, control="reversed"))
    tolerance = program.target == "sparsity"  # ties of remainders go to the first unit
    assert np.abs(np.sort(dealt) - np.sort(own)).max() <= tolerance
    assert np.abs(np.asarray(turned[::-1]) - own).max() <= tolerance
    assert dealt != own


def test_a_control_leaves_unspent_what_the_priced_program_leaves_unspent(gains):
    priced = Ranks(6, alpha=0.05)
    own, dealt = allocate(gains, priced), allocate(gains, priced, control="permuted", seed=1)
    assert own.status == "slack"
    assert own.budget.planned < own.budget.requested
    assert sorted(amounts(dealt)) == sorted(amounts(own))
    assert dealt.budget.planned == own.budget.planned


def test_seeds_deal_differently_and_repeatably(gains):
    def dealt(seed):
        return amounts(allocate(gains, Ranks(3), control="permuted", seed=seed))

    assert dealt(1) == dealt(1)
    assert len({tuple(dealt(seed)) for seed in (1, 2, 3)}) == 3


def test_minimum_zero_lets_a_unit_go_without(gains):
    found = allocate(gains, Ranks(2, minimum=0))
    assert min(amounts(found)) == 0
    assert sum(amounts(found)) == 24
    assert all(unit.maximum == 8 for unit in found.units)


def test_projections_of_unequal_cost_stay_within_the_budget(modules):
    found = allocate(modules, Ranks(2))
    costs = [unit.cost for unit in found.units]
    assert len(costs) == 84
    assert set(costs) == {24.0, 32.0, 40.0}
    assert found.spent == found.budget.planned <= found.budget.requested
    assert found.budget.requested - found.spent < min(costs)
    assert found.whole.unspent == pytest.approx(found.budget.requested - found.spent)
    assert found.certificate is None
    sides = [min(shape) for unit in modules.units for shape in unit.projections.values()]
    assert [unit.maximum for unit in found.units] == sides


@pytest.mark.parametrize("way", WAYS[1:])
def test_controls_of_unequal_cost_stay_within_the_budget(modules, way):
    found = allocate(modules, Ranks(2), **way)
    assert found.spent == found.budget.planned <= found.budget.requested
    assert found.whole.unspent == pytest.approx(found.budget.requested - found.spent)
    if "rule" in way:
        assert set(amounts(found)) == {2}


def test_module_sparsities_are_exact_at_unequal_sizes(modules):
    found = allocate(modules, Sparsity(0.4))
    assert sum(amounts(found)) == found.budget.planned == round(0.4 * 12 * LAYER_WEIGHTS)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize(
    ("program", "match"),
    [
        (Ranks(8.5), "mean rank of 8.5 .* allow a mean of at most 8 "),
        (Ranks(20, minimum=9), "with a minimum of 9 is out of reach: .* a minimum of 8"),
        (Sparsity(0.96), "out of reach.*(0 to|maxima hold|the maxima) "),
    ],
)
def test_a_budget_out_of_reach_is_refused_with_the_limit(gains, program, match, way):
    with pytest.raises(ValueError, match=match):
        allocate(gains, program, **way)


def test_a_budget_at_the_limit_fills_every_unit(gains):
    found = allocate(gains, Ranks(8))
    assert amounts(found) == [8] * 12
    assert found.status == "at_capacity"


def test_a_unit_without_a_projection_is_refused_by_name(gains):
    with pytest.raises(ValueError, match=r"1 units have no projection matrix to adapt, e\.g\. \['layers\.11'\]"):
        allocate(with_unit(gains, 11, projections={}), Ranks(2))


@pytest.mark.parametrize("pattern", [0, 4])
def test_a_score_of_zero_is_pruned_with_a_floor_alone(gains, pattern):
    idle = with_unit(gains, 10, value=0.0, lower=0.0, upper=0.0)
    with pytest.raises(ValueError, match=r"units \[10\] have q = 0, .* give a floor, such as 0\.05"):
        allocate(idle, Sparsity(0.5, pattern=pattern))
    found = allocate(idle, Sparsity(0.5, floor=0.05, pattern=pattern))
    assert amounts(found)[10] == max(amounts(found))


def test_allowed_ranks_are_the_only_ones_and_the_best_that_fit(gains):
    menu, free, uniform = (
        allocate(gains, Ranks(4, allowed=(2, 4, 8))),
        allocate(gains, Ranks(4)),
        allocate(gains, Ranks(4, allowed=(2, 4, 8)), rule="uniform"),
    )
    assert set(amounts(menu)) <= {2, 4, 8}
    assert menu.budget.planned <= menu.budget.requested
    assert menu.whole.exact
    assert menu.whole.gap >= 0
    best, most, even = (qualities(free) @ np.log(amounts(found)) for found in (menu, free, uniform))
    assert even - 1e-12 <= best <= most
    assert sum(amounts(uniform)) <= 48


def test_all_ranks_allowed_are_the_program_without_a_menu(gains):
    menu, plain = allocate(gains, Ranks(3, allowed=tuple(range(1, 9)))), allocate(gains, Ranks(3))
    values = [qualities(plain) @ np.log(amounts(found)) for found in (menu, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize("utility", ["power", "saturating"])
def test_other_utilities_are_rounded_exactly_too(gains, utility):
    found = allocate(gains, Ranks(3, utility=utility))
    assert found.whole.exact
    assert sum(amounts(found)) == 36
    assert (np.diff(np.asarray(amounts(found))[np.argsort(qualities(found))]) >= 0).all()


@pytest.mark.parametrize("allowed", [(), (1, 2, 4)])
def test_frozen_units_stay_at_the_minimum(gains, allowed):
    found = allocate(gains, Ranks(2, frozen=("layers.0", "layers.11"), allowed=allowed))
    assert amounts(found)[0] == amounts(found)[11] == 1
    assert found.budget.planned <= found.budget.requested
    assert amounts(allocate(gains, Sparsity(0.5, frozen=("layers.3",))))[3] == 0


@pytest.mark.parametrize("target", ["rank", "sparsity", "bits"])
def test_tied_projections_receive_the_same(modules, target):
    budget = {"rank": 2.0, "sparsity": 0.5, "bits": 4.0}[target]
    by_layer, by_kind = (allocate(modules, PROGRAMS[target](budget, tie=tie)) for tie in ("layer", "projection"))
    rows, columns = (
        (found.shares if target == "sparsity" else np.asarray(amounts(found))).reshape(12, 7)
        for found in (by_layer, by_kind)
    )
    tolerance = 1e-2 if target == "sparsity" else 0  # whole weights
    assert np.ptp(rows, axis=1).max() <= tolerance < np.ptp(rows, axis=0).max()
    assert np.ptp(columns, axis=0).max() <= tolerance
    assert by_layer.budget.planned <= by_layer.budget.requested * (1 + 1e-12) + 1


def test_patterns_are_whole_and_remove_at_least_what_was_asked(gains):
    found = allocate(gains, Sparsity(0.5, pattern=4))
    assert set((found.shares * 4).tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert np.mean(found.shares) == 0.5
    eighths = allocate(gains, Sparsity(0.55, pattern=8))
    assert 0.55 <= np.mean(eighths.shares) < 0.55 + 1 / 96 + 1e-9
    assert eighths.budget.planned >= eighths.budget.requested


def test_bits_meet_their_budget_and_follow_the_scores(gains):
    for found in (allocate(gains, Bits(4)), allocate(gains.column("trace"), Bits(4, energy=True))):
        assert set(amounts(found)) <= {2, 3, 4, 8}
        assert found.budget.planned <= found.budget.requested == 4 * 12 * LAYER_WEIGHTS
        assert found.whole.exact
    chosen = allocate(gains, Bits(5, allowed=(2, 8)))
    assert set(amounts(chosen)) == {2, 8}
    dealt = allocate(gains, Bits(5, allowed=(2, 8)), control="permuted", seed=1)
    assert sorted(amounts(dealt)) == sorted(amounts(chosen)) != amounts(dealt)


@pytest.mark.parametrize("program", [Bits(5, allowed=(2, 8)), Ranks(4, allowed=(2, 4, 8))])
def test_random_scores_fill_a_menu_too(gains, program):
    dealt = [allocate(gains, program, control="random", seed=seed) for seed in (1, 2)]
    assert amounts(dealt[0]) != amounts(dealt[1])
    assert all(found.budget.planned <= found.budget.requested for found in dealt)


def test_a_unit_without_gain_takes_nothing_from_a_menu_whatever_the_exponent(gains):
    idle = with_unit(gains, 4, value=0.0, lower=0.0, upper=0.0)
    assert amounts(allocate(idle, Ranks(3, beta=0.0, allowed=(1, 2, 4, 8))))[4] == 1


def test_a_sweep_is_the_curve_of_what_more_budget_buys(gains):
    found = allocate(gains, Ranks(3, sweep=(2.0, 3.0, 4.0, 6.0)))
    assert [point.budget for point in found.sweep] == [2.0, 3.0, 4.0, 6.0]
    assert found.sweep[1].continuous == pytest.approx([unit.continuous for unit in found.units])
    assert found.sweep[1].dual == pytest.approx(found.dual)
    assert (np.diff([point.objective for point in found.sweep]) < 0).all()
    assert (np.diff([point.dual for point in found.sweep]) < 0).all()
    sparse = allocate(gains, Sparsity(0.5, sweep=(0.3, 0.6)))
    shares = [np.mean(point.continuous) / LAYER_WEIGHTS for point in sparse.sweep]
    assert shares == pytest.approx([0.3, 0.6])
    assert Allocation.from_json(sparse.to_json()) == sparse


def test_evidence_and_remarks_stand_in_the_record(gains):
    found = allocate(gains, Ranks(3))
    assert found.gap < 1e-12
    assert "alpha and gamma cancel" in found.remark
    assert {unit.held for unit in found.units} <= {None, "lower", "upper"}
    assert allocate(gains, Ranks(6, alpha=0.05)).remark is None
    sparse = allocate(gains, Sparsity(0.5))
    ranges, middle = sparse.certificate, [unit.continuous for unit in sparse.units]
    assert all(a <= b <= c for a, b, c in zip(ranges.least, middle, ranges.most, strict=True))
    assert ranges.widest < LAYER_WEIGHTS


def test_scores_come_back_from_json(gains):
    assert Scores.from_json(gains.to_json()) == gains
    assert Scores.from_json(gains.to_json()).sha256 == gains.sha256


def test_a_file_needs_the_number_of_the_models_parameters(gains):
    found = allocate(gains, Bits(80_000, budget_of="file", stored_group=8))
    rest = gains.origin.model.parameters - 12 * LAYER_WEIGHTS
    assert program_of(found).beside == 4 * rest
    assert 4 * rest < found.budget.planned <= found.budget.requested == 80_000
    unknown = replace(gains, origin=replace(gains.origin, model=replace(gains.origin.model, parameters=0)))
    with pytest.raises(ValueError, match="do not say how many parameters the model has"):
        allocate(unknown, Bits(80_000, budget_of="file", stored_group=8))
    given = allocate(unknown, Bits(80_000, budget_of="file", stored_group=8, beside=4 * rest))
    assert given.amounts == found.amounts


@pytest.mark.parametrize("rule", ["program", "uniform", "proportional"])
@pytest.mark.parametrize(
    ("where", "there"),
    [
        ({"best": 3}, {4, 5, 7}),
        ({"from_layer": 5}, {5, 6, 7}),
        ({"best": 2, "from_layer": 6}, {6, 7}),
        ({"best": 8}, None),
    ],
)
def test_the_whole_budget_goes_to_the_best_units_or_to_those_above(rule, where, there):
    found = allocate(tiny_scores(SCORES), Ranks(3, minimum=0), rule=rule, **where)
    given = {k for k, amount in enumerate(amounts(found)) if amount}
    assert given <= (there or set(range(8)))
    assert sum(amounts(found)) == 3 * 8
    assert rule != "uniform" or there is None or given == there
    assert where.items() <= found.origin.settings.items()
    assert program_of(found).frozen == tuple(f"layers.{k}" for k in range(8) if there is not None and k not in there)
    assert found.certificate is None or "best" not in where


def test_the_best_are_those_of_the_controls_scores():
    found = allocate(tiny_scores(SCORES), Ranks(2, minimum=0), rule="uniform", control="reversed", best=1)
    assert amounts(found) == [0, 0, 16, 0, 0, 0, 0, 0]  # the fifth from the other end is 9


@pytest.mark.parametrize(
    ("program", "where", "message"),
    [
        (Ranks(3), {"best": 2}, "only ranks with a minimum of 0 leave units without any"),
        (Sparsity(0.5), {"from_layer": 2}, "only ranks with a minimum of 0"),
        (Ranks(3, minimum=0), {"best": 9}, "the best 9 units from layer 0 on are not there: 8 of 8 are"),
        (Ranks(3, minimum=0), {"from_layer": 8}, "from layer 8 on are not there: 0 of 8 are"),
        (Ranks(3, minimum=0), {"best": -1}, "the best -1 units"),
        (Ranks(3, minimum=0), {"from_layer": -1}, "from layer -1 on"),
    ],
)
def test_places_that_are_not_there_are_refused(program, where, message):
    with pytest.raises(ValueError, match=message):
        allocate(tiny_scores(SCORES), program, **where)


def test_a_bracket_that_reaches_zero_has_no_certificate_where_removing_would_be_free(gains):
    first, *others = gains.units
    reaching = replace(gains, units=(replace(first, lower=0.0), *others))
    assert allocate(gains, Sparsity(0.5)).certificate is not None
    assert allocate(reaching, Sparsity(0.5)).certificate is None
    assert allocate(reaching, Ranks(3)).certificate is not None
