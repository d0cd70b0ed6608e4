"""ERK against the loop of its program."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.erk import erk

INPUTS, OUTPUTS = np.random.default_rng(1).integers(4, 200, (2, 12))
SCORE, SIZE = (INPUTS + OUTPUTS) / (INPUTS * OUTPUTS), INPUTS * OUTPUTS


def sparsities(mean, maximum=1.0):
    budget = BudgetConstraint(SIZE, mean * SIZE.sum(), np.broadcast_to(maximum, 12))
    return np.asarray(erk(SCORE, budget=budget))


def published(mean):
    """Blocks that would be more than dense join the dense ones, until none would."""
    dense = np.zeros(12, dtype=bool)
    while True:
        scale = ((1 - mean) * SIZE.sum() - SIZE[dense].sum()) / (SIZE * SCORE)[~dense].sum()
        if not (~dense & (scale * SCORE > 1)).any():
            return np.where(dense, 0.0, 1 - scale * SCORE)
        dense |= SCORE[~dense].max() == SCORE


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.9, 0.99])
def test_the_published_loop_gives_the_same(mean):
    np.testing.assert_allclose(sparsities(mean), published(mean), rtol=1e-10, atol=1e-12)


def test_blocks_are_dense_at_most_and_small_ones_are_denser():
    amount = sparsities(0.3)
    assert 0 < (amount == 0).sum() < 12
    assert (np.diff(amount[np.argsort(SCORE)]) <= 0).all()


def test_a_maximum_holds():
    amount = sparsities(0.9, 0.92)
    assert amount.max() == 0.92
    assert SIZE @ amount == pytest.approx(0.9 * SIZE.sum(), rel=1e-12)
