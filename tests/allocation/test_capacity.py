"""Capacity: all four KKT conditions, oracles, edges, traces."""

from functools import partial

import cvxpy as cp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import minimize

from curvjax.allocation import SolutionStatus, allocate_capacity, require_solution
from tests.compilations import compilations

bad_shapes = partial(pytest.param, marks=pytest.mark.bad_shapes)  # the type-checking hook raises first

UNITS = 12
Q = np.random.default_rng(0).gamma(1.0, size=UNITS)


def instances(seed, count):
    """Problems over many decades: zero scores, no bound, zero bounds, alpha zero, in proportion or free."""
    rng = np.random.default_rng(seed)
    shape = (count, UNITS)

    def decades(low, high, size=shape):
        return 10.0 ** rng.uniform(low, high, size)

    q = np.where(rng.random(shape) < 0.1, 0.0, decades(-9, 0))
    cost = np.where(rng.random((count, 1)) < 0.5, 1.0, decades(-2, 6))
    scale = decades(-3, 1, (count, 1))
    kind = rng.integers(0, 3, (count, 1))
    alpha = np.select([kind == 0, kind == 1], [np.zeros(shape), scale * cost], scale * rng.random(shape))
    maximum = np.where(rng.random((count, 1)) < 0.5, np.inf, rng.integers(0, 20, shape).astype(float))
    return {
        "q": q,
        "cost": cost,
        "budget": np.where(rng.random(count) < 0.05, 0.0, decades(-2, 3, count) * cost.mean(axis=1)),
        "alpha": alpha,
        "gamma": decades(-2, 2, count),
        "beta": rng.choice([0.0, 0.5, 1.0, 2.0], count),
        "maximum": maximum,
    }


def sweep(problems, *, equality):
    return jax.vmap(lambda p: allocate_capacity(p["q"], **{k: v for k, v in p.items() if k != "q"}, equality=equality))(
        problems
    )


def kkt_violations(problem, amount, dual, *, equality):
    """Primal, dual, complementary and stationary, each relative to its own terms, from the definition."""
    q, cost, alpha, top = (problem[k] for k in ("q", "cost", "alpha", "maximum"))
    budget, gamma, beta = (problem[k][..., None] for k in ("budget", "gamma", "beta"))
    w = np.where(q > 0, gamma * q**beta, 0.0)
    top = np.where((q > 0) | equality, top, 0.0)  # what must be spent goes to units of no quality too
    spent = (cost * amount).sum(-1, keepdims=True)
    over = (spent - budget) / np.where(budget > 0, budget, 1.0)
    gradient = alpha + dual[..., None] * cost - w / (1 + amount)
    scale = alpha + np.abs(dual[..., None]) * cost + w / (1 + amount) + 1e-300
    primal = np.maximum(np.maximum(-amount, amount - top).max(-1), (np.abs(over) if equality else over).max(-1))
    complementary = np.zeros(1) if equality else np.where(dual > 0, np.abs(over)[..., 0], 0.0)
    free = np.where(amount <= 0, np.minimum(gradient, 0), np.where(amount >= top, np.maximum(gradient, 0), gradient))
    free = np.where((amount <= 0) & (amount >= top), 0.0, free)
    return {
        "primal": primal.max(),
        "dual": 0.0 if equality else np.maximum(-dual, 0).max(),
        "complementary": complementary.max(),
        "stationary": (np.abs(free) / scale).max(),
    }


