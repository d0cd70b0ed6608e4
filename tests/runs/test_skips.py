"""Layers skipped, against models without them."""

from itertools import combinations, permutations
from math import factorial

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import parameters, with_parameters
from curvjax.runs.objective import objective
from curvjax.runs.skips import contributions, without_segments
from curvjax.surgery import drop_layers
from curvjax.testing import tiny_model
from tests.runs.tiny import rows


@pytest.fixture(scope="module")
def four():
    """In float64, so that small differences of losses can be told."""
    loaded = tiny_model(layers=4)
    wide = {path: jnp.asarray(value, jnp.float64) for path, value in parameters(loaded.model).items()}
    return loaded._replace(model=with_parameters(loaded.model, wide))


@pytest.fixture(scope="module")
def batch(four):
    return rows(four).batch


@pytest.fixture(scope="module")
def divergence(four, batch):
    return objective(four.model, batch, kind="divergence", rows=1)


@pytest.fixture(scope="module")
def loss(four, batch):
    return objective(four.model, batch, kind="loss", rows=1)


@pytest.fixture(scope="module")
def table(four, loss):
    """Losses of the models with each set of layers; with none, the embedding is read out."""
    values = {}
    for size in range(4):
        for present in combinations(range(4), size):
            if present:
                values[present] = loss(drop_layers(four.model, set(range(4)) - set(present)))
    zero = {
        path: jnp.zeros_like(value) if path.endswith(("o_proj.kernel", "down_proj.kernel")) else value
        for path, value in parameters(four.model).items()
    }
    return values | {(): loss(with_parameters(four.model, zero)), (0, 1, 2, 3): loss(four.model)}


@pytest.mark.parametrize("kind", ["divergence", "loss"])
def test_segments_are_measured_as_if_they_were_not_there(kind, four, divergence, loss):
    found_by, told = {"divergence": divergence, "loss": loss}[kind], []
    found = without_segments(four.model, found_by, longest=4, progress=lambda *done: told.append(done))
    assert found.without.shape == (4, 4)
    for first in range(4):
        for length in range(1, 5):
            segment = range(first, first + length)
            if first + length > 4 or length == 4:
                assert np.isnan(found.without[first, length - 1])
            else:
                value = found_by(drop_layers(four.model, segment))
                assert found.without[first, length - 1] == pytest.approx(value, rel=1e-9)
    assert found.base == pytest.approx(found_by(four.model), abs=1e-12)
    assert told[-1] == ("segments skipped", 4, 4)


def test_segments_shorter_than_asked_for_are_not_measured(four, divergence):
    found = without_segments(four.model, divergence, longest=3, shortest=3).without
    assert np.isnan(found[:, :2]).all()
    assert np.isfinite(found[:, 2]).tolist() == [True, True, False, False]


def test_all_orders_give_the_shapley_values_of_all_sets(four, loss, table):
    told = []
    found = contributions(four.model, loss, list(permutations(range(4))), progress=lambda *done: told.append(done))
    exact = np.zeros(4)
    for layer in range(4):
        for size in range(4):
            for others in combinations([k for k in range(4) if k != layer], size):
                weight = factorial(size) * factorial(3 - size) / factorial(4)
                exact[layer] += weight * (table[others] - table[tuple(sorted((*others, layer)))])
    np.testing.assert_allclose(found.values.mean(axis=1), exact, rtol=1e-9)
    assert found.measured == pytest.approx({frozenset(present): value for present, value in table.items()}, rel=1e-9)
    assert told[-1] == ("orders of layers", 24, 24)


def test_a_column_is_of_an_order_and_its_reverse_and_sums_to_what_all_layers_add(four, loss, table):
    order = (2, 0, 3, 1)
    found = contributions(four.model, loss, [order, (0, 1, 2, 3)])
    expected = np.zeros(4)
    for one in (order, order[::-1]):
        for place, layer in enumerate(one):
            before, after = (tuple(sorted(one[:end])) for end in (place, place + 1))
            expected[layer] += (table[before] - table[after]) / 2
    np.testing.assert_allclose(found.values[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(found.values.sum(axis=0), table[()] - table[0, 1, 2, 3], rtol=1e-9)
    assert len(found.measured) == 14  # of the sizes 0 to 4: 1, 4, 4, 4 and 1


def test_drawn_orders_are_within_their_errors(four, loss):
    exact = contributions(four.model, loss, list(permutations(range(4)))).values.mean(axis=1)
    orders = [np.random.default_rng(seed).permutation(4).tolist() for seed in range(40)]
    drawn = contributions(four.model, loss, orders).values
    error = drawn.std(axis=1, ddof=1) / np.sqrt(40)
    assert (np.abs(drawn.mean(axis=1) - exact) < 3.5 * error).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4]])
def test_what_is_no_order_is_refused(four, loss, order):
    with pytest.raises(ValueError, match=r"order 1 must name each of 4 layers once; got \[0, 1, 2"):
        contributions(four.model, loss, [[0, 1, 2, 3], order])
