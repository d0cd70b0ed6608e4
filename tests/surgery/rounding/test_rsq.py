import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from curvjax.data.batch import Batch
from curvjax.models import Decoder, all_arrays, parameters
from curvjax.models.attention import visible_BTS
from curvjax.storage import Format
from curvjax.surgery import (
    GPTQ,
    RSQ,
    Nearest,
    attention_paid,
    dense_equivalent,
    gptq,
    load_rebuilt,
    quantization_plan,
    quantize_gptq,
    rotated,
    save_rebuilt,
)
from curvjax.surgery.prices import require_prices
from curvjax.surgery.rounding.rsq import Concentration
from curvjax.surgery.second_moment import moments_of
from curvjax.surgery.sequential import Stream, block_statistics, residual_streams
from curvjax.testing import tiny_model
from tests.surgery.conftest import CONFIG

TIED = dataclasses.replace(CONFIG, num_layers=3, tied=True)


@pytest.fixture(scope="module")
def small():
    return Decoder(TIED, rngs=nnx.Rngs(4), dtype=jnp.float32)


def arrays_equal(model, other):
    pairs = zip(all_arrays(model).values(), all_arrays(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def probabilities(block, stream):
    """Softmax weights `[B, H, T, S]`, written out."""
    q, k, _ = block.self_attn.heads(block.input_layernorm(stream.x), stream.positions)
    k = np.repeat(np.asarray(k, float), q.shape[2] // k.shape[2], axis=2)
    scores = np.einsum("bthd,bshd->bhts", np.asarray(q, float), k) * block.self_attn.scale
    scores = np.where(np.asarray(visible_BTS(stream.segments, None))[:, None], scores, -np.inf)
    found = np.exp(scores - scores.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


@pytest.mark.parametrize("least", [0.005, 0.5, 1.0])
def test_tokens_weigh_by_what_is_paid_to_them(small, batch, least):
    (stream,) = residual_streams(small, batch, 5)
    real = np.asarray(batch.segments) > 0
    paid = np.einsum("bhts,bt->bs", probabilities(small.layers[1], stream), real) * real
    assert np.allclose(attention_paid(small.layers[1], stream) * real, paid, atol=1e-5)
    assert np.allclose(paid.sum(1), 2 * real.sum(1))  # two heads, and all that real tokens pay goes to real tokens
    expected = np.ones(paid.shape)
    for row, counts in enumerate(real):
        inside = paid[row, counts]
        weights = least + (1 - least) * (inside - inside.min()) / (inside.max() - inside.min())
        expected[row, counts] = np.sqrt(weights / weights.mean())
    assert np.allclose(Concentration(least)(small.layers[1], stream), expected, atol=1e-4)


def test_where_all_receive_alike_all_weigh_alike(small, batch):
    (stream,) = residual_streams(small, batch, 5)
    alone = stream._replace(segments=jnp.arange(1, 7)[None, :] * (batch.segments > 0))  # each token sees itself
    assert jnp.allclose(Concentration(0.005)(small.layers[0], alone), 1.0)
    padding = Stream(stream.x, stream.positions, jnp.zeros_like(stream.segments))
    assert jnp.array_equal(Concentration(0.005)(small.layers[0], padding), jnp.ones((5, 6)))


def test_moments_are_those_of_weighed_inputs(small, batch):
    streams, weigh = residual_streams(small, batch, 3), Concentration(0.1)
    found = block_statistics(small.layers[0], streams, moments_of, weigh)[0]["mlp.down_proj"]
    expected = jnp.zeros((12, 12))
    for stream in streams:
        inputs = block_statistics(small.layers[0], [stream], lambda inputs: inputs)[0]["mlp.down_proj"]
        weight = weigh(small.layers[0], stream).reshape(-1, 1)
        expected += (weight**2 * inputs).T @ inputs
    assert jnp.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_without_its_parts_it_is_gptq(small, batch):
    widths = {"layers.1": 3, "layers.2": 4}
    bare = RSQ(group=4, rows=5, rotate=False, weighted=False)(small, widths, batch)
    same = GPTQ(group=4, rows=5)(small, widths, batch)
    assert arrays_equal(bare.model, same.model)
    even = RSQ(group=4, rows=5, rotate=False, least=1.0)(small, widths, batch)
    assert arrays_equal(even.model, same.model)


def test_each_part_changes_codes_and_leaves_other_layers(small, batch):
    method = RSQ(group=4, rows=5, rotate=False)
    weighted = method(small, {"layers.1": 3}, batch)
    plan = quantization_plan(small, {"layers.1": 3}, Format(4, symmetric=False, scales="float16"))
    expected = quantize_gptq(small, batch, plan, rows_at_once=5, sweep=method.sweep, weigh=Concentration(0.005)).model
    assert arrays_equal(weighted.model, expected)
    plain = all_arrays(GPTQ(group=4, rows=5)(small, {"layers.1": 3}, batch).model)
    changed = {path for path, array in all_arrays(weighted.model).items() if not np.array_equal(array, plain[path])}
    assert changed
    assert all(path.startswith("layers.1.") for path in changed)


def test_rotated_layers_left_at_full_width_are_the_rotated_model(small, batch, logits):
    method = RSQ(group=4, rows=5, seed=2)
    found = method(small, {"layers.1": 16}, batch)
    assert jnp.allclose(logits(found.model), logits(small), atol=1e-4)
    turned = parameters(rotated(small, seed=2))
    assert all(np.array_equal(array, turned[path]) for path, array in parameters(found.model).items())
    kept = method(small, {"layers.1": 3}, batch)
    assert all(np.array_equal(array, turned[path]) for path, array in parameters(kept.model).items())
    assert [unit.realised for unit in kept.units] == [3]
    assert "the head is no longer tied to the embedding: 136 weights, 544 bytes more" in kept.remarks
    untied = Decoder(dataclasses.replace(TIED, tied=False), rngs=nnx.Rngs(4), dtype=jnp.float32)
    assert len(method(untied, {"layers.1": 3}, batch).remarks) == 1


def test_it_errs_less_than_nearest_in_the_basis_it_is_in(small, batch, logits):
    widths = dict.fromkeys(("layers.0", "layers.1", "layers.2"), 3)
    exact = logits(small)
    turned = rotated(small, seed=0)
    errors = [
        float(jnp.mean(jnp.square(logits(dense_equivalent(found.model)) - exact)))
        for found in (RSQ(group=4, rows=5, act_order=False)(small, widths, batch), Nearest(group=4)(turned, widths))
    ]
    assert errors[0] < errors[1]


def test_codes_and_rotated_arrays_come_back_from_a_checkpoint(tmp_path):
    loaded = tiny_model(layers=2)
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, loaded.model.config.vocab_size, jnp.int32)
    ones = jnp.ones(tokens.shape, jnp.int32)
    rows = Batch(tokens, tokens, ones.astype(float), jnp.cumsum(ones, axis=1) - 1, ones)
    found = RSQ(group=8, rows=2)(loaded.model, {"layers.1": 3}, rows)
    save_rebuilt(found.model, tmp_path / "model", tokenizer=loaded.tokenizer)
    again = load_rebuilt(tmp_path / "model").model
    assert jnp.array_equal(again(tokens), found.model(tokens))
    assert not jnp.array_equal(again(tokens), loaded.model(tokens))


def test_single_kernels_are_priced_without_rotation_only(small, batch):
    kernel, moment = parameters(small)["layers.0.mlp.up_proj.kernel"], moments_of(jnp.eye(8) + 0.1)
    method = RSQ(group=4, rotate=False)
    plain = method.edited(kernel, 3, moment)
    assert jnp.array_equal(plain, gptq(kernel, moment, 3, method.form, method.sweep).kernel)
    assert jnp.array_equal(RSQ(rotate=False).edited(kernel, 16, moment), kernel)
    assert not RSQ(rotate=False).unpriced
    with pytest.raises(ValueError, match="a rotated model is not priced one kernel at a time: descend with rotate=Fal"):
        require_prices(RSQ(group=4), "bits")


@pytest.mark.parametrize("least", [0.0, -1.0, 1.5])
def test_a_range_without_weight_is_refused(least):
    with pytest.raises(ValueError, match=f"least must be above 0 and at most 1, .* got {least}"):
        RSQ(least=least)


@pytest.mark.parametrize("kind", [RSQ, GPTQ])
@pytest.mark.parametrize("damping", [0.0, -0.1, np.nan])
def test_a_damping_that_is_none_is_refused_before_a_model_is_rotated_or_run(kind, damping):
    with pytest.raises(ValueError, match=f"damping must be positive, a share of the mean diagonal; got {damping}"):
        kind(damping=damping)
