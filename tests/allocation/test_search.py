"""Searches, on separable convex losses whose optimum is known."""

import jax
import numpy as np
import pytest

from curvjax.allocation.descent import Free, projected
from curvjax.allocation.search import Sample, SelectionRound, evolve, greedy
from curvjax.allocation.space import Shares

COUNT = 6
ALL = (SelectionRound(1, 1.0),)


def problem(seed, *, equal=False):
    """Bounds, a start that is projected, and the coefficients of sum_k n_k a_k exp(4 x_k)."""
    draw = np.random.default_rng(seed)
    size = np.full(COUNT, 100.0) if equal else draw.integers(50, 300, COUNT).astype(float)
    free = Free(size, 0.5 * size.sum(), np.zeros(COUNT), np.full(COUNT, 0.95))
    return free, projected(np.full(COUNT, 0.5), free), draw.uniform(0.2, 5.0, COUNT)


def harm(free, a):
    return lambda x: float(np.sum(free.size * a * np.exp(4 * x)))


def best(free, a):
    """Equal prices: x_k = (mu - log a_k) / 4 within bounds, mu by the projection's shift."""
    return projected(-np.log(a) / 4, free)


def evolved(loss, x, free, *, key=1, evaluations=300, step=2.0):
    on_all = {"offspring": 8, "stages": ALL}
    space = Shares(x, free, step)
    return evolve(lambda amounts, _: loss(amounts), space, evaluations=evaluations, key=jax.random.key(key), **on_all)


def climbed(loss, x, free, *, key=1, evaluations=300, step=2.0):
    return greedy(loss, Shares(x, free, step), evaluations=evaluations, key=jax.random.key(key))


SEARCHES = {"evolve": evolved, "greedy": climbed}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_comes_to_the_optimum_of_a_separable_loss(name, seed):
    free, x, a = problem(seed)
    loss, optimum = harm(free, a), best(*(problem(seed)[i] for i in (0, 2)))
    found = SEARCHES[name](loss, x, free, evaluations=3000)
    assert loss(optimum) <= found.loss <= loss(optimum) * 1.002
    np.testing.assert_allclose(found.x, optimum, atol=0.05)
    assert found.loss == loss(found.x)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_total_and_the_bounds_hold_whatever_the_sizes(name, seed):
    free, x, a = problem(seed)
    asked = []

    def loss(amounts):
        asked.append(amounts.copy())
        return harm(free, a)(amounts)

    found = SEARCHES[name](loss, x, free, evaluations=100, step=9.0)
    for amounts in (*asked, found.x):
        assert free.size @ amounts == pytest.approx(free.total, rel=1e-12)
        assert (amounts >= -1e-12).all()
        assert (amounts <= 0.95 + 1e-12).all()
        levels = free.size * (amounts - x) / 9.0
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    assert len({amounts.tobytes() for amounts in asked}) == len(asked) == found.evaluations <= 100


@pytest.mark.parametrize("name", SEARCHES)
def test_the_trace_falls_and_says_what_was_spent(name):
    free, x, a = problem(1)
    found = SEARCHES[name](harm(free, a), x, free)
    assert found.trace[0] == harm(free, a)(x)
    assert found.trace[-1] == found.loss < found.trace[0]
    assert (np.diff(found.trace) <= 0).all()
    assert (np.diff(found.spent) >= 0).all()
    assert (found.spent[0], found.trace.shape) == (1.0, found.spent.shape)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_key_decides_all(name):
    free, x, a = problem(2)
    one, same, other = (SEARCHES[name](harm(free, a), x, free, key=key, evaluations=40) for key in (1, 1, 2))
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.trace, same.trace)
    assert one.trace.tolist() != other.trace.tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_stops_where_no_step_helps_and_says_so(seed):
    free, x, a = problem(seed, equal=True)
    loss, found = harm(free, a), SEARCHES["greedy"](harm(free, a), x, free, evaluations=5000)
    assert found.converged
    for giver in range(COUNT):
        for taker in range(COUNT):
            moved = found.x.copy()
            moved[giver] -= 0.02
            moved[taker] += 0.02
            outside = moved.min() < -1e-9 or moved.max() > 0.95 + 1e-9
            assert giver == taker or outside or loss(moved) >= found.loss
    assert not SEARCHES["greedy"](loss, x, free, evaluations=10).converged


