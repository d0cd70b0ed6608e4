import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data import common_beginning
from curvjax.evaluation import EncodedPair, continuation_scores
from curvjax.evaluation.continuations import _widths
from curvjax.models import Decoder
from curvjax.surgery.growing.experts import add_experts
from curvjax.surgery.growing.lora import lora_parameters, with_lora_parameters
from tests.evaluation.plain import text_log_probabilities


def pairs(seed, *, examples=9):
    """Contexts after common examples, with several continuations each, of which some begin others."""
    generator = np.random.default_rng(seed)
    prompt, found = generator.integers(0, 128, examples).tolist(), []
    for _ in range(7):
        context = (*prompt, *generator.integers(0, 128, generator.integers(1, 9)).tolist())
        ending = tuple(generator.integers(0, 128, 6).tolist())
        found += [EncodedPair(context, ending[:size]) for size in (1, 3, 6)] + [EncodedPair(context, (*ending[:2], 5))]
    return [*found, EncodedPair((3,), (4, 5))]


def one_by_one(model, pairs):
    """Every pair in a row of its own."""
    for context, continuation in pairs:
        logp = text_log_probabilities(model, [*context, *continuation])[len(context) - 1 :]
        yield [logp[place, token] for place, token in enumerate(continuation)], logp[: len(continuation)].argmax(axis=1)


def windowed(config):
    """Windows, soft caps, a wide head norm: what looks at scores and places."""
    changed = {"window": 6, "windowed": (True, False), "attention_softcap": 2.0, "logit_softcap": 3.0, "qk_norm": True}
    return Decoder(dataclasses.replace(config, **changed), rngs=nnx.Rngs(2), dtype=jnp.float64)


def learned_positions_and_experts(config):
    changed = {"rope": None, "windowed": (), "window": None, "norm": "layer"}
    model = Decoder(dataclasses.replace(config, **changed), rngs=nnx.Rngs(2), dtype=jnp.float64)
    mixed = add_experts(model, {"layers.0": 3, "layers.1.mlp": 1}, rank=2, key=jax.random.key(1), top_k=1)
    return with_lora_parameters(mixed, {path: value + 0.1 for path, value in lora_parameters(mixed).items()})


@pytest.mark.parametrize(("variant", "seed", "length"), [(windowed, 1, 16), (learned_positions_and_experts, 2, 32)])
def test_scores_are_those_of_every_pair_in_a_row_of_its_own(model, variant, seed, length):
    subject, given = variant(model.config), pairs(seed)
    found = continuation_scores(subject, given, length=length, rows_at_once=2)
    wanted, likeliest = zip(*one_by_one(subject, given), strict=True)
    np.testing.assert_allclose(found.log_probability, [sum(one) for one in wanted], rtol=1e-9)
    assert found.greedy.tolist() == [
        list(pair.continuation) == best.tolist() for pair, best in zip(given, likeliest, strict=True)
    ]
    assert (
        found.tokens_read
        < 0.6 * found.tokens
        == 0.6 * sum(len(one.context) + len(one.continuation) - 1 for one in given)
    )


def test_scores_in_float32_are_as_close_as_float32_is(model):
    given = pairs(3)
    found = continuation_scores(model, given, length=32)
    np.testing.assert_allclose(found.log_probability, [sum(one) for one, _ in one_by_one(model, given)], rtol=1e-5)


def test_the_likeliest_continuation_is_greedy(model):
    ((_, best),) = one_by_one(model, [EncodedPair((1, 2, 3), (0,))])
    found = continuation_scores(
        model, [EncodedPair((1, 2, 3), (int(best[0]),)), EncodedPair((1, 2, 3), (int(best[0]) - 1,))]
    )
    assert found.greedy.tolist() == [True, False]


def test_rows_grow_with_what_all_texts_begin_with():
    alike = [(*range(300), number, *range(40)) for number in range(400, 600)]
    apart = [(number, *range(340)) for number in range(400, 600)]
    assert common_beginning(alike[0], alike[-1]) == 300
    assert set(_widths(alike, 128)) == {1152}  # 300 + sqrt(300 (300 + 1536)) = 1042, in rows of 128
    assert set(_widths(alike[:3], 128)) == {512}  # no more than all of it
    assert set(_widths(apart, 128)) == {512}
    assert set(_widths([(*range(3000), 1), (*range(3000), 2)], 128)) == {4096}


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(ValueError, match="each of 0 pairs needs"):
        continuation_scores(model, [])
    for pair in (EncodedPair((), (1,)), EncodedPair((1,), ())):
        with pytest.raises(ValueError, match="each of 2 pairs needs a token of context and one to predict"):
            continuation_scores(model, [EncodedPair((1,), (2,)), pair])
    with pytest.raises(ValueError, match="a context and its continuation of 65 tokens, but the model takes at most 64"):
        continuation_scores(model, [EncodedPair((1,), (2,)), EncodedPair((1,) * 60, (2,) * 6)])
