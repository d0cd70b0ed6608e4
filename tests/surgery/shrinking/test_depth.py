import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from curvjax.models import Decoder, load_hf, parameters, save_hf, weights_hash
from curvjax.surgery import drop_layers, renumbered

DROPPED = {1, 10, 4, 5, 6, 7, 8}  # leaves 0, 2, 3, 9, 11


def test_the_stream_goes_past_the_layers_dropped(model, batch, logits):
    x = model.embed(batch.tokens, batch.positions)
    for index in (0, 2, 3, 9, 11):
        x = model.layers[index](x, batch.positions, batch.segments)
    before = weights_hash(model)
    assert jnp.allclose(logits(drop_layers(model, DROPPED)), model.readout(x), rtol=0, atol=1e-5)
    assert weights_hash(model) == before
    assert len(model.layers) == model.config.num_layers == 12


def test_layers_keep_their_order_and_their_arrays(model):
    short = drop_layers(model, DROPPED)
    assert short.config == dataclasses.replace(model.config, num_layers=5)
    before, after = parameters(model), parameters(short)
    for new, old in enumerate((0, 2, 3, 9, 11)):
        assert after[f"layers.{new}.mlp.up_proj.kernel"] is before[f"layers.{old}.mlp.up_proj.kernel"]
    assert sum(path.endswith("up_proj.kernel") for path in after) == 5
    assert after["lm_head.kernel"] is before["lm_head.kernel"]


def test_dropping_nothing_changes_nothing(model):
    same = drop_layers(model, ())
    assert same.config == model.config
    assert weights_hash(same) == weights_hash(model)


def test_a_shorter_model_comes_back_from_a_hugging_face_directory(model, logits, tmp_path):
    plain = Decoder(dataclasses.replace(model.config, qkv_bias=False), rngs=nnx.Rngs(1))
    short = drop_layers(plain, DROPPED)
    save_hf(short, tmp_path / "short")
    again = load_hf(tmp_path / "short").model
    assert again.config == short.config
    assert jnp.array_equal(logits(again), logits(short))


def test_layers_left_alike_are_those_of_a_plain_model(model, tmp_path, logits):
    sizes = {"intermediate_sizes": (*[12] * 11, 5), "kv_heads": (*[1] * 11, 2), "num_kv_heads": 2}
    uneven = Decoder(dataclasses.replace(model.config, qkv_bias=False, **sizes), rngs=nnx.Rngs(1))
    short = drop_layers(uneven, [11])
    config = short.config
    assert (config.intermediate_size, config.intermediate_sizes, config.kv_heads) == (12, (), ())
    assert config.num_kv_heads == 1
    save_hf(short, tmp_path / "short")
    assert jnp.array_equal(logits(load_hf(tmp_path / "short").model), logits(short))


MIXED = {"window": 3, "windowed": (True, False) * 6}
UNEVEN = {"intermediate_sizes": (*[12] * 10, 5, 7), "kv_heads": (*[1] * 9, 2, 1, 1), "num_kv_heads": 1}


def test_what_a_config_says_for_each_layer_goes_along_with_the_layer(model):
    uneven = Decoder(dataclasses.replace(model.config, **MIXED, **UNEVEN), rngs=nnx.Rngs(1))
    config = drop_layers(uneven, DROPPED).config
    assert config.windowed == (True, True, False, False, False)
    assert config.intermediate_sizes == (12, 12, 12, 12, 7)
    assert config.kv_heads == (1, 1, 1, 2, 1)
    assert config.window == 3


def test_a_window_goes_with_the_last_layer_that_had_it(model):
    mixed = Decoder(dataclasses.replace(model.config, architecture="qwen2", **MIXED), rngs=nnx.Rngs(1))
    config = drop_layers(mixed, range(0, 12, 2)).config
    assert (config.window, config.windowed) == (None, ())


def test_names_follow_their_layers():
    assert renumbered("layers.2", [1, 10, 1]) == "layers.1"
    assert renumbered("layers.11.mlp.up_proj", {1, 10}) == "layers.9.mlp.up_proj"
    assert renumbered("layers.0.mlp", {1}) == "layers.0.mlp"
    assert renumbered("lm_head.kernel", {0, 1}) == "lm_head.kernel"


def test_layers_that_are_not_there_and_all_layers_are_refused(model):
    with pytest.raises(ValueError, match=r"layers \[-1, 12\] cannot be dropped: the model's are 0 to 11"):
        drop_layers(model, (12, 3, -1))
    with pytest.raises(ValueError, match="all 12 layers would be dropped; leave at least one"):
        drop_layers(model, range(12))
    with pytest.raises(ValueError, match=r"layers\.3\.mlp is in a layer that is dropped: \[1, 3\]"):
        renumbered("layers.3.mlp", {3, 1})
