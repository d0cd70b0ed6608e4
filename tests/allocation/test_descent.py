import numpy as np
import pytest

from curvjax.allocation.descent import Free, mirror_step, price_spread, projected

COUNT = 12


def problem(seed, total=0.6):
    draw = np.random.default_rng(seed)
    size = draw.integers(10, 1000, COUNT).astype(float)
    return Free(size, total * size.sum(), np.zeros(COUNT), draw.uniform(0.7, 0.95, COUNT)), draw.uniform(0, 1, COUNT)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [0.0, 0.3, 0.6])
def test_the_projection_meets_total_and_bounds_and_moves_all_free_units_alike(seed, total):
    free, x = problem(seed, total)
    found = projected(x, free)
    assert free.size @ found == pytest.approx(free.total, rel=1e-10, abs=1e-8)
    assert ((found >= free.lower) & (found <= free.upper)).all()
    moved = (found - x)[(found > free.lower) & (found < free.upper)]
    assert np.ptp(moved, axis=0) < 1e-12 if moved.size else True


def test_a_total_beyond_the_bounds_is_refused():
    free, x = problem(1)
    with pytest.raises(ValueError, match="out of reach: the bounds allow from 0 to"):
        projected(x, free._replace(total=2 * free.size.sum()))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_step_takes_from_the_dear_and_gives_to_the_cheap(seed):
    free, _ = problem(seed)
    x = projected(np.full(COUNT, 0.6), free)
    price = np.random.default_rng(seed).normal(size=COUNT)
    step = mirror_step(x, price, free, rate=0.01)
    change = (step.x - x) / (1 - x)
    order = np.argsort(np.clip(price, *np.quantile(price, [0.1, 0.9])))
    assert change[order[0]] > 0 > change[order[-1]]
    assert free.size @ step.x == pytest.approx(free.total, rel=1e-10)


def test_the_scale_of_prices_does_not_matter_and_the_direction_is_a_mean_of_two():
    free, _ = problem(1)
    x, price = projected(np.full(COUNT, 0.6), free), np.random.default_rng(1).normal(size=COUNT)
    one, other = (mirror_step(x, scale * price + shift, free, rate=0.05) for scale, shift in ((1, 0), (1e-6, 3e-6)))
    np.testing.assert_allclose(one.x, other.x, rtol=1e-6)
    again = mirror_step(x, -price, free, rate=0.05, direction=one.direction)
    np.testing.assert_allclose(again.direction, 0.0, atol=1e-12)


def test_steps_equalise_the_prices_of_a_convex_harm():
    """Harm sum_k n_k a_k exp(4 x_k) has the price 4 a_k exp(4 x_k) for each weight; the optimum makes these equal."""
    free, _ = problem(2)
    free = free._replace(upper=np.ones(COUNT))
    a, x, direction = np.random.default_rng(2).uniform(0.5, 2.0, COUNT), projected(np.full(COUNT, 0.6), free), None
    before = price_spread(x, 4 * a * np.exp(4 * x), free)
    for step in range(60):
        x, direction = mirror_step(x, 4 * a * np.exp(4 * x), free, rate=0.06 * 0.95**step, direction=direction)
    after = price_spread(x, 4 * a * np.exp(4 * x), free)
    assert after < 0.05 * before
    equal = projected(-np.log(a) / 4, free)
    np.testing.assert_allclose(x, equal, atol=0.02)


def test_prices_that_are_not_finite_are_refused_by_unit():
    free, _ = problem(1)
    price = np.ones(COUNT)
    price[[3, 7]] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"prices of 2 units are not finite, of units \[3, 7\]"):
        mirror_step(np.full(COUNT, 0.5), price, free, rate=0.1)


def test_units_at_their_bounds_have_no_part_in_the_spread():
    free, _ = problem(1)
    x = np.where(np.arange(COUNT) < 2, 0.5, free.upper)
    price = np.arange(COUNT, dtype=float)
    size = free.size[:2]
    mean = price[:2] @ size / size.sum()
    assert price_spread(x, price, free) == pytest.approx(np.sqrt(((price[:2] - mean) ** 2) @ size / size.sum()) / mean)
    assert price_spread(free.upper, price, free) == 0.0