@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_instances_meet_all_four_kkt_conditions(seed, equality):
    problems = instances(seed, 3000)
    result = jax.tree.map(np.asarray, sweep(problems, equality=equality))
    reach = (problems["cost"] * problems["maximum"]).sum(-1)
    infeasible = equality & (problems["budget"] > reach * (1 + 1e-12))
    np.testing.assert_array_equal(result.status == SolutionStatus.INFEASIBLE, infeasible)
    assert (result.status != SolutionStatus.INVALID).all()
    assert np.isnan(result.amount[infeasible]).all()
    solved = {k: v[~infeasible] for k, v in problems.items()}
    found = kkt_violations(solved, result.amount[~infeasible], result.dual[~infeasible], equality=equality)
    assert max(found.values()) < 1e-11, found
    assert result.residual[~infeasible].max() < 1e-11


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    q=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1e-12, 1.0]), min_size=UNITS, max_size=UNITS).filter(any),
    cost=st.lists(st.floats(1e-3, 1e6), min_size=UNITS, max_size=UNITS),
    alpha=st.floats(0, 10),
    budget=st.just(0.0) | st.floats(1e-100, 1e4),
    maximum=st.sampled_from([0.0, 0.5, 3.0, np.inf]),
)
def test_any_instance_meets_the_kkt_conditions(q, cost, alpha, budget, maximum):
    q, cost = np.array(q), np.array(cost)
    result = allocate_capacity(q, cost=cost, budget=budget, alpha=alpha, maximum=maximum)
    problem = {"q": q, "cost": cost, "alpha": np.full(UNITS, alpha), "maximum": np.full(UNITS, maximum)}
    problem |= {"budget": np.array(budget), "gamma": np.array(1.0), "beta": np.array(1.0)}
    found = kkt_violations(problem, np.asarray(result.amount), np.asarray(result.dual), equality=False)
    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("seed", range(1, 9))
def test_objective_matches_cvxpy(seed, equality):
    rng = np.random.default_rng(seed)
    q, cost, alpha = rng.gamma(1.0, size=UNITS), rng.uniform(0.5, 4, UNITS), rng.uniform(0, 0.1, UNITS)
    top, budget = rng.uniform(1, 9, UNITS), rng.uniform(5, 30)
    result = allocate_capacity(q, cost=cost, budget=budget, alpha=alpha, maximum=top, equality=equality)
    e = cp.Variable(UNITS)
    constraints = [e >= 0, e <= top, cost @ e == budget if equality else cost @ e <= budget]
    best = cp.Problem(cp.Minimize(alpha @ e - q @ cp.log1p(e)), constraints).solve(solver=cp.CLARABEL)
    ours = alpha @ np.asarray(result.amount) - q @ np.log1p(np.asarray(result.amount))
    assert ours == pytest.approx(best, abs=1e-6)  # the interior-point solver's own accuracy


