"""Sparsity: KKT conditions, oracles, scales, edges, traces."""

from functools import partial

import cvxpy as cp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import minimize

from curvjax.allocation import SolutionStatus, allocate_sparsity, log_barrier, quadratic, require_solution
from tests.compilations import compilations

bad_shapes = partial(pytest.param, marks=pytest.mark.bad_shapes)  # the type-checking hook raises first

UNITS = 12
Q = np.random.default_rng(0).gamma(1.0, size=UNITS)
SIZE = np.random.default_rng(1).integers(1_000, 1_000_000_000, UNITS)


def kkt_violations(problem, rho, dual, *, penalty, size_neutral):
    """Primal, and stationarity of q^kappa psi with the storage price at the dual, from the definition."""
    q, size, cap = (problem[k] for k in ("q", "size", "cap"))
    sparsity, kappa = (problem[k][..., None] for k in ("sparsity", "kappa"))
    total = sparsity * size.sum(-1, keepdims=True)
    missed = np.abs((size * rho).sum(-1, keepdims=True) - total) / np.where(total > 0, total, 1)
    slope = (size if size_neutral else 1.0) * q**kappa * (2 * rho if penalty is quadratic else 1 / (1 - rho))
    gradient = slope - dual[..., None] * size
    free = np.where(rho <= 0, np.minimum(gradient, 0), np.where(rho >= cap, np.maximum(gradient, 0), gradient))
    free = np.where((rho <= 0) & (rho >= cap), 0.0, free)
    scale = slope + dual[..., None] * size + 1e-300
    return {
        "primal": max(missed.max(), np.maximum(-rho, rho - cap).max()),
        "stationary": (np.abs(free) / scale).max(),
    }


@pytest.mark.parametrize("size_neutral", [False, True])
@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_instances_meet_the_kkt_conditions(seed, penalty, size_neutral):
    rng = np.random.default_rng(seed)
    shape = (2000, UNITS)
    problems = {
        "q": 10.0 ** rng.uniform(-9, 0, shape),
        "size": 10.0 ** rng.uniform(0, 9, shape),
        "kappa": rng.choice([0.0, 0.5, 1.0, 4.0], shape[0]),
        "cap": rng.uniform(0.0, 0.99, shape),
    }
    reach = (problems["size"] * problems["cap"]).sum(-1) / problems["size"].sum(-1)
    problems["sparsity"] = reach * rng.choice([0.0, 1e-9, 0.3, 0.9, 1.0], shape[0])
    result = jax.vmap(
        lambda p: allocate_sparsity(
            p["q"],
            size=p["size"],
            sparsity=p["sparsity"],
            kappa=p["kappa"],
            max_sparsity=p["cap"],
            penalty=penalty,
            size_neutral=size_neutral,
        )
    )(problems)
    assert (result.status <= SolutionStatus.AT_CAPACITY).all()
    found = kkt_violations(
        problems, np.asarray(result.amount), np.asarray(result.dual), penalty=penalty, size_neutral=size_neutral
    )
    assert max(found.values()) < 1e-11, found
    assert result.residual.max() < 1e-11


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    q=st.lists(st.floats(1e-12, 1.0), min_size=UNITS, max_size=UNITS),
    size=st.lists(st.integers(1, 10**9), min_size=UNITS, max_size=UNITS),
    kappa=st.floats(0, 4),
    sparsity=st.just(0.0) | st.floats(1e-100, 0.9),
)
def test_any_instance_meets_the_kkt_conditions(q, size, kappa, sparsity):
    result = allocate_sparsity(
        np.array(q), size=np.array(size), sparsity=sparsity, kappa=kappa, max_sparsity=0.9, penalty=log_barrier
    )
    problem = {"q": np.array(q), "size": np.array(size, dtype=float), "cap": np.full(UNITS, 0.9)}
    problem |= {"kappa": np.array(kappa), "sparsity": np.array(sparsity)}
    found = kkt_violations(
        problem, np.asarray(result.amount), np.asarray(result.dual), penalty=log_barrier, size_neutral=False
    )
    assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
