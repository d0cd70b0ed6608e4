"""The programs as values: what they cost, refuse and round to, over units that are only shapes."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest

from curvjax.allocation import PROGRAMS, RULES, Bits, Experts, Ranks, Sparsity, program, transfer_regret
from curvjax.allocation.program import tied_units
from curvjax.layers import UnitShape

KINDS = ("self_attn.q_proj", "mlp.up_proj")
LAYERS = tuple(
    UnitShape(f"layers.{k}", k, {f"layers.{k}.{KINDS[0]}": (16, 16), f"layers.{k}.{KINDS[1]}": (16, 24)}, 640, 2.0)
    for k in range(12)
)
MODULES = tuple(
    UnitShape(path, unit.index, {path: shape}, shape[0] * shape[1], 2.0 + unit.index)
    for unit in LAYERS
    for path, shape in unit.projections.items()
)
FOUR = {"rank": Ranks(3), "experts": Experts(3), "sparsity": Sparsity(0.5), "bits": Bits(4)}
Q = np.asarray([5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 7.0, 8.0, 6.0, 0.5, 0.25, 0.125])


def drawn(posed, seed):
    """Amounts of another method that spend the whole budget."""
    share = np.random.default_rng(seed).uniform(0.5, 1.5, len(posed.cost))
    weight = np.asarray(posed.budget.weight, np.float64)
    return share * float(posed.budget.total) / (weight @ share)


def test_the_registry_has_the_four_and_their_defaults_leave_the_scores_alone():
    assert set(FOUR) <= set(PROGRAMS)
    for name, kind in ((name, PROGRAMS[name]) for name in FOUR):
        assert kind.target == name
        assert (kind().floor, kind().sweep) == (0.0, ())
        assert kind(**asdict(FOUR[name])) == FOUR[name]
    assert (Ranks().budget, Experts().budget, Sparsity().budget, Bits().budget) == (8.0, 4.0, 0.5, 4.0)
    assert (Ranks().cost, Experts().cost) == ("parameters", "units")


def test_a_taken_name_is_refused():
    class Again(Ranks):
        pass

    with pytest.raises(ValueError, match=r"there is a program 'rank' already, of curvjax\.allocation\.ranks"):
        program(Again)


@pytest.mark.parametrize(
    ("ranks", "costs", "unit"),
    [
        (Ranks(3), [32 + 40] * 12, "adapter parameters"),
        (Ranks(3, cost="flops"), [2 * (32 + 40)] * 12, "FLOPs per token"),
        (Ranks(3, cost="units"), [1] * 12, "ranks"),
        (Experts(3), [1] * 12, "experts"),
        (Experts(3, cost="parameters"), [32 + 40] * 12, "adapter parameters"),
        (
            Ranks(3, cost="latency", costs={f"layers.{k}": 1.0 + k % 3 for k in range(12)}),
            [1 + k % 3 for k in range(12)],
            "units of latency",
        ),
    ],
)
def test_costs_are_those_of_the_projections_or_of_a_table(ranks, costs, unit):
    posed = ranks.pose(LAYERS)
    assert (posed.cost.tolist(), posed.unit, posed.requested) == (costs, unit, 3.0 * sum(costs))
    assert unit.split()[0].rstrip("s") in posed.meaning


def test_weights_are_counted_in_sparsities_and_bits():
    assert Sparsity(0.25).pose(LAYERS).requested == 0.25 * 12 * 640
    assert Bits(3).pose(LAYERS).cost.tolist() == [640] * 12
    assert Bits(3).pose(MODULES).cost.tolist() == [256, 384] * 12
    assert Sparsity(0.5).pose(MODULES).maximum.tolist() == pytest.approx([0.95 * 256, 0.95 * 384] * 12)
    assert Ranks(3).pose(MODULES).maximum.tolist() == [16.0] * 24


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("units", [LAYERS, MODULES], ids=["layers", "modules"])
@pytest.mark.parametrize("name", FOUR)
def test_rounded_amounts_are_whole_and_meet_the_total(name, units, seed):
    posed = FOUR[name].pose(units)
    amount = drawn(posed, seed)
    found = posed.rounded(amount)
    spent = float(posed.cost @ found.amount)
    assert found.amount.dtype == np.int64
    assert spent <= posed.requested * (1 + 1e-12)
    assert found.unspent == pytest.approx(posed.requested - spent, abs=1e-6)
    if name == "bits":
        return  # a menu leaves over what the next width of no unit fits in
    assert posed.requested - spent < (posed.cost.max() if len(set(posed.cost)) > 1 else 1e-6)
    assert np.abs(found.amount - posed.scale * amount).max() <= 1


@pytest.mark.parametrize("changes", [{"allowed": (1, 2, 4, 8)}, {"tie": "layer"}, {"utility": "saturating"}])
def test_rounded_amounts_keep_to_menus_and_ties(changes):
    posed = Ranks(3, **changes).pose(MODULES)
    found = posed.rounded(drawn(posed, 1))
    assert posed.cost @ found.amount <= posed.requested
    assert set(found.amount) <= set(changes.get("allowed", range(1, 17)))
    if "tie" in changes:
        assert (found.amount.reshape(12, 2) == found.amount.reshape(12, 2)[:, :1]).all()


@pytest.mark.parametrize("name", FOUR)
def test_published_rules_share_out_what_the_program_counts(name):
    posed = FOUR[name].pose(LAYERS)
    for rule in (rule for rule in RULES.values() if name in rule.targets):
        amount = np.asarray(rule.of(Q, posed.budget))
        whole = posed.rounded(amount).amount
        assert posed.cost @ whole <= posed.requested * (1 + 1e-12)
        assert (whole <= posed.maximum).all()


@pytest.mark.parametrize("name", ["rank", "experts"])
def test_unequal_costs_are_never_overspent(name):
    posed = PROGRAMS[name](2.7, cost="parameters").pose(MODULES)
    q = np.tile(Q, 2)
    for whole in (posed.whole(q / q.sum()), *(posed.rounded(RULES[rule].of(q, posed.budget)) for rule in ("floe",))):
        assert whole.amount.dtype == np.int64
        assert -1e-6 <= posed.requested - posed.cost @ whole.amount < posed.cost.max()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_proved_is_what_is_rounded(seed):
    """`monotone` is traceable and gives the same whole amounts as `whole`."""
    q = np.random.default_rng(seed).gamma(1.0, size=12)
    for chosen in (Ranks(3.5), Experts(3.5), Ranks(3.5, frozen=("layers.3",))):
        posed = chosen.pose(LAYERS)
        np.testing.assert_array_equal(posed.monotone(q), posed.whole(q).amount)
    sparse = Sparsity(0.5).pose(LAYERS)
    np.testing.assert_allclose(sparse.monotone(q), sparse.scale * sparse.solve(q).amount)


@pytest.mark.parametrize(
    ("chosen", "monotone", "ties", "paper"),
    [
        (Ranks(3), True, False, True),
        (Experts(3), True, False, True),
        (Ranks(3, alpha=0.1), False, False, True),
        (Ranks(3, tie="layer"), False, False, False),
        (Ranks(3, allowed=(2, 4)), False, False, False),
        (Ranks(3, utility="power"), False, False, False),
        (Sparsity(0.5), True, False, True),
        (Sparsity(0.5, tie="layer"), True, True, False),
        (Sparsity(0.5, pattern=4), False, False, False),
        (Sparsity(0.5, frozen=("layers.3",)), True, False, False),
        (Bits(4), False, False, False),
    ],
)
def test_bounds_hold_where_amounts_move_one_way(chosen, monotone, ties, paper):
    posed = chosen.pose(LAYERS)
    found = (posed.monotone is not None, posed.ties is not None, posed.paper is not None)
    assert found == (monotone, ties, paper)


@pytest.mark.parametrize("chosen", [Ranks(3), Ranks(3, alpha=0.01), Sparsity(0.5)])
def test_the_paper_s_program_has_the_same_optimum(chosen):
    posed, q = chosen.pose(LAYERS), Q / Q.sum()
    np.testing.assert_allclose(posed.paper.allocate(q).amount, posed.solve(q).amount, rtol=1e-9)
    found = transfer_regret(posed.paper, q, q[::-1])
    assert 0 < found.regret <= found.a_posteriori <= found.bound


def test_ties_number_the_layers_or_the_kinds():
    assert tied_units(MODULES, "none") is None
    assert tied_units(MODULES, "layer").tolist() == [k for k in range(12) for _ in range(2)]
    assert tied_units(MODULES, "projection").tolist() == [0, 1] * 12
    custom = [unit._replace(name=f"mine.{unit.index}") for unit in LAYERS]
    for units in (LAYERS, custom):
        with pytest.raises(ValueError, match="needs scores of single projections; score with --granularity module"):
            Ranks(3, tie="projection").pose(units)


@pytest.mark.parametrize("name", FOUR)
def test_frozen_units_stay_at_their_end(name):
    posed = replace(FOUR[name], frozen=("layers.0", "layers.11")).pose(LAYERS)
    held = {"rank": 1, "experts": 1, "sparsity": 0, "bits": 8}[name]
    assert posed.whole(Q / Q.sum()).amount[[0, 11]].tolist() == [held] * 2
    with pytest.raises(ValueError, match=r"1 frozen units are not in the scores, e\.g\. \['layers\.12'\]"):
        replace(FOUR[name], frozen=("layers.12",)).pose(LAYERS)


def test_energy_weighs_harm_by_the_mean_square_of_the_weights():
    posed = Bits(5, energy=True).pose(MODULES)
    energy = np.asarray([unit.norm**2 / (2 * unit.parameters) for unit in MODULES])
    q = np.random.default_rng(1).uniform(1, 2, 24)
    np.testing.assert_array_equal(posed.whole(q).amount, Bits(5).pose(MODULES).whole(q * energy).amount)


def test_patterns_are_the_shares_of_n_in_m():
    posed = Sparsity(0.55, pattern=8).pose(LAYERS)
    counts = posed.whole(Q / Q.sum()).amount
    assert set((counts / 640 * 8).tolist()) <= set(range(8))
    assert posed.requested <= counts.sum() < posed.requested + 640 / 8


TABLE = {f"layers.{k}": 1.0 for k in range(12)}


@pytest.mark.parametrize(
    ("costs", "match"),
    [
        ({"layers.0": 1.0}, "one number for each of the 12 units: 11 are missing"),
        (TABLE | {"layers.99": 1.0}, r"0 are missing, .* and 1 are not units, e\.g\. \['layers\.99'\]"),
        (TABLE | {"layers.0": 0.0}, "'layers.0' has 0"),
        (TABLE | {"layers.1": True}, "'layers.1' has True"),
        (TABLE | {"layers.1": float("inf")}, "'layers.1' has inf"),
        (TABLE | {"layers.1": "much"}, "'layers.1' has 'much'"),
    ],
)
def test_a_table_of_costs_that_does_not_fit_is_refused(costs, match):
    with pytest.raises(ValueError, match=match):
        Ranks(3, costs=costs).pose(LAYERS)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Ranks(0.5), "mean rank of 0.5 with a minimum of 1 is out of reach; give a budget of at least the min"),
        (lambda: Ranks(2, minimum=-1), "minimum of at least 0"),
        (lambda: Experts(2, minimum=0), "minimum of at least 1"),
        (lambda: Ranks(3, allowed=(-1,)), "must be at least 0"),
        (lambda: Ranks(3, cost="latency"), "cost must be parameters, flops or units, or costs be given for each unit"),
        (lambda: Sparsity(1.5), "are shares from 0 to 1, and pattern is at least 0; got 1.5"),
        (lambda: Sparsity(-0.1), "got -0.1"),
        (lambda: Sparsity(0.5, max_sparsity=1.2), "got 0.5, 1.2"),
        (lambda: Sparsity(0.5, pattern=-4), "and -4"),
        (lambda: Sparsity(0.96), "out of reach"),
        (lambda: Bits(1.5), r"a mean of at least the least; got \(2, 3, 4, 8\), 1.5"),
        (lambda: Bits(4, allowed=()), "need widths of at least 1 bit"),
        (lambda: Bits(4, sweep=(3.0,)), "bits have no sweep"),
        (lambda: Ranks(17), "a mean rank of 17 with a minimum of 1 is out of reach: .* at most 16 "),
        (lambda: Ranks(20, minimum=18), "minimum of 18 is out of reach: .* a minimum of 16"),
        (
            lambda: Ranks(4, allowed=(32,)),
            r"12 units can take none of the allowed values \[32\], e\.g\. unit 0.*from 1 to 16",
        ),
    ],
)
def test_what_no_model_or_these_units_cannot_be_given_is_refused_with_the_limit(make, match):
    with pytest.raises(ValueError, match=match):
        make().pose(LAYERS)


def test_bits_that_frozen_units_leave_no_room_for_are_refused():
    posed = Bits(4, frozen=tuple(unit.name for unit in LAYERS)).pose(LAYERS)
    with pytest.raises(ValueError, match="out of reach: the cheapest choices cost 61440"):
        posed.whole(Q)


SIDES = ((128, 64), (64, 128), (128, 128))
STORED = tuple(UnitShape(f"layers.{k}", k, {f"layers.{k}.mlp.up_proj": side}) for k, side in enumerate(SIDES))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("settings", "overhead"),
    [
        ({}, 24 / 64),
        ({"stored_symmetric": True, "stored_group": 32}, 0.5),
        ({"stored_scales": "float32", "stored_group": 16}, 2.5),
    ],
)
def test_stored_bits_count_scales_and_zeros_and_are_the_best_within_the_budget(seed, settings, overhead):
    program = Bits(4.9, budget_of="stored", allowed=(2, 3, 4, 8), **settings)
    posed, q = program.pose(STORED), np.random.default_rng(seed).uniform(0.1, 1.0, 3)
    size = np.array([a * b for a, b in SIDES])
    spent = {
        bits: float(size @ (np.array(bits) + overhead)) for bits in itertools.product(program.allowed, repeat=len(size))
    }
    harm = {bits: float(q @ 4.0 ** -np.array(bits)) for bits in spent if spent[bits] <= 4.9 * size.sum()}
    found = posed.whole(q)
    assert harm[tuple(found.amount.tolist())] == pytest.approx(min(harm.values()), rel=1e-12)
    assert posed.spent(found.amount) == pytest.approx(spent[tuple(found.amount.tolist())], rel=1e-12)
    assert found.unspent == pytest.approx(4.9 * size.sum() - posed.spent(found.amount))
    assert posed.budget.mean == pytest.approx(4.9 - overhead)


def test_a_file_has_room_for_its_widths_beside_what_has_none():
    weights = sum(a * b for a, b in SIDES)
    given = {"budget_of": "file", "beside": 1000, "allowed": (4, 8, 16), "stored_whole": 16, "frozen": ("layers.1",)}
    least = 1000 + (8192 * 16 + 24576 * 4.375) / 8
    posed = Bits(least, **given).pose(STORED)
    assert posed.whole(np.ones(3)).amount.tolist() == [4, 16, 4]
    assert posed.beside + posed.spent(np.array([4, 16, 4])) == least
    assert Bits(1000 + 2 * weights, **given).pose(STORED).whole(np.ones(3)).amount.tolist() == [16, 16, 16]
    with pytest.raises(
        ValueError, match=r"30,823 bytes is out of reach: 1,000 are taken .* least widths take 29,824, .* 30,824 are"
    ):
        Bits(least - 1, **given).pose(STORED)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"allowed": (4, 12)}, r"stored are widths of 2 to 8 bits, or 16, with .* got \(4, 12\)"),
        ({"stored_scales": "int8"}, "float16 or float32 scales; got .*'int8'"),
        (
            {"stored_group": 48},
            r"must divide the inputs of \['layers.0.mlp.up_proj'\], or be -1 for all; got 48",
        ),
        ({"stored_group": 0}, r"inputs of \['layers.0'\], or be -1 for all; got 0"),
        (
            {"stored_group": 2, "allowed": (4, 8, 16), "stored_whole": 16},
            "layers.0 takes 163,840 bits at width 8 and 131,072 at 16",
        ),
        ({"allowed": (4, 8)}, r"4 bits a weight are out of reach: with scales and zeros the least widths take 4\.375"),
        ({"budget_of": "file"}, "bytes of a file need those of all that has no width"),
    ],
)
def test_bits_that_cannot_be_stored_or_reached_are_refused_with_numbers(settings, match):
    with pytest.raises(ValueError, match=match):
        Bits(**{"budget": 4.0, "budget_of": "stored"} | settings).pose(STORED)


def test_a_share_that_whole_weights_do_not_reach_is_refused_with_the_largest_that_they_do():
    units = [UnitShape(f"layers.{k}", k, {f"layers.{k}.mlp.up_proj": (5, 5)}) for k in range(3)]
    with pytest.raises(ValueError, match=r"0\.95 is 71 weights, of which whole ones .* are 69; take at most 0\.92"):
        Sparsity(0.95).pose(units)
    posed = Sparsity(0.92).pose(units)
    assert posed.whole(np.ones(3)).amount.tolist() == [23, 23, 23]


@pytest.mark.parametrize("utility", ["log", "power", "saturating"])
def test_a_budget_at_the_minimum_leaves_all_units_there(utility):
    posed = Ranks(1, utility=utility).pose(LAYERS)
    assert posed.whole(Q).amount.tolist() == [1] * len(LAYERS)
    assert posed.solve(Q).residual <= 1e-12


@pytest.mark.parametrize(("budget", "widths"), [(18.0, [16, 8, 8]), (40.0, [16, 16, 16])])
def test_a_rule_spends_no_more_stored_bits_than_the_largest_widths_hold(budget, widths):
    posed = Bits(budget, budget_of="stored", allowed=(4, 8, 16)).pose(STORED)
    assert posed.budget.mean == min(budget - 0.375, 16.0)
    found = posed.rounded(RULES["uniform"].of(np.ones(3), posed.budget))
    assert posed.spent(found.amount) <= budget * sum(a * b for a, b in SIDES)
    assert found.amount.tolist() == widths
