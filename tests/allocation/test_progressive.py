from itertools import product

import numpy as np
import pytest

from curvjax.allocation import Menu
from curvjax.allocation.progressive import raise_in_batches

WIDTHS = np.array([2, 3, 4, 5])


def problem(seed, count=5, **of_menu):
    draw = np.random.default_rng(seed)
    size = draw.integers(50, 300, count).astype(float)
    return Menu(WIDTHS, size, **{"held": np.zeros(count, bool)} | of_menu), draw.uniform(0.1, 30.0, count)


def exact(a):
    """Changes of sum_k a_k 4^-b_k, whatever the reference."""
    return lambda x: a[:, None] * (4.0**-WIDTHS - 4.0 ** -x[:, None])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 4, 50])
def test_of_falling_returns_and_equal_sizes_the_greedy_choice_is_the_best(seed, rounds):
    menu, a = problem(seed)
    menu = menu._replace(size=np.full(5, 7.0))
    found = raise_in_batches(exact(a), menu, budget=7.0 * 16, rounds=rounds)
    harm = {x: a @ 4.0 ** -np.array(x) for x in product(WIDTHS, repeat=5) if sum(x) <= 16}
    np.testing.assert_array_equal(found.amounts, min(harm, key=harm.get))
    assert len(found.references) <= min(rounds, 6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_entry_is_raised_by_the_table_of_its_round(seed):
    """Slopes at the reference stand for changes, so that what is raised depends on where they were asked for."""
    menu, a = problem(seed)
    budget, asked = 3.4 * float(menu.size.sum()), []

    def changes(x):
        asked.append(x.copy())
        return -np.log(4) * (a * 4.0**-x)[:, None] * (WIDTHS - x[:, None])

    found = raise_in_batches(changes, menu, budget=budget, rounds=3)
    np.testing.assert_array_equal(found.references, asked)
    x, spent, room = np.full(5, 2.0), 2.0 * menu.size.sum(), 1.4 * menu.size.sum() / 3
    for batch in range(1, 4):
        slope = a * 4.0**-x / menu.size  # of the reference, whatever is raised from there
        while spent < 2 * menu.size.sum() + batch * room - 1e-6:
            fits = (x < 5) & (spent + menu.size <= budget + 1e-9)
            if not fits.any():
                break
            best = int(np.argmax(np.where(fits, slope, -np.inf)))
            x[best] += 1
            spent += menu.size[best]
    np.testing.assert_array_equal(found.amounts, x)
    assert budget - menu.size @ found.amounts < menu.size[found.amounts < 5].min()


def test_frozen_units_stay_at_the_largest_and_tied_ones_are_raised_together():
    menu, a = problem(2, held=np.arange(5) == 3, groups=np.array([0, 1, 0, 2, 3]))
    found = raise_in_batches(exact(a), menu, budget=3.6 * float(menu.size.sum()), rounds=4).amounts
    assert found[3] == 5
    assert found[0] == found[2]
    assert menu.size @ found <= 3.6 * menu.size.sum()


def test_a_change_for_the_worse_is_made_last():
    menu = Menu(np.array([2, 3]), np.ones(3), np.zeros(3, bool))
    table = np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    for budget, amounts in ((7, [2, 3, 2]), (8, [2, 3, 3]), (9, [3, 3, 3])):
        np.testing.assert_array_equal(
            raise_in_batches(lambda _: table, menu, budget=float(budget), rounds=1).amounts, amounts
        )


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (1.0, {"budget": 9.0, "rounds": 0}, "need at least 1 round, got 0"),
        (1.0, {"budget": 5.0, "rounds": 1}, "a budget of 5 is out of reach: the least amounts take 6"),
        (np.nan, {"budget": 9.0, "rounds": 1}, r"changes of 3 units are not finite, e\.g\. of units \[0, 1, 2\]"),
    ],
)
def test_what_cannot_be_raised_is_refused(changes, settings, message):
    menu = Menu(np.array([2, 3]), np.ones(3), np.zeros(3, bool))
    with pytest.raises(ValueError, match=message):
        raise_in_batches(lambda _: np.full((3, 2), changes), menu, **settings)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entries_are_raised_by_what_they_take_in_all(seed):
    """Extra costs that are the same for all entries change nothing; a dear last entry is taken where it is paid for."""
    menu, a = problem(seed)
    more = menu._replace(extra=np.ones((5, 4)) * 0.5 * menu.size[:, None])
    budget = 3.4 * float(menu.size.sum())
    found = raise_in_batches(exact(a), more, budget=budget + 0.5 * float(menu.size.sum()), rounds=3)
    np.testing.assert_array_equal(found.amounts, raise_in_batches(exact(a), menu, budget=budget, rounds=3).amounts)
    dear = menu._replace(extra=np.array([0.0, 0.0, 0.0, 3.0]) * menu.size[:, None])
    rising = raise_in_batches(exact(a), dear, budget=budget, rounds=3).amounts
    assert dear.spent(rising) <= budget
    assert set(rising) <= {2.0, 3.0, 4.0, 5.0}
