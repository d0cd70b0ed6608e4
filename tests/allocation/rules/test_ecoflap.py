"""ECoFLaP against its program, which keeps a few weights more than asked."""

import json
from pathlib import Path

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.ecoflap import ecoflap

CASES = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text(encoding="utf-8"))["ecoflap"]


def sparsities(q, size, mean, maximum):
    budget = BudgetConstraint(size, mean * np.sum(size), np.broadcast_to(maximum, len(size)))
    return np.asarray(ecoflap(q, budget=budget))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"ceiling={case['max_sparsity']}")
def test_the_programs_numbers_differ_by_its_rounding_up_alone(case):
    q, size, theirs = (np.asarray(list(case[name].values())) for name in ("scores", "numel", "sparsity"))
    ours = sparsities(q, size, case["S"], case["max_sparsity"])
    assert size @ ours == pytest.approx(case["S"] * size.sum(), rel=1e-12)
    missed = case["S"] * size.sum() - size @ theirs
    assert 1.9 < missed < 4.1  # weights that the program keeps beyond its own total
    np.testing.assert_array_less(np.abs(ours - theirs) * size, missed)


def test_the_floor_comes_first_and_importance_shares_the_rest():
    size = np.arange(12) * 100.0 + 100.0
    q = np.random.default_rng(1).gamma(1.0, size=12) * 1e-6
    kept = size * (1 - sparsities(q, size, 0.7, 0.75))
    extra = kept - 0.25 * size
    np.testing.assert_allclose(extra / extra.sum(), q / q.sum(), rtol=1e-9)


def test_blocks_of_no_importance_are_left_their_floor():
    q = np.where(np.arange(12) < 6, 0.0, 1.0)
    amount = sparsities(q, np.ones(12), 0.6, 0.9)
    np.testing.assert_allclose(amount, [0.9] * 6 + [0.3] * 6, rtol=1e-12)


def test_where_the_important_blocks_are_dense_the_others_share_the_rest():
    q = np.where(np.arange(12) < 9, 0.0, 1.0)
    np.testing.assert_allclose(sparsities(q, np.ones(12), 0.6, 0.9), [0.8] * 9 + [0.0] * 3, rtol=1e-12, atol=1e-12)
