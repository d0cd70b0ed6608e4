"""Uniform+ spares both ends."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.uniform_plus import uniform_plus


def sparsities(mean, maximum=1.0, **settings):
    budget = BudgetConstraint(np.ones(12), 12 * mean, np.broadcast_to(maximum, 12))
    return np.asarray(uniform_plus(np.ones(12), budget=budget, **settings))


def test_the_first_block_is_dense_and_the_others_share_its_part():
    np.testing.assert_allclose(sparsities(0.6), [0.0] + [7.2 / 11] * 11, rtol=1e-12)


def test_the_last_block_keeps_a_fifth():
    np.testing.assert_allclose(sparsities(0.85), [0.0] + [0.94] * 10 + [0.8], rtol=1e-12)
    np.testing.assert_allclose(sparsities(0.8, last_density=0.5), [0.0] + [0.91] * 10 + [0.5], rtol=1e-12)


def test_a_lower_maximum_of_the_last_block_holds():
    maximum = np.where(np.arange(12) == 11, 0.1, 1.0)
    assert sparsities(0.6, maximum)[-1] == 0.1


def test_a_single_block_stays_dense():
    budget = BudgetConstraint(np.ones(1), 0.5, np.ones(1))
    with pytest.raises(ValueError, match=r"a total of 0.5 is out of reach: the maxima hold 0;"):
        uniform_plus(np.ones(1), budget=budget)


def test_a_density_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"last_density must be at least 0 and at most 1; got 1.2"):
        sparsities(0.6, last_density=1.2)