@pytest.mark.parametrize("seed", range(1, 9))
def test_amounts_match_scipy(seed):
    rng = np.random.default_rng(seed)
    q, cost = rng.uniform(0.2, 1, UNITS), rng.uniform(0.5, 2, UNITS)
    result = allocate_capacity(q, cost=cost, budget=20.0, alpha=0.05, gamma=2.0, beta=1.5, maximum=4.0)
    w = 2.0 * q**1.5
    oracle = minimize(
        lambda e: np.sum(0.05 * e - w * np.log1p(e)),
        np.full(UNITS, 1.0),
        jac=lambda e: 0.05 - w / (1 + e),
        bounds=[(0, 4)] * UNITS,
        constraints={"type": "ineq", "fun": lambda e: 20.0 - cost @ e, "jac": lambda e: -cost},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(result.amount, oracle.x, atol=2e-5)  # SLSQP's own accuracy


def test_dual_is_what_one_more_unit_of_budget_buys():
    def best(budget):
        e = np.asarray(allocate_capacity(Q, cost=2.0, budget=budget, alpha=0.01).amount)
        return np.sum(0.01 * e - Q * np.log1p(e))

    dual = float(allocate_capacity(Q, cost=2.0, budget=20.0, alpha=0.01).dual)
    assert dual == pytest.approx((best(19.999) - best(20.001)) / 0.002, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_permuted_scores_give_permuted_amounts(seed):
    order = np.random.default_rng(seed).permutation(UNITS)
    cost = np.linspace(1, 3, UNITS)
    plain = allocate_capacity(Q, cost=cost, budget=30.0, alpha=0.01)
    moved = allocate_capacity(Q[order], cost=cost[order], budget=30.0, alpha=0.01)
    np.testing.assert_allclose(moved.amount, plain.amount[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("equality", [False, True])
def test_alpha_and_gamma_cancel_when_alpha_is_proportional_to_cost(equality):
    cost = 2.0 ** np.arange(UNITS)  # powers of two: alpha / cost is then exactly the same for every unit
    kept = allocate_capacity(Q, cost=cost, budget=100.0, alpha=0.0, maximum=50.0)
    assert kept.status == SolutionStatus.OPTIMAL
    scale, gamma = (1e3, 1e-6) if equality else (1e-4, 30.0)  # only an equality binds when capacity costs this much
    moved = allocate_capacity(
        Q, cost=cost, budget=100.0, alpha=scale * cost, gamma=gamma, maximum=50.0, equality=equality
    )
    assert moved.status == SolutionStatus.OPTIMAL
    np.testing.assert_allclose(moved.amount, kept.amount, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-150, 1e-9, 1e9, 1e150])
def test_scale_of_quality_is_immaterial_at_alpha_zero(factor):
    plain = allocate_capacity(Q, cost=1.0, budget=30.0, alpha=0.0)
    scaled = allocate_capacity(Q * factor, cost=1.0, budget=30.0, alpha=0.0)
    np.testing.assert_allclose(scaled.amount, plain.amount, rtol=1e-12, atol=1e-12)


def test_amounts_rise_with_the_budget():
    budgets = jnp.linspace(0.0, 60.0, 200)
    result = jax.vmap(lambda b: allocate_capacity(Q, cost=1.0, budget=b, alpha=0.01, maximum=9.0))(budgets)
    assert (np.diff(result.amount, axis=0) >= -1e-12).all()
    assert (np.diff(result.dual) <= 1e-12).all()


def test_equal_scores_share_equally():
    result = allocate_capacity(np.full(UNITS, 1e-7), cost=3.0, budget=36.0, alpha=0.0)
    np.testing.assert_allclose(result.amount, 1.0, rtol=1e-12)


def test_a_slack_budget_leaves_each_unit_at_its_own_optimum():
    result = allocate_capacity(Q, cost=1.0, budget=1e6, alpha=0.1, gamma=2.0)
    assert result.status == SolutionStatus.SLACK
    assert result.dual == 0
    np.testing.assert_allclose(result.amount, np.maximum(2 * Q / 0.1 - 1, 0), rtol=1e-12)


@pytest.mark.parametrize("equality", [False, True])
def test_budget_zero_gives_nothing(equality):
    result = allocate_capacity(Q, cost=1.0, budget=0.0, alpha=0.1, equality=equality)
    np.testing.assert_array_equal(result.amount, 0.0)
    assert result.dual == pytest.approx(Q.max() - 0.1)  # what the first unit of budget would buy
    assert result.residual < 1e-12


@pytest.mark.parametrize(("alpha", "gamma", "equality"), [(0.0, 1.0, False), (5.0, 1.0, True), (1e6, 1e-9, True)])
def test_a_budget_at_capacity_fills_every_unit(alpha, gamma, equality):
    result = allocate_capacity(
        Q, cost=0.1, budget=0.1 * UNITS * 3, alpha=alpha, gamma=gamma, maximum=3.0, equality=equality
    )
    assert result.status == SolutionStatus.AT_CAPACITY
    np.testing.assert_allclose(result.amount, 3.0, rtol=1e-12)
    assert result.residual < 1e-12


def test_a_budget_above_capacity_is_left_unspent():
    result = allocate_capacity(Q, cost=1.0, budget=1e9, alpha=0.0, maximum=np.arange(UNITS) + 1.0)
    assert result.status == SolutionStatus.AT_CAPACITY
    np.testing.assert_array_equal(result.amount, np.arange(UNITS) + 1.0)
    assert result.spent == result.reach == UNITS * (UNITS + 1) / 2
    assert result.requested == 1e9


@pytest.mark.parametrize("equality", [False, True])
def test_a_single_unit_takes_the_budget(equality):
    result = allocate_capacity(np.array([0.3]), cost=2.0, budget=7.0, alpha=0.0, equality=equality)
    np.testing.assert_allclose(result.amount, [3.5], rtol=1e-14)
    assert result.dual == pytest.approx(0.3 / 4.5 / 2)


def test_units_of_zero_quality_take_nothing():
    q = Q.copy()
    q[[0, 5]] = 0.0
    for beta in (0.0, 1.0):
        result = allocate_capacity(q, cost=1.0, budget=40.0, alpha=0.2, beta=beta, equality=True)
        np.testing.assert_array_equal(result.amount[np.array([0, 5])], 0.0)
        assert result.spent == pytest.approx(40.0, rel=1e-13)


def test_what_must_be_spent_goes_to_units_of_no_quality_last():
    q = np.array([1.0, 0.0, 0.0])
    result = allocate_capacity(q, cost=1.0, budget=8.0, alpha=[0.3, 0.2, 0.1], maximum=5.0, equality=True)
    np.testing.assert_allclose(result.amount, [4.0, 0.0, 4.0], atol=1e-12)  # the cheaper of the two
    assert result.dual == pytest.approx(-0.1)
    assert result.gap < 1e-14


@pytest.mark.parametrize(
    ("least", "budget", "spent"), [(0.5, 0.8, 0.8), (1.2, 1.5, 1.2), (0.5, 1.2, None), (0.9, 0.9, 0.9), (1.1, 1.1, 1.1)]
)
def test_an_interval_budget_is_met_at_the_end_that_the_units_miss(least, budget, spent):
    free = float(allocate_capacity(Q, cost=1.0, budget=1e9, alpha=0.5).spent)
    result = allocate_capacity(Q, cost=1.0, budget=budget * free, alpha=0.5, least=least * free)
    assert result.spent == pytest.approx(free * (spent or 1.0), rel=1e-12)
    assert np.sign(result.dual) == (0 if spent is None else np.sign(1 - spent))
    assert (result.status == SolutionStatus.SLACK) == (spent is None)


def test_frozen_units_keep_their_amount_and_the_rest_share_what_is_left():
    low, high = np.zeros(UNITS), np.full(UNITS, np.inf)
    low[3] = high[3] = 7.0
    result = allocate_capacity(Q, cost=1.0, budget=30.0, alpha=0.0, minimum=low, maximum=high)
    rest = allocate_capacity(np.delete(Q, 3), cost=1.0, budget=23.0, alpha=0.0)
    np.testing.assert_allclose(np.delete(result.amount, 3), rest.amount, rtol=1e-12)
    assert result.amount[3] == 7.0
    np.testing.assert_array_equal(np.delete(result.held, 3), rest.held)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tied_units_match_cvxpy(seed):
    rng = np.random.default_rng(seed)
    cost, alpha, groups = rng.uniform(0.5, 4, UNITS), rng.uniform(0, 0.1, UNITS), rng.integers(0, 5, UNITS)
    top = rng.uniform(2, 9, UNITS)
    result = allocate_capacity(Q, cost=cost, budget=20.0, alpha=alpha, maximum=top, ties=groups)
    e = cp.Variable(UNITS)
    equal = [e[i] == e[j] for i in range(UNITS) for j in range(i) if groups[i] == groups[j]]
    best = cp.Problem(cp.Minimize(alpha @ e - Q @ cp.log1p(e)), [e >= 0, e <= top, cost @ e <= 20.0, *equal])
    assert float(result.objective) == pytest.approx(best.solve(solver=cp.CLARABEL), abs=1e-6)
    assert result.spent == pytest.approx(20.0, rel=1e-12)
    for group in set(groups):
        assert len(set(np.asarray(result.amount)[groups == group])) == 1
    assert result.residual < 1e-11


def test_the_gap_is_zero_to_rounding_and_the_objective_is_the_programs():
    result = allocate_capacity(Q, cost=2.0, budget=20.0, alpha=0.01, gamma=3.0, beta=0.5)
    e = np.asarray(result.amount)
    assert result.objective == pytest.approx(np.sum(0.01 * e - 3 * Q**0.5 * np.log1p(e)), rel=1e-14)
    assert result.gap < 1e-13


def test_nothing_is_given_when_all_quality_is_zero():
    result = allocate_capacity(np.zeros(UNITS), cost=1.0, budget=5.0, alpha=0.0)
    np.testing.assert_array_equal(result.amount, 0.0)
    assert (result.status, result.reach) == (SolutionStatus.AT_CAPACITY, 0.0)


def test_equality_spends_at_a_negative_price_where_capacity_does_not_pay():
    result = allocate_capacity(Q, cost=1.0, budget=30.0, alpha=1e6, gamma=1e-6, equality=True)
    assert -1e6 < result.dual < 0
    np.testing.assert_allclose(result.amount, allocate_capacity(Q, cost=1.0, budget=30.0, alpha=0.0).amount, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((0,))}, r"q needs one entry per unit, and at least one unit; got shape \(0,\)"),
        bad_shapes({"q": np.ones((2, 2))}, r"q needs one entry per unit"),
        ({"q": np.array([1.0, np.nan, 1.0])}, "q must be at least 0 and finite; got nan in unit 1"),
        ({"q": np.array([1.0, 1.0, -2.0])}, r"q must be at least 0 and finite; got -2 in unit 2 \(1 such\)"),
        ({"q": np.array([np.inf, 1.0, 1.0])}, "q must be .* finite; got inf in unit 0"),
        bad_shapes({"cost": np.ones(2)}, r"cost needs one entry for each of the 3 units.*got shape \(2,\)"),
        ({"cost": 0.0}, "cost must be above 0 and finite; got 0"),
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"maximum": np.array([1.0, -1.0, 2.0])}, "maximum must be at least 0; got -1 in unit 1"),
        ({"maximum": np.nan}, "maximum must be at least 0; got nan"),
        bad_shapes({"budget": np.ones(3)}, r"budget must be one number; got shape \(3,\). Use jax.vmap"),
        ({"budget": np.nan}, "budget must be .*finite; got nan"),
        ({"budget": -1.0}, "a total of -1 is out of reach, below by 1: the units can take from 0 to 15"),
        (
            {"budget": 16.0, "equality": True},
            "a total of 16 is out of reach, above by 1: the units can take from 0 to 15",
        ),
        ({"least": 16.0, "budget": 17.0}, "a total of 16 is out of reach, above by 1"),
        ({"least": 5.0}, "the least that must be spent, 5, is more than the budget, 4"),
        ({"minimum": 2.0}, "a total of 4 is out of reach, below by 2: the units can take from 6 to 15"),
        (
            {"minimum": np.array([0.0, 6.0, 7.5])},
            r"bounds cross in 2 of 3 units, \[1, 2\]: in unit 2 the least amount is 7.5 and the most 5, short by 2.5",
        ),
        ({"minimum": -1.0}, "minimum must be at least 0 and finite; got -1"),
        ({"ties": np.array([0, 1, 3])}, r"ties need one whole group number from 0 to 2 for each of 3 units"),
        ({"ties": np.array([0.0, 1.0, 1.0])}, "ties need one whole group number"),
        ({"gamma": 1e300, "q": np.full(3, 1e20)}, "the quality of unit 0, raised to its exponent, is not finite"),
    ],
)
def test_malformed_input_is_refused_with_its_limit(change, message):
    settings = {"q": np.ones(3), "cost": 1.0, "budget": 4.0, "alpha": 0.1, "maximum": 5.0} | change
    with pytest.raises(ValueError, match=message):
        allocate_capacity(settings.pop("q"), **settings)


