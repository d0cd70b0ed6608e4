"""Figures of allocations show what the results say."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from curvjax.allocation import CapacityProgram, allocate_capacity, budget_path, certify, round_capacity, transfer_regret
from curvjax.records import Ranges, SweepPoint
from curvjax.report import amounts_figure, path_figure, ranges_figure, transfer_figure

Q = np.random.default_rng(0).gamma(1.0, size=12)
INDEX = list(range(12))


def program(q):
    return round_capacity(q, cost=1.0, budget=30.0, alpha=0.0).amount


def test_the_path_is_drawn_by_what_is_spent():
    path = budget_path(lambda b: allocate_capacity(Q, cost=1.0, budget=b, alpha=0.0), np.array([20.0, 5.0, 10.0]))
    curve, price = path_figure(path, unit="parameters").axes
    np.testing.assert_allclose(curve.lines[0].get_xdata(), [5, 10, 20])
    assert (np.diff(curve.lines[0].get_ydata()) < 0).all()
    assert (np.diff(price.lines[0].get_ydata()) < 0).all()
    assert curve.get_xlabel() == "parameters"
    with pytest.raises(ValueError, match="need a path of two or more budgets"):
        path_figure(allocate_capacity(Q, cost=1.0, budget=3.0, alpha=0.0))


def test_proved_amounts_are_dots_and_open_ones_bars():
    wide, tight = certify(program, Q * 0.7, Q * 1.3), certify(program, Q, Q)
    first, second = ranges_figure({"wide": wide, "tight": tight}, index=INDEX).axes
    assert len(first.collections[0].get_segments()) == (~wide.unique).sum() > 0
    assert len(second.lines[0].get_xdata()) == 12
    assert second.get_title(loc="left") == "tight: 12 of 12 proved"
    with pytest.raises(ValueError, match="at least one certificate"):
        ranges_figure({}, index=INDEX)


def test_regret_lies_below_its_bounds_in_the_picture():
    budgets = [10.0, 20.0]
    found = [transfer_regret(CapacityProgram(cost=1.0, budget=b, maximum=8.0), Q, Q[::-1]) for b in budgets]
    cost, amount = transfer_figure(found, budgets=budgets, index=INDEX, unit="rank").axes
    lines = [np.asarray(line.get_ydata()) for line in cost.lines]
    assert all((a <= b).all() for a, b in pairwise(lines))
    np.testing.assert_allclose(amount.lines[0].get_ydata(), found[-1].source)
    with pytest.raises(ValueError, match="one regret for each budget, got 2 and 1"):
        transfer_figure(found, budgets=[1.0], index=INDEX, unit="rank")


def test_a_record_with_a_sweep_is_a_path(whole):
    def point(spent):
        return SweepPoint(
            budget=spent, spent=spent, objective=-spent, dual=1 / spent, residual=0.0, status="optimal", continuous=()
        )

    allocation = replace(whole.allocations[0], sweep=(point(20.0), point(5.0), point(10.0)))
    curve, price = path_figure(allocation).axes
    np.testing.assert_allclose(curve.lines[0].get_xdata(), [5, 10, 20])
    np.testing.assert_allclose(price.lines[0].get_ydata(), [0.2, 0.1, 0.05])
    assert curve.get_xlabel() == "parameters"
    with pytest.raises(ValueError, match="need a path of two or more budgets"):
        path_figure(whole.allocations[0])


def test_ranges_of_a_record_are_drawn_alike():
    ranges = Ranges(least=(1.0, 2.0, 3.0), most=(1.0, 4.0, 3.0), certified=2, widest=2.0)
    (axes,) = ranges_figure({"found": ranges}, index=[0, 1, 2]).axes
    assert list(axes.lines[0].get_xdata()) == [0, 2]
    assert axes.get_title(loc="left") == "found: 2 of 3 proved"


def test_ranks_show_every_control(whole):
    ranks = whole.allocations[0]
    (axes,) = amounts_figure([ranks], controls=[whole.controls(ranks)]).axes
    assert [bar.get_height() for bar in axes.patches] == list(ranks.amounts.values())
    assert next(text.get_text() for text in axes.get_legend().get_texts()).startswith("curvature")
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["uniform"] == [8] * 12
    assert drawn["permuted"] == next(list(arm.ranks) for arm in whole.adaptation.arms if arm.arm == "permuted")


def test_sparsities_have_one_panel_each_with_their_own_controls(whole):
    controls = [whole.controls(each) for each in whole.of("sparsity")]
    panels = amounts_figure(whole.of("sparsity"), controls=controls).axes
    for axes, level, allocation in zip(panels, (50, 60), whole.of("sparsity"), strict=True):
        uniform = next(line for line in axes.lines if line.get_label() == "uniform")
        assert np.allclose(uniform.get_ydata(), level)
        assert np.allclose([bar.get_height() for bar in axes.patches], 100 * allocation.shares)
        assert axes.get_title(loc="left") == f"{level}% of the weights removed"


def test_amounts_of_other_targets_are_not_drawn_side_by_side(whole):
    with pytest.raises(ValueError, match=r"one target to draw side by side, got \['rank', 'sparsity'\]"):
        amounts_figure(whole.allocations)
