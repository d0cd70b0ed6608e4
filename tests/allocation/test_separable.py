"""The convex core under other curves than the paper's."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation import (
    Curve,
    SolutionStatus,
    allocate_capacity,
    allocate_separable,
    log_utility,
    measured_curve,
    power_utility,
    quadratic,
    saturating_utility,
)
from tests.compilations import compilations

UNITS = 12


def problem(seed):
    rng = np.random.default_rng(seed)
    lower = rng.uniform(0, 0.3, UNITS)
    return {
        "weight": rng.uniform(0.2, 1, UNITS),
        "cost": rng.uniform(0.5, 4, UNITS),
        "price": rng.uniform(0, 0.05, UNITS),
        "lower": lower,
        "upper": lower + rng.uniform(1, 9, UNITS),
        "budget": 25.0,
    }


def cvxpy_best(p, cost_of):
    x = cp.Variable(UNITS)
    rules = [x >= p["lower"], x <= p["upper"], p["cost"] @ x <= p["budget"], p["cost"] @ x >= p.get("least", 0.0)]
    return cp.Problem(cp.Minimize(p["price"] @ x + p["weight"] @ cost_of(x)), rules).solve(solver=cp.CLARABEL)


CURVES = {
    "power": (power_utility(0.5), lambda x: -cp.sqrt(x)),
    "saturating": (saturating_utility(0.4), lambda x: cp.exp(-0.4 * x) - 1),
    "quadratic": (quadratic, cp.square),
}


@pytest.mark.parametrize("least", [None, 24.0])
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_objective_matches_cvxpy(seed, name, least):
    curve, cost_of = CURVES[name]
    p = problem(seed) | ({} if least is None else {"least": least})
    result = allocate_separable(curve, **p)
    assert float(result.objective) == pytest.approx(cvxpy_best(p, cost_of), rel=1e-6)
    assert max(result.residual, result.gap) < 1e-11


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_measured_curves_match_a_linear_program(seed):
    rng, p = np.random.default_rng(seed + 10), problem(seed)
    x = np.cumsum(rng.uniform(0.2, 2, (UNITS, 8)), 1)
    y = -np.log1p(x) * rng.uniform(0.5, 2, (UNITS, 1)) + rng.normal(size=x.shape) * 0.02
    p |= {"lower": x[:, 0], "upper": x[:, -1], "budget": 90.0}
    curve = measured_curve(x, y)
    result = allocate_separable(curve, **p)
    share = cp.Variable((UNITS, 8), nonneg=True)  # a point of the hull is a mixture of measured points
    amount = cp.sum(cp.multiply(share, x), axis=1)
    value = cp.sum(cp.multiply(share, y), axis=1)
    rules = [cp.sum(share, axis=1) == 1, p["cost"] @ amount <= p["budget"]]
    best = cp.Problem(cp.Minimize(p["price"] @ amount + p["weight"] @ value), rules).solve(solver=cp.CLARABEL)
    assert float(result.objective) == pytest.approx(best, abs=1e-6)
    assert result.spent == pytest.approx(90.0, rel=1e-12)
    assert max(result.residual, result.gap) < 1e-11


def test_the_papers_utility_gives_the_papers_program():
    p = problem(4)
    same = allocate_capacity(
        p["weight"], cost=p["cost"], budget=25.0, alpha=p["price"], minimum=p["lower"], maximum=p["upper"]
    )
    for ours, theirs in zip(allocate_separable(log_utility, **p), same, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)


def test_a_curve_of_plain_functions_is_taken_too():
    cubic = Curve(
        value=lambda x: x**3, slope=lambda x: 3 * x**2, inverse_slope=lambda y: jnp.sqrt(jnp.maximum(y, 0) / 3)
    )
    p = problem(1) | {"least": 25.0}
    assert float(allocate_separable(cubic, **p).objective) == pytest.approx(
        cvxpy_best(p, lambda x: cp.power(x, 3)), rel=1e-6
    )


def test_parameters_of_a_curve_are_swept_and_compile_nothing_new():
    p = problem(1)
    swept = jax.vmap(
        lambda rate: (
            allocate_separable(
                saturating_utility(0.4)._replace(
                    value=jax.tree_util.Partial(saturating_utility(1.0).value.func, rate),
                    slope=jax.tree_util.Partial(saturating_utility(1.0).slope.func, rate),
                    inverse_slope=jax.tree_util.Partial(saturating_utility(1.0).inverse_slope.func, rate),
                ),
                **p,
            ).amount
        )
    )(jnp.array([0.2, 0.4, 2.0]))
    with compilations() as first:
        one = allocate_separable(saturating_utility(0.4), **p)
    with compilations() as again:
        allocate_separable(saturating_utility(2.0), **p)
    assert first["solution"] <= 1
    assert not again["solution"]
    np.testing.assert_allclose(swept[1], one.amount, rtol=1e-12)


def test_all_frozen_units_are_an_allocation_too():
    p = problem(1)
    fixed = p["lower"]
    result = allocate_separable(log_utility, **(p | {"upper": fixed, "budget": float(p["cost"] @ fixed) + 1}))
    np.testing.assert_array_equal(result.amount, fixed)
    assert result.status == SolutionStatus.AT_CAPACITY
    np.testing.assert_array_equal(result.held, -1)
    with pytest.raises(ValueError, match="is out of reach, below by 1"):
        allocate_separable(log_utility, **(p | {"upper": fixed, "budget": float(p["cost"] @ fixed) - 1}))


def test_a_thousand_budgets_in_one_call_fall_in_price():
    p = problem(2)
    budgets = jnp.linspace(float(p["cost"] @ p["lower"]), 60.0, 1000)
    path = jax.vmap(lambda b: allocate_separable(log_utility, **(p | {"budget": b})))(budgets)
    assert path.residual.max() < 1e-11
    assert path.gap.max() < 1e-12
    assert (np.diff(path.dual) <= 1e-12).all()
    assert (np.diff(path.objective) <= 1e-12).all()
    assert (np.diff(path.amount, axis=0) >= -1e-11).all()
    # the dual price is the slope of the Pareto curve
    middle = slice(300, 600)
    slope = -np.gradient(np.asarray(path.objective), np.asarray(budgets))
    np.testing.assert_allclose(slope[middle], path.dual[middle], rtol=2e-3)
