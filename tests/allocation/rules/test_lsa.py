import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.lsa import lsa

ERROR = np.random.default_rng(1).gamma(2.0, size=12)


@pytest.mark.parametrize(("total", "spread"), [(0.5, 0.04), (0.6, 0.1), (0.65, 0.1), (0.7, 0.15), (0.8, 0.12)])
def test_equal_sizes_give_the_programs_sparsities(total, spread):
    """The program's own lines, with its spread at this sparsity."""
    importance = 1 - ERROR / ERROR.sum()
    importance = (importance - importance.min()) / (importance.max() - importance.min()) * spread * 2
    expected = total + importance.mean() - importance
    found = lsa(1 - ERROR / ERROR.sum(), BudgetConstraint(np.full(12, 7), total * 84, np.ones(12)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("total", "spread"), [(0.09, 0.06), (0.95, 0.12)])
def test_beyond_the_table_its_ends_hold(total, spread):
    size = np.random.default_rng(2).integers(10, 1000, 12)
    found = np.asarray(lsa(-ERROR, BudgetConstraint(size, total * size.sum(), np.full(12, 1.0))))
    assert size @ found == pytest.approx(total * size.sum(), rel=1e-12)
    inside = (found > 0) & (found < 1)
    place = (ERROR - ERROR.min()) / np.ptp(ERROR) * 2 * spread
    np.testing.assert_allclose(np.diff(found[inside]), np.diff(place[inside]), rtol=1e-9)
