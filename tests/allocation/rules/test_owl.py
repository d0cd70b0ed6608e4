"""OWL against its program, and where that misses the total."""

import json
from pathlib import Path

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.owl import owl

CASES = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text(encoding="utf-8"))["owl_allocate"]
OUTLIERS = np.random.default_rng(1).gamma(2.0, size=12)


def sparsities(q, size, mean, maximum=1.0, **settings):
    budget = BudgetConstraint(size, mean * np.sum(size), np.broadcast_to(maximum, len(size)))
    return np.asarray(owl(q, budget=budget, **settings))


def published(q, mean, spread):
    """The formula of the program: densities centred on their plain mean, sizes unseen."""
    density = (q - q.min()) / (q.max() - q.min()) * 2 * spread
    return 1 - (density - density.mean() + 1 - mean)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S={case['S']}")
def test_equal_sizes_give_the_programs_numbers(case):
    q = np.asarray(case["outlier_pct"])
    np.testing.assert_allclose(published(q, case["S"], case["lam"]), case["sparsity"], rtol=1e-14)
    np.testing.assert_allclose(
        sparsities(q, np.full(q.size, 7), case["S"], spread=case["lam"]), case["sparsity"], rtol=1e-12
    )


def test_unequal_sizes_keep_the_differences_and_meet_the_total():
    size = np.where(np.median(OUTLIERS) < OUTLIERS, 10, 1)
    ours, theirs = sparsities(OUTLIERS, size, 0.6), published(OUTLIERS, 0.6, 0.08)
    assert size @ ours == pytest.approx(0.6 * size.sum(), rel=1e-12)
    assert abs(size @ theirs / size.sum() - 0.6) > 0.02
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), rtol=1e-9)


def test_negative_sparsities_are_clamped_and_made_up_for():
    assert published(OUTLIERS, 0.05, 0.3).min() < 0
    ours = sparsities(OUTLIERS, np.ones(12), 0.05, spread=0.3)
    assert ours.min() == 0.0
    assert ours.mean() == pytest.approx(0.05, rel=1e-12)


def test_no_spread_is_uniform():
    np.testing.assert_allclose(sparsities(OUTLIERS, np.ones(12), 0.6, spread=0.0), 0.6, rtol=1e-13)


def test_a_spread_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"spread must be at least 0 and at most 1; got 1.5"):
        sparsities(OUTLIERS, np.ones(12), 0.6, spread=1.5)
