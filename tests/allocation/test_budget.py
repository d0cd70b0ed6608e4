"""Clamp and redistribute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.allocation.budget import BudgetConstraint, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE

UNITS = 12


def scaled(q, limits):
    del limits
    return Line(jnp.zeros_like(q), q)


def shifted(q, limits, factor):
    del limits
    return Line(factor * q, jnp.ones_like(q))


def budget(total, maximum=np.inf, weight=1.0):
    return BudgetConstraint(np.broadcast_to(weight, UNITS), total, np.broadcast_to(maximum, UNITS))


def scores(seed):
    return np.random.default_rng(seed).gamma(1.0, size=UNITS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_a_bound_in_the_way_amounts_are_the_plain_share(seed):
    q, weight = scores(seed), np.arange(UNITS) + 1.0
    np.testing.assert_allclose(meet_budget(scaled, q, budget(7.0, weight=weight)), 7 * q / (weight @ q), rtol=1e-13)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_a_maximum_cuts_off_goes_to_the_others_in_proportion(seed):
    q = scores(seed)
    amount = np.asarray(meet_budget(scaled, q, budget(30.0, 4.0)))
    full = q * 30 / q.sum() > 4
    while True:  # the textbook loop: fix the full ones, rescale the others
        scale = (30 - 4 * full.sum()) / q[~full].sum()
        more = ~full & (q * scale > 4)
        if not more.any():
            break
        full |= more
    np.testing.assert_allclose(amount, np.where(full, 4.0, q * scale), rtol=1e-12)
    assert 0 < full.sum() < UNITS


def test_a_shift_stops_at_zero_and_at_the_maximum():
    q = np.linspace(0.0, 11.0, UNITS)
    amount = np.asarray(meet_budget(shifted, q, budget(12.0, 3.0), Setting("factor", 1.0)))
    np.testing.assert_allclose(amount, np.clip(q - 6, 0, 3), rtol=1e-12)
    assert amount.sum() == pytest.approx(12.0, rel=1e-13)


def test_units_without_a_slope_share_what_the_full_ones_leave():
    q = np.zeros(UNITS)
    q[:3] = [1.0, 2.0, 4.0]
    np.testing.assert_allclose(meet_budget(scaled, q, budget(24.0, 5.0)), [5.0] * 3 + [1.0] * 9, rtol=1e-13)
    np.testing.assert_allclose(meet_budget(scaled, np.zeros(UNITS), budget(24.0, 5.0)), 2.0, rtol=1e-13)


def test_the_ends_of_the_range_are_met():
    q = scores(1)
    np.testing.assert_array_equal(meet_budget(scaled, q, budget(0.0, 4.0)), 0.0)
    np.testing.assert_allclose(meet_budget(scaled, q, budget(48.0, 4.0)), 4.0, rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e9, 1e200])
def test_the_scale_of_scores_and_of_totals_does_not_matter(scale):
    q = scores(2)
    plain = meet_budget(scaled, q, budget(30.0, 4.0))
    np.testing.assert_allclose(meet_budget(scaled, scale * q, budget(30.0, 4.0)), plain, rtol=1e-12)
    np.testing.assert_allclose(meet_budget(scaled, q, budget(30.0 * scale, 4.0 * scale)), plain * scale, rtol=1e-12)


@pytest.mark.parametrize("score", [1e-320, 3e-308, 1e308])
def test_scores_at_the_ends_of_the_floating_range_still_meet_the_total(score):
    np.testing.assert_allclose(meet_budget(scaled, np.full(UNITS, score), budget(12e6)), 1e6, rtol=1e-12)


def test_inside_a_trace_failures_are_nan():
    traced = jax.jit(lambda q, total: meet_budget(scaled, q, budget(total, 4.0)))
    q = scores(3)
    np.testing.assert_allclose(traced(q, 30.0), meet_budget(scaled, q, budget(30.0, 4.0)), rtol=1e-13)
    assert jnp.isnan(traced(q, 49.0)).all()
    for spoilt in (jnp.nan, jnp.inf, -1.0):
        assert jnp.isnan(traced(np.where(np.arange(UNITS) == 3, spoilt, q), 30.0)).all()


def test_totals_can_be_swept_by_vmap():
    q, totals = scores(1), jnp.asarray([3.0, 12.0, 40.0])
    swept = jax.vmap(lambda total: meet_budget(scaled, q, budget(total, 4.0)))(totals)
    np.testing.assert_allclose(jnp.sum(swept, axis=1), totals, rtol=1e-12)


def test_a_total_beyond_the_maxima_is_refused():
    with pytest.raises(ValueError, match="a total of 49 is out of reach: the maxima hold 48; lower the total or raise"):
        meet_budget(scaled, scores(1), budget(49.0, 4.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": -np.ones(UNITS)}, r"q must be at least 0 and finite; got -1 in unit 0"),
        ({"q": np.full(UNITS, np.nan)}, r"q must be at least 0"),
        ({"budget": budget(1.0, weight=0.0)}, r"weight must be above 0"),
        ({"budget": budget(-1.0)}, r"total must be at least 0"),
        ({"budget": budget(1.0, maximum=-1.0)}, r"maximum must be at least 0"),
        ({"sparsity": True}, r"maximum must be at least 0 and at most 1; got 4"),
    ],
)
def test_values_out_of_their_range_are_refused(changed, message):
    given = {"q": scores(1), "budget": budget(12.0, 4.0), "sparsity": False} | changed
    with pytest.raises(ValueError, match=message):
        meet_budget(scaled, given["q"], given["budget"], sparsity=given["sparsity"])


def test_a_setting_out_of_its_range_is_refused_by_name():
    with pytest.raises(ValueError, match=r"factor must be at least 0 and finite; got -1"):
        meet_budget(shifted, scores(1), budget(12.0), Setting("factor", -1.0), allowed=FINITE)


@pytest.mark.bad_shapes
@pytest.mark.parametrize(
    ("q", "weight", "message"),
    [
        (np.ones((3, 4)), np.ones(12), r"q needs one entry per unit, and at least one unit; got shape \(3, 4\)"),
        (np.ones(0), np.ones(12), r"at least one unit; got shape \(0,\)"),
        (np.ones(12), np.ones(11), r"weight needs one entry for each of the 12 units"),
    ],
)
def test_shapes_are_checked(q, weight, message):
    with pytest.raises(ValueError, match=message):
        meet_budget(scaled, q, BudgetConstraint(weight, 1.0, np.inf))


def test_a_slope_beyond_the_range_is_not_called_a_total_out_of_reach():
    budget = BudgetConstraint(np.array([1.0, 1e300]), 0.5, np.ones(2))
    with pytest.raises(ValueError, match="scores and weights together leave the range of float64"):
        meet_budget(_steep, np.array([1e200, 1.0]), budget)


def _steep(q, limits):
    return Line(0 * q, q * q / limits.weight)
