import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from curvjax.interop import save_nemotron
from curvjax.models import Decoder
from curvjax.surgery.shrinking.structured import prune_channels, prune_heads
from tests.interop.coded_models import CONFIG, decoder

WIDTHS = {1: 200, 10: 256, 11: 1}  # of 256 channels


def narrower():
    """Layers 1 and 11 with fewer channels."""
    energies = {f"layers.{layer}.mlp.down_proj": jnp.ones(256) for layer in range(12)}
    removed = {f"layers.{layer}": 256 - width for layer, width in WIDTHS.items()}
    return prune_channels(decoder(), energies, removed).model


def test_narrow_mlps_are_filled_up_with_channels_that_do_nothing(tmp_path):
    model = narrower()
    assert save_nemotron(model, tmp_path / "out", round_to=256).modules == {}
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for layer, width in WIDTHS.items():
        mlp = model.layers[layer].mlp
        at = f"model.layers.{layer}.mlp"
        for name in ("gate_proj", "up_proj"):
            found = stored[f"{at}.{name}.weight"]
            assert found.shape == (256, 128)
            assert np.array_equal(found[:width].T, getattr(mlp, name).kernel[...])
            assert not found[width:].any()
        found = stored[f"{at}.down_proj.weight"]
        assert np.array_equal(found[:, :width].T, mlp.down_proj.kernel[...])
        assert found.shape == (128, 256)
        assert not found[:, width:].any()
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert entries["model_type"] == "nemotron-nas"
    assert {block["attention"]["n_heads_in_group"] for block in entries["block_configs"]} == {2}
    assert [block["ffn"]["ffn_mult"] for block in entries["block_configs"]] == [3.0] * 12  # 2 x 3 x 128 / 3 = 256


def test_widths_are_multiples_of_what_was_asked_for(tmp_path):
    save_nemotron(narrower(), tmp_path / "out", round_to=512)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [block["ffn"]["ffn_mult"] for block in entries["block_configs"]] == [6.0] * 12


def test_biases_of_channels_are_filled_up_too(tmp_path):
    model = of(intermediate_size=48, mlp_bias=True, qkv_bias=True, output_bias=True)
    model.layers[10].mlp.up_proj.bias[...] = jnp.arange(1, 49, dtype=jnp.float32)
    save_nemotron(model, tmp_path / "out", round_to=256)
    bias = load_file(tmp_path / "out" / "model.safetensors")["model.layers.10.mlp.up_proj.bias"]
    assert bias.tolist() == [*range(1, 49), *[0] * 208]
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["mlp_bias"], found["attention_bias"]) == (True, True)


def heads_gone():
    energies = {f"layers.{layer}.self_attn.o_proj": jnp.ones(128) for layer in range(12)}
    return prune_heads(decoder(), energies, {"layers.1": 1}).model


@pytest.mark.parametrize(
    ("make", "round_to", "match"),
    [
        (narrower, 0, r"layer 1 has 200 channels, which are no multiple of 256: .*--round-to 256"),
        (narrower, 100, "rounded to multiples of 256, not 100"),
        (heads_gone, 256, r"query heads of 128 channels together .* 32 each, and layers \[4, 2, 4"),
        (lambda: of(architecture="qwen2", qkv_bias=True), 256, "the model is qwen2, silu"),
        (lambda: of(window=4, windowed=(True,) * 12), 256, "the model is llama, silu, with windows"),
    ],
)
def test_what_nemotron_nas_has_no_place_for_is_refused(tmp_path, make, round_to, match):
    with pytest.raises(ValueError, match=match):
        save_nemotron(make(), tmp_path / "out", round_to=round_to)
    assert not (tmp_path / "out").exists()


def of(**settings):
    return Decoder(dataclasses.replace(CONFIG, **settings), rngs=nnx.Rngs(1))