TRACED = jax.jit(lambda s: allocate_capacity(**s))  # one compilation for all


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"budget": -1.0}, SolutionStatus.INFEASIBLE),
        ({"budget": np.nan}, SolutionStatus.INVALID),
        ({"q": np.array([1.0, np.nan, 1.0])}, SolutionStatus.INVALID),
        ({"q": np.array([1.0, -1.0, 1.0])}, SolutionStatus.INVALID),
        ({"cost": np.array([1.0, 0.0, 1.0])}, SolutionStatus.INVALID),
        ({"alpha": -1.0}, SolutionStatus.INVALID),
        ({"gamma": -1.0}, SolutionStatus.INVALID),
        ({"beta": np.nan}, SolutionStatus.INVALID),
        ({"maximum": np.nan}, SolutionStatus.INVALID),
    ],
)
def test_a_trace_reports_by_status_what_the_host_refuses(change, status):
    sound = {
        "q": np.ones(3),
        "cost": np.ones(3),
        "budget": 4.0,
        "alpha": 0.1,
        "gamma": 1.0,
        "beta": 1.0,
        "maximum": 5.0,
    }
    result = TRACED(sound | change)
    assert result.status == status
    assert np.isnan(result.amount).all()
    assert np.isnan(result.residual)
    with pytest.raises(ValueError, match=r"out of reach|not finite"):
        require_solution(result)


