"""The demonstration model itself: perplexity of real text, a known continuation, and every way of keeping it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data import demonstration_texts
from curvjax.models import load_model, parameters

WINDOW = 512
# Of boolq, by this package when the first 4096 tokens had 20.3704, as `tests/oracles/test_smollm2.py` holds.
FIRST_WINDOW = 30.6320

pytestmark = pytest.mark.demo_model


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def negative_log_likelihood(smollm2):
    graph, state = nnx.split(smollm2.model)

    @jax.jit
    def of_windows(state, tokens):
        logits = nnx.merge(graph, state)(tokens[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]

    return lambda tokens: of_windows(state, tokens)


def perplexity(smollm2, negative_log_likelihood, text, tokens):
    joined = "\n\n".join(document.text for document in demonstration_texts(text)[:120])
    ids = jnp.asarray(smollm2.tokenizer.encode(joined)[:tokens], jnp.int32).reshape(-1, 1, WINDOW)
    return float(np.exp(np.mean([negative_log_likelihood(window) for window in ids])))


def test_model_is_the_published_one(smollm2):
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert sum(value.size for value in parameters(smollm2.model).values()) == 134_515_008
    assert {str(value.dtype) for value in parameters(smollm2.model).values()} == {"float32"}
    assert config.tied
    assert (smollm2.tokenizer.vocab_size, smollm2.tokenizer.eos_id, config.eos_token_ids) == (49152, 2, (2,))


def test_greedy_continuation_of_the_capital_of_france(smollm2):
    prompt = jnp.asarray([smollm2.tokenizer.encode("The capital of France is")], jnp.int32)
    assert smollm2.tokenizer.decode([smollm2.model(prompt)[0, -1].argmax()]) == " Paris"


def test_perplexity_of_a_window_is_the_recorded_one(smollm2, negative_log_likelihood):
    assert perplexity(smollm2, negative_log_likelihood, "boolq", WINDOW) == pytest.approx(FIRST_WINDOW, rel=1e-5)