@pytest.mark.parametrize("seed", range(1, 7))
def test_shares_match_cvxpy(seed, penalty):
    rng = np.random.default_rng(seed)
    q, size = rng.uniform(0.2, 1, UNITS), rng.uniform(1, 5, UNITS)
    result = allocate_sparsity(q, size=size, sparsity=0.6, kappa=1.5, max_sparsity=0.8, penalty=penalty)
    rho = cp.Variable(UNITS)
    psi = cp.square(rho) if penalty is quadratic else -cp.log1p(-rho)
    constraints = [rho >= 0, rho <= 0.8, size @ rho == 0.6 * size.sum()]
    best = cp.Problem(cp.Minimize(q**1.5 @ psi), constraints).solve(solver=cp.CLARABEL)
    assert q**1.5 @ np.asarray(penalty.value(result.amount)) == pytest.approx(best, rel=1e-7)
    np.testing.assert_allclose(result.amount, rho.value, atol=2e-4)  # what that leaves open, the minimum being flat


def test_shares_match_scipy():
    q, size = np.linspace(0.2, 1, UNITS), np.linspace(5, 1, UNITS)
    result = allocate_sparsity(q, size=size, sparsity=0.5, max_sparsity=0.7, size_neutral=True)
    oracle = minimize(
        lambda rho: np.sum(size * q * rho**2),
        np.full(UNITS, 0.5),
        bounds=[(0, 0.7)] * UNITS,
        constraints={"type": "eq", "fun": lambda rho: size @ rho - 0.5 * size.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(result.amount, oracle.x, atol=2e-5)


def test_interior_shares_follow_the_closed_form():
    q, size = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 2.0])
    result = allocate_sparsity(q, size=size, sparsity=0.4)
    ratio = size / q
    np.testing.assert_allclose(result.amount, ratio * 0.4 * size.sum() / (size @ ratio), rtol=1e-14)


@pytest.mark.parametrize("size_neutral", [False, True])
def test_dual_is_the_penalty_of_one_more_removed_weight(size_neutral):
    size = SIZE / 1e6
    m = size if size_neutral else 1.0

    def best(sparsity):
        result = allocate_sparsity(Q, size=size, sparsity=sparsity, kappa=2.0, size_neutral=size_neutral)
        return np.sum(m * Q**2 * np.asarray(result.amount) ** 2)

    dual = allocate_sparsity(Q, size=size, sparsity=0.5, kappa=2.0, size_neutral=size_neutral).dual
    assert float(dual) == pytest.approx((best(0.5001) - best(0.4999)) / (0.0002 * size.sum()), rel=1e-6)


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
@pytest.mark.parametrize("factor", [1e-150, 1e-9, 1e9])
def test_scales_of_quality_and_size_are_immaterial(factor, penalty):
    plain = allocate_sparsity(Q, size=SIZE, sparsity=0.5, kappa=1.5, penalty=penalty)
    scaled = allocate_sparsity(Q * factor, size=SIZE / factor, sparsity=0.5, kappa=1.5, penalty=penalty)
    np.testing.assert_allclose(scaled.amount, plain.amount, rtol=1e-12, atol=1e-13)


def test_larger_blocks_are_pruned_more_unless_size_neutral():
    size = np.linspace(1, 2, UNITS)
    paper = allocate_sparsity(np.ones(UNITS), size=size, sparsity=0.5)
    neutral = allocate_sparsity(np.ones(UNITS), size=size, sparsity=0.5, size_neutral=True)
    np.testing.assert_allclose(paper.amount / size, paper.amount[0], rtol=1e-13)
    np.testing.assert_allclose(neutral.amount, 0.5, rtol=1e-14)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_permuted_scores_give_permuted_shares(seed):
    order = np.random.default_rng(seed).permutation(UNITS)
    plain = allocate_sparsity(Q, size=SIZE, sparsity=0.5)
    moved = allocate_sparsity(Q[order], size=SIZE[order], sparsity=0.5)
    np.testing.assert_allclose(moved.amount, plain.amount[order], rtol=1e-12)


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
def test_shares_rise_with_the_total(penalty):
    totals = jnp.linspace(0.0, 0.95, 200)
    result = jax.vmap(lambda s: allocate_sparsity(Q, size=SIZE, sparsity=s, penalty=penalty))(totals)
    assert (result.status <= SolutionStatus.AT_CAPACITY).all()
    assert (np.diff(result.amount, axis=0) >= -1e-12).all()


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
def test_sparsity_zero_removes_nothing(penalty):
    result = allocate_sparsity(Q, size=SIZE, sparsity=0.0, penalty=penalty)
    np.testing.assert_array_equal(result.amount, 0.0)
    assert result.status == SolutionStatus.OPTIMAL
    assert result.residual < 1e-12


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
def test_the_largest_sparsity_puts_every_block_at_its_cap(penalty):
    result = allocate_sparsity(Q, size=SIZE, sparsity=0.95, penalty=penalty)
    np.testing.assert_allclose(result.amount, 0.95, rtol=1e-13)
    assert result.status == SolutionStatus.AT_CAPACITY
    assert result.residual < 1e-12