def test_jit_and_vmap_equal_eager():
    budgets = np.array([0.0, 3.0, 40.0])
    eager = [allocate_capacity(Q, cost=1.0, budget=b, alpha=0.02) for b in budgets]
    swept = jax.vmap(lambda b: allocate_capacity(Q, cost=1.0, budget=b, alpha=0.02))(budgets)
    jitted = jax.jit(lambda b: allocate_capacity(Q, cost=1.0, budget=b, alpha=0.02))
    for row, one in enumerate(eager):
        for a, b, c in zip(one, jitted(budgets[row]), swept, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-13, atol=1e-15)
            np.testing.assert_allclose(c[row], a, rtol=1e-13, atol=1e-15)


def test_other_values_compile_nothing_new():
    allocate_capacity(Q, cost=1.0, budget=3.0, alpha=0.02)
    with compilations() as compiled:
        allocate_capacity(Q[::-1], cost=np.arange(UNITS) + 1, budget=7, alpha=1, beta=2, maximum=3, equality=True)
    assert not compiled["solution"]


def test_results_are_float64_where_the_caller_has_float32():
    wide = allocate_capacity(Q, cost=1.0, budget=30.0, alpha=0.02)
    with jax.enable_x64(False):
        eager = allocate_capacity(Q, cost=1.0, budget=30.0, alpha=0.02)
        traced = jax.jit(lambda b: allocate_capacity(Q, cost=1.0, budget=b, alpha=0.02))(30.0)
    assert eager.amount.dtype == jnp.float64
    np.testing.assert_array_equal(eager.amount, wide.amount)
    assert traced.amount.dtype == jnp.float32
    # computed in float64, rounded once: half a unit in the last place of float32
    np.testing.assert_allclose(traced.amount, wide.amount, rtol=6e-8)
    assert traced.residual < 1e-12


