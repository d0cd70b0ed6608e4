"""MoLA's quarters."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.mola import mola


def experts(count, total, maximum=np.inf, **settings):
    budget = BudgetConstraint(np.ones(count), total, np.broadcast_to(maximum, count))
    return np.asarray(mola(np.ones(count), budget=budget, **settings))


@pytest.mark.parametrize("quarters", [(2.0, 4.0, 6.0, 8.0), (8.0, 6.0, 4.0, 2.0), (8.0, 2.0, 2.0, 8.0), (5.0,) * 4])
def test_the_published_total_gives_the_published_numbers(quarters):
    np.testing.assert_array_equal(experts(32, 160, quarters=quarters), np.repeat(quarters, 8))


def test_another_total_is_scaled():
    np.testing.assert_array_equal(experts(12, 120), np.repeat([4, 8, 12, 16], 3))
    np.testing.assert_array_equal(experts(12, 62), [2, 2, 2, 4, 4, 4, 6, 6, 6, 9, 9, 8])


def test_layers_that_do_not_divide_by_four_and_maxima_are_met():
    np.testing.assert_array_equal(experts(30, 148), np.repeat([2, 4, 6, 8], [8, 7, 8, 7]))
    np.testing.assert_array_equal(experts(12, 60, 6.0), [3, 3, 3, 5, 5, 5, 6, 6, 6, 6, 6, 6])


@pytest.mark.parametrize("quarters", [(2.0, 4.0, 6.0), (2.0, 4.0, 6.0, -8.0)])
def test_other_than_four_quarters_are_refused(quarters):
    with pytest.raises(ValueError, match="need four numbers, none negative, one for each quarter"):
        experts(12, 60, quarters=quarters)
