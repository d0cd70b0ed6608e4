"""AlphaLoRA against its program, and where that piles a shortage on one layer."""

import json
from pathlib import Path

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.alphalora import alphalora
from curvjax.allocation.rules.proportional import largest_remainder

CASE = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text(encoding="utf-8"))["alphalora_mistral"]
EXPONENTS = np.asarray(CASE["alpha"])


def experts(q, total, maximum=np.inf, rule=alphalora, **settings):
    budget = BudgetConstraint(np.ones(len(q)), total, np.broadcast_to(maximum, len(q)))
    return np.asarray(rule(q, budget=budget, **settings))


def published(q, total, beta=2.5):
    """The rounding of the program: one unit at a time, ranked by the power itself."""
    power = q**beta
    whole = np.rint(power / power.sum() * total)
    while whole.sum() < total:
        whole[np.argmin(power - whole)] += 1
    while whole.sum() > total:
        whole[np.argmax(power - whole)] -= 1
    return whole


def test_mistral_7b_gets_the_programs_numbers():
    amount = experts(EXPONENTS, 160)
    np.testing.assert_array_equal(amount, CASE["T160_beta2_5"])
    np.testing.assert_array_equal(amount, published(EXPONENTS, 160))
    assert (amount != CASE["published_readme"]).any()  # which the program does not reproduce either
    assert (amount != experts(EXPONENTS, 160, rule=largest_remainder, beta=2.5)).any()


@pytest.mark.parametrize("total", range(150, 171))
def test_repairs_are_the_programs_for_a_mistake_of_one(total):
    power = EXPONENTS**2.5
    if abs(np.rint(power / power.sum() * total).sum() - total) <= 1:
        np.testing.assert_array_equal(experts(EXPONENTS, total), published(EXPONENTS, total))
    assert experts(EXPONENTS, total).sum() == total


def test_a_shortage_is_spread_and_not_piled_on_the_first():
    assert published(np.full(12, 2.0), 30)[0] == 8
    np.testing.assert_array_equal(experts(np.full(12, 2.0), 30), [3] * 6 + [2] * 6)
    assert published(np.full(12, 2.0), 42).min() < 3  # 3.5 rounds to 4: six too many
    np.testing.assert_array_equal(experts(np.full(12, 2.0), 42), [3] * 6 + [4] * 6)


def test_maxima_hold_through_the_repair():
    amount = experts(EXPONENTS, 160, 6.5)
    assert amount.max() == 6
    assert amount.sum() == 160
    np.testing.assert_array_equal(experts(EXPONENTS, 160, 5.0), 5)


def test_a_power_beyond_the_floating_range_is_no_hazard():
    assert experts(EXPONENTS * 1e200, 160).sum() == 160
