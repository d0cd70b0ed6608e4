import numpy as np
import pytest

from curvjax.allocation import rank_correlation


def test_rank_correlation_is_that_of_ranks_ties_sharing_theirs():
    first, second = np.array([10.0, 30.0, 20.0, 20.0]), np.array([1.0, 9.0, 4.0, 2.0])
    assert rank_correlation(first, second) == pytest.approx(9 / np.sqrt(90))  # ranks 1, 4, 2.5, 2.5 and 1, 4, 3, 2


def test_rank_correlation_leaves_out_the_unknown_and_refuses_to_guess():
    first = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    assert rank_correlation(first, np.array([2.0, 4.0, 6.0, -9.0, 8.0])) == pytest.approx(1)
    assert np.isnan(rank_correlation(first, np.ones(5)))
    assert np.isnan(rank_correlation(first[:2], first[:2]))
