import itertools
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.data.batch import Batch
from curvjax.surgery import LISA, ALaST, BudgetDraw, budgets, layer_changes
from curvjax.surgery.sequential import after, residual_streams

EQUAL = (1.0,) * 12
DRAWS = 400


def test_changes_are_relative_squares_over_tokens_outside_padding(model, batch):
    streams, expected = residual_streams(model, batch, 5), []
    for layer in model.layers:
        ahead = after(layer, streams)
        x, y = (np.asarray(each[0].x, float)[:, :5].reshape(25, -1) for each in (streams, ahead))
        expected.append(np.mean([((b - a) @ (b - a)) / (a @ a) for a, b in zip(x, y, strict=True)]))
        streams = ahead
    assert np.allclose(layer_changes(model, batch), expected, rtol=1e-5)  # float32


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_budgets_are_the_sum_of_the_published_steps_until_a_bound_is_met(seed):
    deltas = np.random.default_rng(seed).uniform(0.1, 0.4, size=(20, 12))
    deltas[0] = 0.5  # all others lie below, so that no budget passes one
    budget, rate = np.ones(12), 0.7
    for before, now in itertools.pairwise(deltas):
        budget = budget + rate * (now - before)
    assert np.allclose(budgets(deltas[0], deltas[-1], rate=rate), budget, rtol=1e-12)


def test_budgets_end_at_their_bounds_and_begin_at_one():
    assert np.array_equal(budgets([0.5, 0.5, 0.5], [0.5, 9.0, 0.0], rate=4.0), [1.0, 1.0, 0.01])
    assert np.array_equal(budgets([0.5], [0.0], rate=0.0), [1.0])


def test_layers_are_drawn_as_often_as_weights_times_budgets_say(model, batch):
    now = layer_changes(model, batch)
    first = now + 0.5 * (np.arange(12) == 3) + 9.0 * (np.arange(12) == 10)  # two whose change fell
    weights = tuple(np.where(np.arange(12) == 7, 2.0, EQUAL).tolist())
    draw = BudgetDraw(1, 2, weights, 1.0, tuple(first.tolist()))
    counts = Counter(layer for step in range(DRAWS) for layer in draw.drawn(1, step, model, batch))
    chances = np.ones(12)
    chances[[3, 7, 10]] = 0.5, 2.0, 0.01
    expected = 2 * chances / chances.sum()
    found = np.array([counts[layer] / DRAWS for layer in range(12)])
    assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-3)


def test_layers_of_no_weight_are_never_drawn(model, batch):
    weights = tuple(float(layer in (1, 10, 11)) for layer in range(12))
    draw = BudgetDraw(5, 2, weights, 1.0, tuple(layer_changes(model, batch).tolist()))
    assert draw.drawable(12) == (1, 10, 11)
    assert {layer for step in range(0, 200, 5) for layer in draw.drawn(2, step, model, batch)} == {1, 10, 11}


def test_the_lesson_begins_at_the_changes_of_the_model_as_it_was(model, batch):
    amounts = {f"layers.{layer}": 2 for layer in range(12)}
    born = ALaST(layers=3, rate=0.5)(model, amounts, batch)
    draw = born_draw = ALaST(layers=3, rate=0.5).lesson(born).draw
    assert isinstance(draw, BudgetDraw)
    assert draw[:4] == (20, 3, (2.0,) * 12, 0.5)
    assert np.array_equal(draw.first, layer_changes(model, batch))
    lesson = LISA(layers=3).lesson(LISA(layers=3)(model, amounts))
    assert lesson.draw is not None
    drawn = [each.drawn(1, 40, model, batch) for each in (born_draw, lesson.draw)]
    assert drawn[0] == drawn[1]  # while nothing has changed it is LISA


def test_what_cannot_be_is_refused(model, batch):
    for rate in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="the rate of budgets must be at least 0 and finite; got"):
            ALaST(rate=rate)(model, {"layers.0": 2, "layers.1": 1}, batch)
    with pytest.raises(ValueError, match="alast draws 3 layers every 20 steps"):
        ALaST(layers=3)(model, {"layers.0": 2, "layers.1": 1}, batch)
    with pytest.raises(ValueError, match="all 30 tokens of the batch are padding"):
        layer_changes(model, Batch(*(jnp.zeros_like(array) for array in batch)))