def test_everything_can_be_removed_under_the_quadratic():
    result = allocate_sparsity(Q, size=SIZE, sparsity=1.0, max_sparsity=1.0)
    np.testing.assert_allclose(result.amount, 1.0, rtol=1e-13)


@pytest.mark.parametrize("penalty", [quadratic, log_barrier])
def test_a_single_block_takes_the_total(penalty):
    result = allocate_sparsity(np.array([0.3]), size=7, sparsity=0.4, penalty=penalty)
    np.testing.assert_allclose(result.amount, [0.4], rtol=1e-14)


def test_caps_of_their_own_are_kept_and_their_share_passed_on():
    cap = np.where(np.arange(UNITS) < 3, 0.0, 0.9)
    result = allocate_sparsity(Q, size=1.0, sparsity=0.5, max_sparsity=cap)
    assert (result.amount <= cap).all()
    assert result.spent == pytest.approx(0.5 * UNITS, rel=1e-13)
    assert result.requested == 0.5 * UNITS
    assert result.reach == pytest.approx(0.9 * 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((0,))}, "q needs one entry per unit, and at least one unit"),
        ({"q": np.array([1.0, 0.0, 0.0])}, r"units \[1, 2\] have q = 0.*give a floor, such as 0.05"),
        ({"q": np.array([1.0, -1.0, 1.0])}, "q must be at least 0 and finite; got -1 in unit 1"),
        ({"q": np.array([1.0, np.nan, 1.0])}, "q must be at least 0 and finite; got nan in unit 1"),
        bad_shapes({"size": np.ones(4)}, "size needs one entry for each of the 3 units"),
        ({"size": np.array([1, 0, 1])}, "size must be above 0 and finite; got 0 in unit 1"),
        ({"sparsity": 1.5}, "sparsity must be at least 0 and at most 1; got 1.5"),
        ({"sparsity": -0.1}, "sparsity must be at least 0 and at most 1; got -0.1"),
        bad_shapes({"sparsity": np.ones(3)}, "sparsity must be one number"),
        ({"kappa": -1.0}, "kappa must be at least 0"),
        ({"max_sparsity": 1.2}, "max_sparsity must be at least 0 and at most 1; got 1.2"),
        ({"sparsity": 0.97}, "a total of 2.91 is out of reach, above by 0.06: the units can take from 0 to 2.85"),
        ({"penalty": log_barrier, "max_sparsity": 1.0, "sparsity": 1.0}, "is not finite"),
        ({"minimum": 0.96}, "bounds cross in 3 of 3 units"),
        ({"q": np.array([1e-200, 1.0, 1.0]), "kappa": 8.0}, "quality raised to its exponent, is not finite"),
    ],
)
def test_malformed_input_is_refused_with_its_limit(change, message):
    settings = {"q": np.ones(3), "size": 1.0, "sparsity": 0.5} | change
    with pytest.raises(ValueError, match=message):
        allocate_sparsity(settings.pop("q"), **settings)


TRACED = jax.jit(lambda s: allocate_sparsity(**s))  # one compilation for all


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"sparsity": 0.97}, SolutionStatus.INFEASIBLE),
        ({"sparsity": -0.1}, SolutionStatus.INFEASIBLE),
        ({"sparsity": 1.5}, SolutionStatus.INVALID),
        ({"sparsity": np.nan}, SolutionStatus.INVALID),
        ({"q": np.array([1.0, 0.0, 1.0])}, SolutionStatus.INVALID),
        ({"q": np.array([1.0, np.nan, 1.0])}, SolutionStatus.INVALID),
        ({"q": np.array([1.0, -1.0, 1.0])}, SolutionStatus.INVALID),
        ({"size": np.array([1.0, -1.0, 1.0])}, SolutionStatus.INVALID),
        ({"kappa": -1.0}, SolutionStatus.INVALID),
        ({"max_sparsity": 1.2}, SolutionStatus.INVALID),
        ({"max_sparsity": -0.2}, SolutionStatus.INVALID),
    ],
)
def test_a_trace_reports_by_status_what_the_host_refuses(change, status):
    sound = {"q": np.ones(3), "size": np.ones(3), "sparsity": 0.5, "kappa": 1.0, "max_sparsity": 0.95}
    result = TRACED(sound | change)
    assert result.status == status
    assert np.isnan(result.amount).all()
    with pytest.raises(ValueError, match=r"out of reach|not finite"):
        require_solution(result)


