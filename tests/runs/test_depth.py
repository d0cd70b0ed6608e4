"""Layers chosen, against every model without as many."""

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.models.layered import layered_model
from curvjax.runs.activations import streams_before
from curvjax.runs.depth import DEPTH_PLANS, Angular, Greedy, LeastScore, Segment, Segments, depth_plan, mean_angle
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.objective import objective
from curvjax.runs.progress import silent
from curvjax.surgery import drop_layers
from curvjax.testing import tiny_model
from tests.runs.tiny import rows, texts

PLANS = [Greedy(), Segment(), Segments(), Angular(), LeastScore()]


@pytest.fixture(scope="module")
def four():
    return tiny_model(layers=4)


@pytest.fixture(scope="module")
def text(four):
    """Two rows, of several short documents each."""
    return rows(four, texts(12, words=5))


@pytest.fixture(scope="module")
def losses(four, text):
    """Of the models without each set of one to three layers."""
    return {
        gone: perplexity(drop_layers(four.model, gone), text.batch).nll
        for size in (0, 1, 2, 3)
        for gone in combinations(range(4), size)
    }


def test_each_layer_dropped_is_the_best_of_all_that_are_left_by_the_whole_models_loss(four, text, losses):
    told = []
    found = Greedy(rows=1)(four.model, text, 2, progress=lambda *done: told.append(done))
    gone = []
    for step in found.steps:
        (layer,) = step.layers
        values = {k: losses[tuple(sorted([*gone, k]))] for k in range(4) if k not in gone}
        assert layer == min(values, key=values.__getitem__)
        assert step.value == pytest.approx(values[layer], rel=1e-5)
        gone.append(layer)
    assert found.base == pytest.approx(losses[()], rel=1e-5)
    assert found.measure == "the loss without them"
    assert told == [("layers dropped", 1, 2), ("layers dropped", 2, 2)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_segment_is_the_best_of_all_of_its_length(count, four, text, losses):
    (step,) = Segment(rows=1)(four.model, text, count).steps
    tried = {gone: loss for gone, loss in losses.items() if gone and gone[-1] - gone[0] + 1 == len(gone) == count}
    assert step.layers == min(tried, key=tried.__getitem__)
    assert step.value == pytest.approx(tried[step.layers], rel=1e-5)


def test_segments_of_free_lengths_rise_least_a_layer(four, text, losses):
    found = Segments(rows=1)(four.model, text, 3)
    left, base, rest = [0, 1, 2, 3], losses[()], 3
    for step in found.steps:
        rises = {}
        for first in range(len(left)):
            for length in range(1, min(rest, len(left) - first) + 1):
                segment = tuple(left[first : first + length])
                gone = tuple(sorted({0, 1, 2, 3} - set(left) | set(segment)))
                rises[segment] = (losses[gone] - base) / length
        assert step.layers == min(rises, key=rises.__getitem__)
        base += rises[step.layers] * len(step.layers)
        left, rest = [layer for layer in left if layer not in step.layers], rest - len(step.layers)
    assert rest == 0
    assert sorted(found.layers) == sorted({0, 1, 2, 3} - set(left))


def test_by_divergence_they_go_by_the_whole_models_predictions(four, text):
    found_by = objective(four.model, text.batch, kind="divergence", rows=1)
    found = Greedy(objective="divergence", rows=1)(four.model, text, 2)
    first = [found_by(drop_layers(four.model, [k])) for k in range(4)]
    assert found.layers[0] == int(np.argmin(first))
    assert found.steps[1].value == pytest.approx(found_by(drop_layers(four.model, found.layers)), rel=1e-4)
    assert found.base == pytest.approx(0, abs=1e-6)
    assert found.measure == "the divergence without them"


def angles(four, batch, count, chosen):
    """By the arccosine, in float64."""
    streams = [np.asarray(x[0], np.float64) for _, x in streams_before(layered_model(four.model), [batch])]
    kept = [x[chosen] / np.linalg.norm(x[chosen], axis=1, keepdims=True) for x in streams]
    return [
        np.mean(np.arccos(np.clip(np.sum(x * y, axis=1), -1, 1))) / np.pi
        for x, y in zip(kept[:-count], kept[count:], strict=True)
    ]


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_the_angle_is_that_of_the_streams_at_the_tokens_meant(count, every_token, four, text):
    segments = np.asarray(text.batch.segments)
    ends = np.zeros_like(segments, bool)
    for row, numbers in enumerate(segments):
        for number in set(numbers.tolist()) - {0}:
            ends[row, np.flatnonzero(numbers == number)[-1]] = True
    assert 2 < ends.sum() < (segments > 0).sum()
    expected = angles(four, text.batch, count, segments > 0 if every_token else ends)
    told = []
    found = Angular(every_token=every_token, rows=1)(four.model, text, count, progress=lambda *done: told.append(done))
    first = int(np.argmin(expected))
    assert found.layers == tuple(range(first, first + count))
    assert found.steps[0].value == pytest.approx(expected[first], rel=1e-4)
    assert found.base is None
    assert told[-1] == ("layers passed", 4, 4)


def test_small_angles_keep_their_digits_and_zero_rows_are_at_right_angles():
    x = jnp.asarray([[1.0, 0.0], [3.0, 4.0]], jnp.float32)
    turned = jnp.asarray([[1.0, 1e-5], [3.0, 4.0]], jnp.float32)
    assert mean_angle(x, turned) == pytest.approx(1e-5 / np.pi / 2, rel=1e-3)  # arccos would have 0
    assert mean_angle(x, -2 * x) == pytest.approx(1.0)
    assert mean_angle(x, jnp.zeros_like(x)) == pytest.approx(0.5)


def test_layers_of_least_score_go(four, text):
    streams = [np.asarray(x[0], np.float64) for _, x in streams_before(layered_model(four.model), [text.batch])]
    inside = np.asarray(text.batch.segments) > 0
    kept = [x[inside] / np.linalg.norm(x[inside], axis=1, keepdims=True) for x in streams]
    influence = [1 - np.mean(np.sum(x * y, axis=1)) for x, y in pairwise(kept)]
    found = LeastScore()(four.model, text, 2)
    assert list(found.layers) == np.argsort(influence)[:2].tolist()
    assert [step.value for step in found.steps] == pytest.approx(sorted(influence)[:2], rel=1e-4)
    assert found.measure == "their shortgpt"


def test_any_score_of_one_text_chooses_layers(four, text):
    by_divergence = LeastScore(score="skip-divergence", settings=ScoreSettings(rows=1))(four.model, text, 1)
    assert by_divergence.layers == Greedy(objective="divergence")(four.model, text, 1).layers
    with pytest.raises(ValueError, match="unknown scores: zeta"):
        LeastScore(score="zeta")(four.model, text, 1)
    with pytest.raises(ValueError, match=r"'layerif' reads grams of a second text, and a depth plan has one"):
        LeastScore(score="layerif")(four.model, text, 1)


def test_the_plans_are_entered_under_their_names():
    assert {type(plan) for plan in PLANS} == set(DEPTH_PLANS.values())
    assert [DEPTH_PLANS[plan.name]() for plan in PLANS] == PLANS

    @dataclass(frozen=True)
    class Other:
        name: ClassVar[str] = "greedy"

        def __call__(self, model, text, count, *, progress=silent):
            raise AssertionError

    with pytest.raises(ValueError, match=r"there is a depth plan 'greedy' already, of curvjax\.runs\.depth"):
        depth_plan(Other)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_numbers_of_layers_out_of_range_are_refused(plan, four, text):
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"of 4 layers from 1 to 3 can go; got {count}"):
            plan(four.model, text, count)


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Greedy(), r"without any of 4 layers the loss is not finite, after \[\] were dropped"),
        (Segment(objective="divergence"), r"without any of 4 layers the divergence is not finite"),
        (Angular(), "no angle over 1 layers is finite"),
        (LeastScore(), "'shortgpt' reads 'stream', which is not finite"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_what_is_not_finite_is_refused(plan, match, four, text):
    values = parameters(four.model)
    broken = with_parameters(four.model, values | {"embed_tokens.embedding": values["embed_tokens.embedding"] * np.nan})
    with pytest.raises(ValueError, match=match):
        plan(broken, text, 1)
