from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.evaluation import perplexity
from curvjax.models import parameters, with_parameters
from curvjax.models.layered import layered_model
from curvjax.runs import objective as objectives
from curvjax.runs.activations import streams_before
from curvjax.runs.objective import objective, turns
from curvjax.runs.text import TextSettings, packed_text
from tests.runs.tiny import texts

PATH = "layers.1.mlp.up_proj.kernel"


@pytest.fixture(scope="module")
def batch(shallow):
    return packed_text(texts(8), shallow, TextSettings(tokens=64, length=16), source="texts").batch


@pytest.fixture(scope="module")
def other(shallow):
    values = parameters(shallow.model)
    return with_parameters(shallow.model, values | {PATH: 0.5 * values[PATH]})


def predictions(model, batch):
    logits = model(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), np.float64)


def by_definition(dense, model, batch):
    p, q = predictions(dense, batch), predictions(model, batch)
    weights = np.asarray(batch.weights, np.float64)
    return (weights * (np.exp(p) * (p - q)).sum(axis=-1)).sum() / weights.sum()


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_divergence_is_that_of_whole_distributions(shallow, other, batch, rows):
    found = objective(shallow.model, batch, kind="divergence", rows=rows)
    assert found(other) == pytest.approx(by_definition(shallow.model, other, batch), rel=1e-4)
    assert found(other) > 1e-4
    assert found(shallow.model) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_that_of_the_perplexity(shallow, other, batch):
    found = objective(shallow.model, batch, kind="loss", rows=3)
    assert found(other) == pytest.approx(perplexity(other, batch).nll, rel=1e-6)


@pytest.mark.parametrize("kind", ["divergence", "loss"])
def test_gradients_are_slopes(shallow, other, batch, kind):
    found = objective(shallow.model, batch, kind=kind, rows=2)
    values, gradient = parameters(other), found.gradients(other, [PATH])[PATH]
    along = gradient / jnp.linalg.norm(gradient)
    up, down = (found(with_parameters(other, values | {PATH: values[PATH] + eps * along})) for eps in (0.05, -0.05))
    assert (up - down) / 0.1 == pytest.approx(float(jnp.linalg.norm(gradient)), rel=0.02)


def test_the_dense_model_has_no_slope(shallow, batch):
    dense = objective(shallow.model, batch, kind="divergence", rows=2).gradients(shallow.model, [PATH])[PATH]
    loss = objective(shallow.model, batch, kind="loss", rows=2).gradients(shallow.model, [PATH])[PATH]
    assert float(jnp.linalg.norm(dense)) < 1e-4 * float(jnp.linalg.norm(loss))


def test_some_rows_have_their_own_mean(shallow, other, batch):
    found = objective(shallow.model, batch, kind="divergence", rows=2)
    halves = [found.of(np.asarray(rows)) for rows in ([0, 2], [1, 3])]
    whole = sum(half.tokens * half(other) for half in halves) / found.tokens
    assert found(other) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(16, [[0], [1], [2], [3], [0]]), (40, [[0, 1, 2], [3, 0, 1], [2, 3, 0]]), (0, [[0, 1, 2, 3]] * 2)],
)
def test_portions_take_turns(shallow, batch, tokens, rows):
    found = objective(shallow.model, batch, kind="divergence", rows=2)
    for portion, chosen in zip(islice(turns(found, tokens), len(rows)), rows, strict=True):
        np.testing.assert_array_equal(portion.whole.batch.tokens, np.asarray(batch.tokens)[chosen])
        np.testing.assert_array_equal(portion.whole.stream, np.asarray(found.whole.stream)[chosen])


@pytest.mark.parametrize("kind", ["divergence", "loss"])
@pytest.mark.parametrize("kept", [0, 2**28])
def test_from_the_last_streams_it_is_the_same_with_predictions_kept_or_made_anew(
    shallow, other, batch, kind, kept, monkeypatch
):
    monkeypatch.setattr(objectives, "KEPT", kept)
    found = objective(shallow.model, batch, kind=kind, rows=3)
    layered = layered_model(other)
    *_, (_, streams) = streams_before(layered, [part.batch for part in found.parts])
    ended = found.ends(layered)
    assert ended(streams) == pytest.approx(found(other), rel=1e-5)
    assert ended([-x for x in streams]) != pytest.approx(found(other), rel=1e-3)