def test_samples_grow_are_shared_within_a_round_and_the_last_is_all():
    free, x, a = problem(1)
    asked = []

    def loss(amounts, sample):
        asked.append(sample)
        return harm(free, a)(amounts) + np.random.default_rng(sample.draw).normal()

    stages = (SelectionRound(4, 0.125), SelectionRound(2, 0.5), SelectionRound(1, 1.0))
    space = Shares(x, free, 2.0)
    found = evolve(loss, space, evaluations=15, key=jax.random.key(1), offspring=8, stages=stages)
    # one generation: 8/8 + 4/2 + 2, and room for one at its most, 5: the start and two, or more where losses are known
    generation = [*[Sample(0.125, 1)] * 8, *[Sample(0.5, 1)] * 4, *[Sample()] * 2]
    assert asked[:15] == [Sample(), *generation]
    assert found.evaluations == sum(sample.share for sample in asked) <= 15
    assert {sample.draw for sample in asked if sample.share < 1} == set(range(1, len(found.trace)))


def test_selection_by_a_cheap_sample_misses_what_it_does_not_see():
    """Where the sample's loss is reversed, the worst pass; but the parent stands in the last round."""
    free, x, a = problem(1)
    loss = harm(free, a)
    stages = (SelectionRound(1, 0.1), SelectionRound(1, 1.0))
    found = evolve(
        lambda amounts, sample: loss(amounts) * (1 if sample.share == 1 else -1),
        Shares(x, free, 2.0), evaluations=60, key=jax.random.key(1), offspring=20, stages=stages,
    )  # fmt: skip
    assert (np.diff(found.trace) <= 0).all()
    assert found.loss > SEARCHES["evolve"](loss, x, free, evaluations=60).loss


@pytest.mark.parametrize("name", SEARCHES)
def test_nan_is_worst_and_one_unit_has_no_move(name):
    free, x, a = problem(1)
    lost = SEARCHES[name](lambda amounts: harm(free, a)(amounts) if amounts is x else float("nan"), x, free)
    np.testing.assert_array_equal(lost.x, x)
    alone = Free(np.array([10.0]), 5.0, np.zeros(1), np.ones(1))
    found = SEARCHES[name](lambda amounts: float(amounts[0]), np.array([0.5]), alone)
    assert (found.x.tolist(), found.loss, found.evaluations) == ([0.5], 0.5, 1.0)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.full(COUNT, 0.4)}, "0 units are out of their bounds, and the total is"),
        ({"x": np.r_[1.5, np.full(COUNT - 1, 0.3)]}, "1 units are out of their bounds"),
        ({"x": np.full(COUNT + 1, 0.5)}, r"one entry per unit in all: x \(7,\)"),
        ({"step": 0.0}, "a number of weights above 0, got 0.0"),
        ({"step": float("inf")}, "a number of weights above 0, got inf"),
        ({"evaluations": 0}, r"need at least 1 evaluation|take 9 evaluations, more than 0"),
    ],
)
@pytest.mark.bad_shapes
def test_starts_and_steps_that_do_not_fit_are_refused(name, changes, message):
    free, x, a = problem(1)
    with pytest.raises(ValueError, match=message):
        SEARCHES[name](harm(free, a), free=free, **({"x": x} | changes))


@pytest.mark.parametrize(
    ("offspring", "stages", "message"),
    [
        (0, ALL, "need offspring, then rounds of ever fewer survivors"),
        (4, (), "need offspring, then rounds"),
        (4, (SelectionRound(8, 0.5), SelectionRound(1, 1.0)), "rounds of ever fewer survivors"),
        (4, (SelectionRound(2, 0.0), SelectionRound(1, 1.0)), "on shares of the data"),
        (4, (SelectionRound(2, 1.0),), "the last round lets one pass, on all the data"),
        (4, (SelectionRound(1, 0.5),), "the last round lets one pass, on all the data"),
    ],
)
def test_rounds_that_mean_nothing_are_refused(offspring, stages, message):
    free, x, _ = problem(1)
    with pytest.raises(ValueError, match=message):
        evolve(
            lambda *_: 0.0, Shares(x, free, 1.0), evaluations=99, key=jax.random.key(1), offspring=offspring,
            stages=stages,
        )  # fmt: skip