@pytest.mark.parametrize("seed", range(1, 13))
def test_scores_and_costs_over_hundreds_of_decades_are_solved(seed):
    rng = np.random.default_rng(seed)
    q = rng.gamma(0.7, size=12) * 10.0 ** rng.uniform(-300, 290, 12 if seed % 3 else 1)
    cost = rng.uniform(0.5, 4, 12) * 10.0 ** rng.uniform(-200, 200)
    maximum = rng.integers(0, 9, 12)
    budget = float(cost @ maximum) * rng.choice([0.0, 1e-9, rng.random(), 1.0])
    found = allocate_capacity(q, cost=cost, budget=budget, alpha=0.0, maximum=maximum, equality=bool(seed % 2))
    assert found.spent == pytest.approx(budget, rel=1e-12, abs=0)
    # at one price: who has something has at least the benefit per cost, at the margin, of who could take more
    margin = np.log10(q) - np.log10(cost) - np.log10(1 + found.amount)
    takes, could = found.amount > 0, found.amount < maximum
    if takes.any() and could.any():
        assert margin[takes].min() >= margin[could].max() - 1e-9


def test_the_scale_of_scores_and_costs_is_free():
    q, cost = np.random.default_rng(1).gamma(1.0, size=12), np.random.default_rng(2).uniform(1, 5, 12)
    plain = allocate_capacity(q, cost=cost, budget=30.0, alpha=0.001 * cost)
    for up in (2.0**600, 2.0**-600):
        moved = allocate_capacity(q * up, cost=cost / up, budget=30.0 / up, alpha=0.001 * cost * up)
        np.testing.assert_allclose(moved.amount, plain.amount, rtol=1e-13)
        assert moved.objective == pytest.approx(plain.objective * up, rel=1e-12)
        assert moved.spent == pytest.approx(plain.spent / up, rel=1e-12)
