import dataclasses

import pytest

from curvjax.models.hf_names import stored_layer, stored_module
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