def test_jit_and_vmap_equal_eager():
    totals = np.array([0.0, 0.2, 0.7])
    swept = jax.vmap(lambda s: allocate_sparsity(Q, size=SIZE, sparsity=s))(totals)
    jitted = jax.jit(lambda s: allocate_sparsity(Q, size=SIZE, sparsity=s))
    for row, total in enumerate(totals):
        eager = allocate_sparsity(Q, size=SIZE, sparsity=total)
        for a, b, c in zip(eager, jitted(total), swept, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-13, atol=1e-15)
            np.testing.assert_allclose(c[row], a, rtol=1e-13, atol=1e-15)


def test_other_values_compile_nothing_new():
    allocate_sparsity(Q, size=SIZE, sparsity=0.5)
    with compilations() as compiled:
        allocate_sparsity(Q[::-1], size=3, sparsity=0.2, kappa=2, max_sparsity=0.5, size_neutral=True)
    assert not compiled["_solve"]


def test_results_are_float64_where_the_caller_has_float32():
    wide = allocate_sparsity(Q, size=SIZE, sparsity=0.5)
    with jax.enable_x64(False):
        eager = allocate_sparsity(Q, size=SIZE, sparsity=0.5)
        traced = jax.jit(lambda s: allocate_sparsity(Q, size=SIZE, sparsity=s))(0.5)
    np.testing.assert_array_equal(eager.amount, wide.amount)
    assert traced.amount.dtype == jnp.float32
    np.testing.assert_allclose(traced.amount, wide.amount, rtol=6e-8)  # rounded once


def test_the_barrier_itself_keeps_blocks_from_being_removed_whole():
    result = allocate_sparsity(Q, size=1.0, sparsity=0.99, max_sparsity=1.0, penalty=log_barrier)
    assert result.residual < 1e-11  # 1 - rho cancels
    assert (result.amount < 1).all()


def test_ties_and_frozen_blocks():
    groups = np.arange(UNITS) // 3
    low, high = np.zeros(UNITS), np.full(UNITS, 0.9)
    low[:3] = high[:3] = 0.2
    result = allocate_sparsity(Q, size=SIZE, sparsity=0.5, minimum=low, max_sparsity=high, ties=groups)
    rho = np.asarray(result.amount)
    np.testing.assert_array_equal(rho[:3], 0.2)
    np.testing.assert_array_equal(rho.reshape(4, 3), rho[::3, None].repeat(3, 1))
    assert SIZE @ rho == pytest.approx(0.5 * SIZE.sum(), rel=1e-12)
    assert result.residual < 1e-12
    assert result.gap < 1e-12 * result.objective


@pytest.mark.parametrize("sparsity", [2.65e-282, 1e-100, 1e-9])
def test_the_least_sparsities_have_their_price(sparsity):
    result = allocate_sparsity(np.array([1e-12, 1.0, 1.0]), size=1.0, sparsity=sparsity)
    assert result.status == SolutionStatus.OPTIMAL
    assert result.dual > 0
    assert result.spent == pytest.approx(3 * sparsity, rel=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("size_neutral", [True, False])
def test_scores_and_sizes_over_hundreds_of_decades_meet_the_total(seed, size_neutral):
    rng = np.random.default_rng(seed)
    q, size = 10.0 ** rng.uniform(-300, 200, 12), rng.uniform(1, 9, 12) * 10.0 ** rng.uniform(-200, 200)
    found = allocate_sparsity(q, size=size, sparsity=0.5, max_sparsity=0.9, size_neutral=size_neutral)
    assert size @ found.amount == pytest.approx(0.5 * size.sum(), rel=1e-12)
    price = np.log(q) + np.log(found.amount) - (0 if size_neutral else np.log(size))  # of one more weight
    open_, full = found.amount < 0.9, found.amount >= 0.9
    assert price[full].max(initial=-np.inf) <= price[open_].min() + 1e-9
