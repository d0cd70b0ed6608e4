"""Adapters in one unit at a time: each unit's is the fine-tune of that unit alone, and the card says what it did."""

import jax
import numpy as np
import pytest

import curvjax as cj
from curvjax.evaluation import perplexity
from curvjax.runs.card import layer_card
from curvjax.runs.measure import ScoreSettings, scored_units, unit_shapes
from curvjax.runs.placement import AdapterTrials, train_alone
from curvjax.surgery import add_lora, train_only
from curvjax.training import fit
from tests.runs.tiny import rows, texts

TRIALS = AdapterTrials(steps=6, rows=2, learning_rate=0.02)


@pytest.fixture(scope="module")
def subject(shallow):
    shapes = unit_shapes(shallow.model, scored_units(shallow.model, ScoreSettings()))
    return shallow, rows(shallow), shapes, rows(shallow, texts(16)[8:])


@pytest.fixture(scope="module")
def found(subject):
    loaded, text, shapes, fresh = subject
    return train_alone(loaded, text, shapes, TRIALS, rank=2, fresh=fresh)


def test_each_is_what_training_that_layer_of_a_whole_adapter_does(subject, found):
    loaded, text, shapes, fresh = subject
    ranks = {path: 2 for shape in shapes for path in shape.projections}
    whole = add_lora(loaded.model, ranks, key=jax.random.key(0))
    for shape in shapes:
        alone = train_only(whole, [shape.index])
        fitted = fit(alone, text.batch, steps=6, rows_per_step=2, seed=0, learning_rate=0.02)
        for measured, on in ((found[shape.name].decrease, text), (found[shape.name].fresh, fresh)):
            fall = perplexity(loaded.model, on.batch).nll - perplexity(fitted.model, on.batch).nll
            np.testing.assert_allclose(measured, fall, rtol=1e-3)
        assert found[shape.name].decrease > 0


def test_the_card_says_what_trained_adapters_did(subject, found):
    loaded, text, _, fresh = subject
    seen = []
    card = layer_card(
        loaded, text, rank=2, tried=TRIALS, fresh=fresh, progress=lambda what, done, of: seen.append((what, done, of))
    )
    assert [(unit.decrease, unit.fresh) for unit in card.units] == [found[unit.name] for unit in card.units]
    assert card.tried == "an adapter of rank 2 trained there for 6 steps"
    assert [each for each in seen if each[0] == "adapters"] == [("adapters", done, 2) for done in (0, 1, 2)]


def test_without_other_documents_there_is_the_decrease_alone(subject):
    loaded, text, *_ = subject
    card = cj.layer_card(loaded, text, rank=99, tried=AdapterTrials(steps=1, rows=99))
    assert all(unit.decrease is not None and unit.fresh is None for unit in card.units)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rows": 0}])
def test_no_training_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1 step of at least 1 row, got (0 and 4|16 and 0)\."):
        AdapterTrials(**wrong)


def test_rows_that_judge_are_of_other_documents_and_have_something_to_judge(subject):
    loaded, text, _, fresh = subject
    with pytest.raises(ValueError, match="documents are in calibration and fresh"):
        layer_card(loaded, text, tried=TRIALS, fresh=text)
    with pytest.raises(ValueError, match="fresh rows judge adapters that the card trains"):
        layer_card(loaded, text, fresh=fresh)
