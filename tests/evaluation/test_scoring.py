import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from curvjax.data import Document, pack
from curvjax.evaluation import Targets, target_log_probabilities
from curvjax.models import Decoder
from curvjax.surgery.growing.lora import add_lora, lora_parameters, with_lora_parameters
from tests.compilations import compilations
from tests.data.encoders import Characters
from tests.evaluation.plain import batch_log_probabilities


@pytest.fixture(scope="module")
def batch():
    texts = ("the first of them", "second", "a third text", "and one that is cut in two")
    return pack([Document(text, text) for text in texts], Characters(), length=20)


def everywhere(batch):
    row, column = np.nonzero(np.asarray(batch.weights))
    return Targets(row, column, np.asarray(batch.targets)[row, column])


def adapted(model):
    rank = add_lora(model, {"layers.1.mlp.up_proj": 2, "layers.0.self_attn.q_proj": 3}, key=jax.random.key(1))
    return with_lora_parameters(rank, {path: value + 0.1 for path, value in lora_parameters(rank).items()})


@pytest.mark.parametrize("rows_at_once", [1, 2, 9])
@pytest.mark.parametrize("variant", [lambda model: model, adapted])
def test_scores_are_the_whole_models(model, batch, variant, rows_at_once):
    model, targets = variant(model), everywhere(batch)
    wanted = batch_log_probabilities(model, batch)[targets.row, targets.column, targets.token]
    scores = target_log_probabilities(model, batch, targets, rows_at_once=rows_at_once)
    np.testing.assert_allclose(scores.log_probability, wanted, rtol=2e-6)  # float32 logits


def test_one_position_may_predict_several_tokens_in_any_order(model, batch):
    every = Targets(np.repeat([1, 0], 128), np.repeat([3, 5], 128), np.tile(np.arange(128), 2))
    log_probability, greedy = target_log_probabilities(model, batch, every, rows_at_once=1)
    np.testing.assert_allclose(np.exp(log_probability).reshape(2, 128).sum(axis=1), 1, rtol=1e-6)
    assert np.array_equal(
        np.flatnonzero(greedy), [log_probability[:128].argmax(), 128 + log_probability[128:].argmax()]
    )


def test_progress_counts_rows_up_to_all(model, batch):
    seen = []
    target_log_probabilities(model, batch, everywhere(batch), rows_at_once=2, progress=lambda *rows: seen.append(rows))
    rows = len(batch.tokens)
    assert seen == [(min(first + 2, rows), rows) for first in range(0, rows, 2)]


def test_alike_layers_and_models_are_compiled_once(model, batch):
    deep, targets = dataclasses.replace(model.config, num_layers=5, windowed=()), everywhere(batch)
    models = [Decoder(deep, rngs=nnx.Rngs(seed)) for seed in (1, 2)]
    with compilations() as compiled:
        for one in models:
            target_log_probabilities(one, batch, targets, rows_at_once=2)
    assert compiled["_block"] <= 1


def test_documents_longer_than_the_model_takes_are_refused(model):
    long = pack([Document("long", "x" * 90)], Characters(), length=80)
    with pytest.raises(ValueError, match="a document of 80 tokens, but the model takes at most 64"):
        target_log_probabilities(model, long, everywhere(long), rows_at_once=2)


def test_rows_at_once_must_be_positive(model, batch):
    with pytest.raises(ValueError, match="at least one row; got size=0"):
        target_log_probabilities(model, batch, everywhere(batch), rows_at_once=0)
