"""What every published rule must do, whatever its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import PROGRAMS, BudgetConstraint
from curvjax.allocation import RULES as REGISTRY
from tests.compilations import compilations

WHOLE = {"layerif", "alphalora", "mola", "largest_remainder", "floor"}
RULES = {name: entry.of for name, entry in REGISTRY.items()}
SPARSITY_RULES = {name for name, entry in REGISTRY.items() if "sparsity" in entry.targets and name != "uniform"}
BY_POSITION = {name for name, entry in REGISTRY.items() if not entry.reads_scores}
EXACT = sorted(RULES.keys() - {"floor"})
CONTINUOUS = sorted(RULES.keys() - WHOLE)
BY_SCORE = sorted(RULES.keys() - BY_POSITION)


def scores(seed, count=13):
    return np.random.default_rng(seed).gamma(1.0, size=count)


def problem(name, seed, count=13):
    """A budget of the rule's kind: blocks to prune, ranks of unequal cost, or experts."""
    draw = np.random.default_rng(seed + 100)
    if name in SPARSITY_RULES:
        size = draw.integers(10**3, 10**6, count)
        return BudgetConstraint(size, 0.6 * size.sum(), draw.uniform(0.8, 1.0, count))
    if name in WHOLE:
        return BudgetConstraint(np.full(count, 3.0), 3.0 * (5 * count + 2), draw.integers(7, 12, count))
    return BudgetConstraint(draw.uniform(1.0, 5.0, count), 4.0 * count, draw.uniform(3.0, 9.0, count))


def amounts(name, q, budget, **settings):
    return np.asarray(RULES[name](q, budget=budget, **settings))


def test_the_registry_names_its_members_and_what_they_share_out():
    assert {"owl", "dlp", "lsa", "alphapruning", "atp", "ecoflap", "erk", "uniform_plus"} <= SPARSITY_RULES
    named = {"layerif", "alphalora", "mola", "floe", "largest_remainder", "floor", "proportional"}
    assert set(RULES) >= SPARSITY_RULES | named | {"uniform"}
    assert {"atp", "mola", "uniform", "uniform_plus"} <= BY_POSITION
    targets = {target for entry in REGISTRY.values() for target in entry.targets}
    assert targets <= {program.target for program in PROGRAMS.values()}


@pytest.mark.parametrize("count", [2, 13, 40])
@pytest.mark.parametrize("name", EXACT)
def test_the_budget_is_met_within_the_bounds(name, count):
    for seed in (1, 2, 3):
        budget = problem(name, seed, count)
        if name == "uniform_plus" and count == 2:  # one block of the two is kept dense
            budget = budget._replace(total=0.3 * budget.weight[1])
        amount = amounts(name, scores(seed, count), budget)
        assert amount.shape == (count,)
        assert np.isfinite(amount).all()
        assert ((amount >= 0) & (amount <= budget.maximum)).all()
        if name in WHOLE:
            assert amount.dtype == np.int64
            assert amount.sum() == 5 * count + 2
        else:
            assert budget.weight @ amount == pytest.approx(budget.total, rel=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_nothing_and_everything_can_be_shared_out(name):
    budget = problem(name, 1)
    least, most = np.zeros(13), np.asarray(budget.maximum, dtype=float)
    if name == "layerif":  # everyone has the first
        least = least + 1
    if name == "uniform_plus":
        most[0], most[-1] = 0.0, min(0.8, most[-1])
    for end in (least, most):
        amount = amounts(name, scores(1), budget._replace(total=budget.weight @ end))
        np.testing.assert_allclose(amount, end, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("q", [np.geomspace(1e-300, 1e300, 13), np.r_[1.0, np.zeros(12)], np.r_[np.ones(12), 2.0]])
@pytest.mark.parametrize("name", EXACT)
def test_lopsided_scores_meet_the_budget_too(name, q):
    budget = problem(name, 2)
    amount = amounts(name, q, budget)
    assert ((amount >= 0) & (amount <= budget.maximum)).all()
    assert budget.weight @ amount == pytest.approx(budget.total, rel=1e-9)


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"uniform_plus"}))
def test_one_unit_takes_it_all(name):
    budget = BudgetConstraint(
        np.ones(1), 0.7 if name in SPARSITY_RULES else 4.0, np.ones(1) if name in SPARSITY_RULES else 9.0
    )
    np.testing.assert_allclose(amounts(name, np.ones(1), budget), budget.total, rtol=1e-12)


def test_floors_fall_short_by_less_than_one_unit_each():
    budget = problem("floor", 1)._replace(maximum=np.full(13, np.inf))
    amount = amounts("floor", scores(1), budget)
    assert 0 < 5 * 13 + 2 - amount.sum() < 13
    np.testing.assert_array_equal(amount, np.floor(67 * scores(1) / scores(1).sum()))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", BY_SCORE)
