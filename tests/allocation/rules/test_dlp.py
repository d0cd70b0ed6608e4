import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.dlp import dlp

METRIC = np.random.default_rng(1).gamma(2.0, size=12)


def test_equal_sizes_give_the_programs_densities():
    """The program's own lines: one minus the share, its place between the extremes, centred on the plain mean."""
    ratio = 1 - METRIC / METRIC.sum()
    scaled = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * 0.15 * 2)
    density = scaled - scaled.mean() + (1 - 0.7)
    found = dlp(ratio, BudgetConstraint(np.full(12, 7), 0.7 * 84, np.ones(12)))
    np.testing.assert_allclose(found, 1 - density, rtol=1e-12)


def test_the_total_holds_for_unequal_sizes():
    size = np.random.default_rng(2).integers(10, 1000, 12)
    found = np.asarray(dlp(-METRIC, BudgetConstraint(size, 0.5 * size.sum(), np.ones(12))))
    assert size @ found == pytest.approx(0.5 * size.sum(), rel=1e-12)
    assert np.ptp(found) == pytest.approx(0.3)
