"""Searches over widths, on separable harms whose optimum is known."""

from itertools import product

import jax
import numpy as np
import pytest

from curvjax.allocation import Menu
from curvjax.allocation.search import SelectionRound, evolve, greedy
from curvjax.allocation.space import Entries

COUNT = 5
WIDTHS = np.array([2, 3, 4, 6])


def problem(seed, *, equal=False, **of_menu):
    """A menu, its budget at a mean of 3 bits, and the coefficients of sum_k a_k 4^-b_k."""
    draw = np.random.default_rng(seed)
    size = np.full(COUNT, 100.0) if equal else draw.integers(50, 300, COUNT).astype(float)
    menu = Menu(WIDTHS, size, **{"held": np.zeros(COUNT, bool)} | of_menu)
    return menu, 3 * float(size.sum()), draw.uniform(0.1, 30.0, COUNT)


def harm(a):
    return lambda x: float(a @ 4.0**-x)


def evolved(loss, space, evaluations):
    on_all = {"offspring": 8, "stages": (SelectionRound(1, 1.0),)}
    return evolve(lambda x, _: loss(x), space, evaluations=evaluations, key=jax.random.key(1), **on_all)


def climbed(loss, space, evaluations):
    return greedy(loss, space, evaluations=evaluations, key=jax.random.key(1))


SEARCHES = {"evolve": evolved, "greedy": climbed}


def least(menu, budget, a):
    within = [np.array(x) for x in product(WIDTHS, repeat=COUNT) if menu.size @ x <= budget]
    return min(map(harm(a), within))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("equal", [True, False])
def test_an_evolution_comes_to_the_best_widths(seed, equal):
    menu, budget, a = problem(seed, equal=equal)
    found = evolved(harm(a), Entries(np.full(COUNT, 3.0), menu, budget), 600)
    assert found.loss == pytest.approx(least(menu, budget, a), rel=1e-12)
    assert found.loss == harm(a)(found.x)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_stops_where_no_pair_helps(seed):
    menu, budget, a = problem(seed, equal=True)
    space = Entries(np.full(COUNT, 3.0), menu, budget)
    found = climbed(harm(a), space, 2000)
    assert found.converged
    assert found.loss < harm(a)(np.full(COUNT, 3.0))
    place = tuple(np.searchsorted(WIDTHS, found.x).tolist())
    for giver, taker in product(range(COUNT), repeat=2):
        moved = None if giver == taker else space.moved(place, giver, taker)
        assert moved is None or harm(a)(space.amounts(moved)) >= found.loss


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SEARCHES)
def test_every_question_is_of_the_menu_and_within_the_budget(name, seed):
    held, groups = np.arange(COUNT) == 1, np.array([0, 1, 2, 0, 3])
    menu, _, a = problem(seed, held=held, groups=groups)
    start = np.where(held, 6.0, 3.0)
    budget, asked = float(menu.size @ start), []

    def loss(x):
        asked.append(x)
        return harm(a)(x)

    found = SEARCHES[name](loss, Entries(start, menu, budget), 80)
    for x in (*asked, found.x):
        assert set(x.tolist()) <= set(WIDTHS.tolist())
        assert menu.size @ x <= budget
        assert (x[1], x[0]) == (6, x[3])
    assert len({x.tobytes() for x in asked}) == len(asked) == found.evaluations <= 80
    assert found.loss <= harm(a)(start)


@pytest.mark.parametrize("name", SEARCHES)
def test_what_entries_take_beside_their_amounts_is_within_the_budget(name):
    menu, _, a = problem(1)
    menu = menu._replace(extra=np.array([0.5, 0.5, 0.5, 2.0]) * menu.size[:, None])
    start, asked = np.full(COUNT, 3.0), []
    budget = menu.spent(start)
    assert budget == pytest.approx(3.5 * menu.size.sum())

    def loss(x):
        asked.append(menu.spent(x))
        return harm(a)(x)

    SEARCHES[name](loss, Entries(start, menu, budget), 80)
    assert max(asked) <= budget * (1 + 1e-12)
    with pytest.raises(ValueError, match="a search starts from entries of the menu"):
        Entries(start, menu, budget - 1)


def test_switches_between_units_of_one_size_keep_the_total():
    menu, budget, _ = problem(1, equal=True)
    space, draw = Entries(np.full(COUNT, 3.0), menu, budget), np.random.default_rng(1)
    for _ in range(50):
        place = space.switched(space.start, draw)
        assert menu.size @ space.amounts(place) == budget


def test_an_entry_that_costs_several_is_paid_by_several():
    menu, budget, _ = problem(1, equal=True)
    space = Entries(np.array([4.0, 3, 3, 3, 2]), menu, budget)
    assert space.moved(space.start, 1, 0) is None  # from 4 to 6 takes two bits, from 3 to 2 gives one
    places = {space.switched(space.start, np.random.default_rng(seed)) for seed in range(40)}
    assert any(place and place[0] == 3 and menu.size @ space.amounts(place) == budget for place in places)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_single_unit_has_no_switch(name):
    menu = Menu(WIDTHS, np.ones(1), np.zeros(1, bool))
    found = SEARCHES[name](lambda x: float(x[0]), Entries(np.array([3.0]), menu, 3.0), 20)
    assert (found.x.tolist(), found.evaluations) == ([3.0], 1.0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([3.0, 3, 3, 3, 5], "starts from entries of the menu"),
        ([3.0, 3, 3, 3, 9], "starts from entries of the menu"),
        ([4.0, 4, 4, 4, 4], "of 1,500 together; got .*, 2,000 together"),
        ([3.0, 3, 3, 3], "one amount for each of the 5 units"),
    ],
)
@pytest.mark.bad_shapes
def test_starts_that_do_not_fit_are_refused(x, message):
    menu, budget, _ = problem(1, equal=True)
    with pytest.raises(ValueError, match=message):
        Entries(np.array(x), menu, budget)


@pytest.mark.parametrize(("x", "of_menu"), [([3, 3], {"held": [True, False]}), ([2, 3], {"groups": [0, 0]})])
def test_frozen_and_tied_units_must_start_as_they_stay(x, of_menu):
    arrays = {name: np.array(value) for name, value in of_menu.items()}
    menu = Menu(WIDTHS, np.ones(2), **{"held": np.zeros(2, bool)} | arrays)
    with pytest.raises(ValueError, match="tied units alike, frozen ones at the largest"):
        Entries(np.array(x, float), menu, 12.0)
