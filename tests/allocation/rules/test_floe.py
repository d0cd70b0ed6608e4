"""FLoE's selection."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.floe import floe

Q = np.random.default_rng(1).gamma(1.0, size=12)


def ranks(q, total=48.0, maximum=np.inf, **settings):
    budget = BudgetConstraint(np.ones(len(q)), total, np.broadcast_to(maximum, len(q)))
    return np.asarray(floe(q, budget=budget, **settings))


@pytest.mark.parametrize(("share", "chosen"), [(0.25, 3), (0.5, 6), (0.51, 7), (1 / 12, 1), (0.01, 1), (1.0, 12)])
def test_the_share_of_largest_score_gets_equal_amounts_and_the_others_none(share, chosen):
    amount = ranks(Q, share=share)
    largest = np.argsort(-Q)[:chosen]
    np.testing.assert_allclose(amount[largest], 48 / chosen, rtol=1e-12)
    np.testing.assert_array_equal(np.delete(amount, largest), 0.0)


def test_ties_with_the_last_one_chosen_are_chosen_too():
    q = np.array([5.0, 4.0, 4.0, 4.0] + [1.0] * 8)
    np.testing.assert_allclose(ranks(q, share=2 / 12), [12.0] * 4 + [0.0] * 8, rtol=1e-12)


def test_where_the_chosen_are_full_the_others_share_the_rest():
    amount = ranks(Q, maximum=10.0)
    largest = np.argsort(-Q)[:3]
    np.testing.assert_allclose(amount[largest], 10.0, rtol=1e-12)
    np.testing.assert_allclose(np.delete(amount, largest), 2.0, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1; got"):
        ranks(Q, share=share)
