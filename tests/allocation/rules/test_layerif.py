"""LayerIF's experts."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.layerif import layerif

INFLUENCE = np.random.default_rng(1).normal(size=12)


def experts(q, total, maximum=np.inf, **settings):
    budget = BudgetConstraint(np.ones(len(q)), total, np.broadcast_to(maximum, len(q)))
    return np.asarray(layerif(q, budget=budget, **settings))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_published_formula_in_the_papers_sign(beta):
    lifted = INFLUENCE.max() - INFLUENCE
    share = (60 - 12) * lifted**beta / (lifted**beta).sum()
    whole = 1 + np.floor(share)
    whole[np.argsort(np.floor(share) - share)[: int(60 - whole.sum())]] += 1
    np.testing.assert_array_equal(experts(-INFLUENCE, 60, beta=beta), whole)


def test_the_lowest_layer_has_the_first_expert_alone():
    amount = experts(-INFLUENCE, 60)
    assert amount[np.argmax(INFLUENCE)] == 1
    assert experts(-INFLUENCE, 60, first=0)[np.argmax(INFLUENCE)] == 0
    np.testing.assert_array_equal(experts(-INFLUENCE, 12), 1)


def test_equal_scores_and_a_remainder_are_as_uniform_as_can_be():
    np.testing.assert_array_equal(experts(np.full(12, 0.3), 30), [3] * 6 + [2] * 6)


def test_maxima_count_the_first_expert():
    amount = experts(-INFLUENCE, 60, 7.0)
    assert amount.max() == 7
    assert amount.sum() == 60


@pytest.mark.parametrize(("total", "maximum", "first"), [(11, 9.0, 1), (60, 0.0, 1), (60, 9.0, -1), (60, 9.0, 6)])
def test_first_experts_that_do_not_fit_are_refused(total, maximum, first):
    maximum = np.where(np.arange(12) == 0, maximum, 99.0)
    with pytest.raises(ValueError, match=rf"12 units with {first} each to begin with need a total of {12 * first}"):
        experts(-INFLUENCE, total, maximum, first=first)