def test_amounts_follow_the_units_through_a_permutation(name, seed):
    q, budget = scores(seed), problem(name, seed)
    order = np.random.default_rng(seed).permutation(13)
    moved = BudgetConstraint(budget.weight[order], budget.total, budget.maximum[order])
    np.testing.assert_allclose(amounts(name, q[order], moved), amounts(name, q, budget)[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(BY_POSITION))
def test_rules_by_position_ignore_the_scores(name):
    budget = problem(name, 1)
    np.testing.assert_array_equal(amounts(name, scores(1), budget), amounts(name, scores(2), budget))


@pytest.mark.parametrize("score", [0.0, 1.0, 2.7])
@pytest.mark.parametrize("name", BY_SCORE)
def test_equal_scores_give_uniform_amounts(name, score):
    mean = 0.6 if name in SPARSITY_RULES else 5.0
    budget = BudgetConstraint(np.full(13, 2.0), 26 * mean, np.full(13, 0.9 if name in SPARSITY_RULES else 9.0))
    np.testing.assert_allclose(amounts(name, np.full(13, score), budget), mean, rtol=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(set(BY_SCORE) - {"alphalora"}))
def test_a_larger_score_keeps_more_or_gets_more(name, seed):
    q = np.sort(scores(seed))
    sparsity = name in SPARSITY_RULES
    budget = BudgetConstraint(np.full(13, 2.0), 26 * (0.6 if sparsity else 5.0), np.full(13, 0.9 if sparsity else 21.0))
    amount = amounts(name, q, budget)
    step = np.diff(amount) * (-1 if sparsity else 1)
    assert (step >= -1e-12).all()
    assert step.max() > 0.01


@pytest.mark.parametrize("name", CONTINUOUS)
def test_new_values_compile_nothing(name):
    amounts(name, scores(1), problem(name, 1))
    again = scores(2), problem(name, 2)
    with compilations() as compiled:
        amounts(name, *again)
    assert not compiled["_solve"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_jit_equals_eager(name):
    q, budget = scores(1), problem(name, 1)
    rule = RULES[name]
    traced = jax.jit(lambda q, total: rule(q, budget=budget._replace(total=total)))
    np.testing.assert_allclose(traced(q, budget.total), amounts(name, q, budget), rtol=1e-12, atol=1e-14)
    assert jnp.isnan(traced(q, 2 * (budget.weight @ budget.maximum))).all()


def test_a_float32_program_can_hold_every_rule():
    q = scores(1).astype(np.float32)

    def together(total):
        made = {}
        for name in CONTINUOUS:
            budget = problem(name, 1)
            budget = budget._replace(total=total * np.float32(budget.total))
            made[name] = RULES[name](q, budget=budget)
        return made

    with jax.enable_x64(False):
        traced = jax.jit(together)(np.float32(1.0))
    for name, amount in traced.items():
        assert amount.dtype == np.float32
        np.testing.assert_allclose(amount, amounts(name, scores(1), problem(name, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES))
def test_float32_callers_get_the_same_amounts(name):
    wide = amounts(name, scores(1), problem(name, 1))
    with jax.enable_x64(False):
        narrow = amounts(name, scores(1), problem(name, 1))
    np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_total_beyond_the_maxima_is_refused(name):
    budget = problem(name, 1)
    with pytest.raises(ValueError, match="is out of reach: the maxima hold"):
        amounts(name, scores(1), budget._replace(total=1.1 * (budget.weight @ budget.maximum)))


@pytest.mark.parametrize("name", sorted(SPARSITY_RULES))
def test_no_block_can_lose_more_than_all_its_weights(name):
    budget = problem(name, 1)
    with pytest.raises(ValueError, match=r"maximum must be at least 0 and at most 1; got 1.5"):
        amounts(name, scores(1), budget._replace(maximum=np.full(13, 1.5)))


@pytest.mark.parametrize("name", ["ecoflap", "erk", "alphalora", "largest_remainder", "floor", "proportional"])
def test_rules_that_multiply_refuse_a_negative_score(name):
    with pytest.raises(ValueError, match="q must be at least 0 and finite; got -1 in unit 3"):
        amounts(name, np.where(np.arange(13) == 3, -1.0, 1.0), problem(name, 1))


@pytest.mark.parametrize("name", ["owl", "dlp", "lsa", "alphapruning", "layerif", "floe"])
def test_rules_that_compare_take_negative_scores_but_no_nan(name):
    budget = problem(name, 1)
    np.testing.assert_allclose(amounts(name, scores(1) - 5, budget), amounts(name, scores(1), budget), rtol=1e-9)
    with pytest.raises(ValueError, match="q must be at least -inf and finite; got nan in unit 3"):
        amounts(name, np.where(np.arange(13) == 3, np.nan, 1.0), budget)


@pytest.mark.parametrize("name", sorted(WHOLE - {"floor"}))
def test_rules_that_count_units_refuse_unequal_costs(name):
    with pytest.raises(ValueError, match="all must cost the same; costs range from 1 to 13"):
        amounts(name, scores(1), problem(name, 1)._replace(weight=np.arange(13) + 1.0))


@pytest.mark.bad_shapes
@pytest.mark.parametrize("name", sorted(RULES))
def test_scores_that_are_no_vector_are_refused(name):
    with pytest.raises(ValueError, match=r"q needs one entry per unit, and at least one unit; got shape"):
        amounts(name, np.ones((2, 13)), problem(name, 1))
