"""AlphaPruning against its program, and where that prunes more than there is."""

import json
from pathlib import Path

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.alphapruning import alphapruning

CASE = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text(encoding="utf-8"))[
    "alphapruning_llama7b"
]
EXPONENTS = np.asarray(CASE["block_alpha"])


def sparsities(size, mean, maximum=1.0, **settings):
    budget = BudgetConstraint(size, mean * np.sum(size), np.broadcast_to(maximum, len(size)))
    return np.asarray(alphapruning(-EXPONENTS, budget=budget, **settings))


def published(size, mean, spread):
    """The formula of the program: an affine map, rescaled by the sizes, not clamped."""
    place = (EXPONENTS - EXPONENTS.min()) / (EXPONENTS.max() - EXPONENTS.min())
    ratio = 1 - spread + 2 * spread * place
    return ratio * mean * size.sum() / (size @ ratio)


@pytest.mark.parametrize("case", CASE["cases"], ids=lambda case: f"S={case['S']}")
def test_llama_7b_gets_the_programs_numbers(case):
    amount = sparsities(np.full(32, 5), case["S"], spread=case["eps"])
    np.testing.assert_allclose(amount, case["ratio"], atol=5e-7)  # theirs are float32


def test_unequal_sizes_are_the_published_formula_too():
    size = np.arange(32) + 1.0
    np.testing.assert_allclose(sparsities(size, 0.6), published(size, 0.6, 0.3), rtol=1e-12)


def test_where_the_program_prunes_more_than_a_block_holds_the_rest_goes_to_the_others():
    size = np.ones(32)
    theirs, ours = published(size, 0.8, 0.3), sparsities(size, 0.8)
    assert theirs.max() > 1.06
    assert ours.max() == 1.0
    assert ours.mean() == pytest.approx(0.8, rel=1e-12)
    free = ours < 1
    np.testing.assert_allclose(ours[free] / theirs[free], ours[free][0] / theirs[free][0], rtol=1e-12)
    assert (ours[free] > theirs[free]).all()


def test_a_spread_of_one_keeps_the_best_block_whole():
    amount = sparsities(np.ones(32), 0.3, spread=1.0)
    assert amount[np.argmin(EXPONENTS)] == 0.0


def test_a_spread_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"spread must be at least 0 and at most 1; got 1.1"):
        sparsities(np.ones(32), 0.5, spread=1.1)
