import dataclasses

import pytest

from curvjax.models.hf_names import first_few, harmless, plain_name, stored_layer, stored_module
from tests.interop.problems import CONFIG


@pytest.mark.parametrize(
    ("architecture", "path", "name"),
    [
        ("llama", "layers.10.mlp.up_proj", "model.layers.10.mlp.up_proj"),
        ("gemma3_text", "layers.1.self_attn.o_proj", "model.layers.1.self_attn.o_proj"),
        ("opt", "layers.3.mlp.down_proj", "model.decoder.layers.3.fc2"),
        ("opt", "layers.3.self_attn.o_proj", "model.decoder.layers.3.self_attn.out_proj"),
        ("llama", "lm_head", "lm_head"),
    ],
)
def test_projections_have_the_names_of_transformers(architecture, path, name):
    assert stored_module(dataclasses.replace(CONFIG, architecture=architecture), path) == name


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("llama", "model.layers.10"), ("opt", "model.decoder.layers.10"), ("gpt2", "transformer.h.10")],
)
def test_layers_have_the_names_of_transformers(architecture, name):
    assert stored_layer(dataclasses.replace(CONFIG, architecture=architecture), 10) == name


@pytest.mark.parametrize("path", ["layers.3.self_attn.q_proj", "layers.3.mlp.up_proj"])
def test_kernels_that_are_fused_or_not_transposed_are_refused(path):
    with pytest.raises(ValueError, match=rf"gpt2 has no linear module {path}"):
        stored_module(dataclasses.replace(CONFIG, architecture="gpt2"), path)


@pytest.mark.parametrize(
    "name",
    [
        "_orig_mod.model.layers.3.mlp.up_proj.weight",
        "module._orig_mod.model.layers.3.mlp.up_proj.weight",
        "model.layers.3._checkpoint_wrapped_module.mlp.up_proj.weight",
        "base_model.model.model.layers.3.mlp.up_proj.weight",
        "model.language_model.layers.3.mlp.up_proj.weight",
        "language_model.model.layers.3.mlp.up_proj.weight",
    ],
)
def test_wrappers_leave_no_trace_in_a_name(name):
    assert plain_name(name) == "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "h.1.attn.c_attn.bias", "modules.weight"])
def test_a_plain_name_stays_as_it_is(name):
    assert plain_name(name) == name


def test_constants_are_harmless_and_biases_are_not():
    constants = ("h.0.attn.bias", "attn.masked_bias", "model.rotary_emb.inv_freq", "layers.1.rotary_emb.cos_cached")
    assert all(map(harmless, (*constants, "model.embeddings.position_ids", "model.rotary_emb_local.inv_freq")))
    assert not any(map(harmless, ("h.0.attn.c_attn.bias", "self_attn.bias", "q_proj.bias", "model.norm.weight")))


def test_long_lists_are_cut_after_five():
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few("abcdefg") == "a, b, c, d, e and 2 more"
