"""Largest remainder: the total is exact, the caps hold."""

from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from curvjax.allocation import allocate_sparsity, round_sparsity, round_to_total

bad_shapes = partial(pytest.param, marks=pytest.mark.bad_shapes)  # the type-checking hook raises first


def test_floors_first_and_then_the_largest_remainders():
    np.testing.assert_array_equal(round_to_total(np.array([1.2, 2.7, 3.6, 0.5]), total=8), [1, 3, 4, 0])


def test_ties_go_to_the_first_unit():
    amount = np.tile([2.5, 1.25], 100)  # long enough for an unstable sort to show
    np.testing.assert_array_equal(round_to_total(amount, total=350), [3, 1] * 50 + [2, 1] * 50)


def test_a_full_unit_passes_its_turn_on_even_twice():
    found = round_to_total(np.array([0.9, 0.9, 0.9, 0.3]), total=3, maximum=np.array([0, 0, 1, 9]))
    np.testing.assert_array_equal(found, [0, 0, 1, 2])


def test_an_amount_above_its_maximum_is_cut_to_it():
    np.testing.assert_array_equal(round_to_total(np.array([3.0, 1.0]), total=4, maximum=np.array([2, 5])), [2, 2])


def test_a_total_just_below_the_sum_of_whole_amounts_is_met():
    np.testing.assert_array_equal(round_to_total(np.array([0.0, 3.0, 2.0]), total=4), [0, 2, 2])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    size=st.lists(st.integers(1, 10**9), min_size=12, max_size=12),
    q=st.lists(st.floats(1e-6, 1.0), min_size=12, max_size=12),
    sparsity=st.floats(0.0, 0.9),
)
def test_the_count_of_removed_weights_is_exact(size, q, sparsity):
    size = np.array(size)
    most = np.floor(0.95 * size * (1 + 1e-12))
    if round(sparsity * size.sum()) > most.sum():
        return
    rho = np.asarray(allocate_sparsity(np.array(q), size=size, sparsity=sparsity).amount)
    count = round_sparsity(rho, size=size, sparsity=sparsity)
    assert count.sum() == round(sparsity * size.sum())
    assert (count >= 0).all()
    assert (count <= most).all()
    assert count.dtype == np.int64
    # each within one weight of its share, but where full blocks pass theirs on
    assert np.abs(count - rho * size).max() < 1 + 12 * (rho >= 0.95).any()


def test_a_cap_that_is_a_whole_count_is_allowed_in_full():
    found = round_sparsity(np.full(3, 0.29), size=np.full(3, 100), sparsity=0.29, max_sparsity=0.29)
    np.testing.assert_array_equal(found, [29] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": np.zeros(0), "total": 0}, "must be a vector of finite numbers"),
        ({"amount": np.array([np.nan]), "total": 0}, "must be a vector of finite numbers"),
        ({"amount": np.array([-1.0]), "total": 0}, "none negative"),
        bad_shapes({"amount": np.ones(2), "total": 2, "maximum": np.ones(3)}, "need one maximum per unit"),
        ({"amount": np.ones(2), "total": 2, "maximum": np.array([3, -1])}, "none negative"),
        ({"amount": np.ones(2), "total": 3, "maximum": np.ones(2)}, "a total of 3 is out of reach: between 0 and 2"),
        ({"amount": np.ones(2), "total": -1}, "a total of -1 is out of reach"),
        ({"amount": np.ones(2), "total": 5}, "the amounts sum to 2, more than one per unit away from the total of 5"),
    ],
)
def test_what_cannot_be_rounded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        round_to_total(arguments.pop("amount"), **arguments)


@pytest.mark.bad_shapes
def test_sizes_must_match_the_shares():
    with pytest.raises(ValueError, match=r"need one size per block: \(2,\) sparsities, \(3,\) sizes"):
        round_sparsity(np.ones(2), size=np.ones(3, dtype=int), sparsity=0.5)
