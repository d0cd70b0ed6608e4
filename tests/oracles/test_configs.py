"""What transformers makes of a config.json, of every family and in many variants: the same logits, or a refusal.

Three layers and few tokens; ours is run without compilation, which would cost a second for each variant.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from curvjax.models import config_from_hf, load_hf, save_hf
from curvjax.models.side_files import read_side_files
from tests.models.families import FAMILIES, weights, write_checkpoint
from tests.oracles.reference import logits

pytestmark = pytest.mark.oracle

TOKENS = np.random.RandomState(3).randint(0, 64, (1, 20)).astype(np.int32)
ABSENT = object()
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FULL, SLIDING = "full_attention", "sliding_attention"


def config(family, change):
    """A family's entries with three layers; `ABSENT` removes one."""
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 3}
    entries = FAMILIES[family] | layers | change
    return {key: value for key, value in entries.items() if value is not ABSENT}


def theirs(directory: Path, entries):
    """Logits of transformers, and the checkpoint that they come from, written to `directory`."""
    made = transformers.AutoConfig.for_model(**entries)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    write_checkpoint(directory, entries, weights("any", shapes))
    return logits(directory, TOKENS)


def ours(directory: Path):
    return np.asarray(load_hf(directory).model(TOKENS))


PLAIN_ROPE = {"rope_scaling": ABSENT, "rope_theta": ABSENT}
AGREED = {
    "llama": [
        PLAIN_ROPE,
        {"rope_theta": ABSENT, "rope_scaling": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_theta": ABSENT, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
        {"rope_theta": ABSENT, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16, "rope_theta": 300.0}},
        {"rope_theta": 900.0, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 300.0}},
        {"rope_theta": 900.0, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_theta": 900.0, "rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
        {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 3.0},
        },
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
        {"rope_scaling": LLAMA3, "rope_theta": 300.0},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8},
        {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
        {"num_key_value_heads": ABSENT},
        {"num_key_value_heads": None, "head_dim": None},
        {"head_dim": 12, "rms_norm_eps": ABSENT, "max_position_embeddings": ABSENT, "hidden_act": ABSENT},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": ABSENT},
        {"hidden_act": "gelu_fast"},
        {"hidden_act": "gelu_python"},
    ],
    "mistral": [
        {},
        {"sliding_window": None},
        {"sliding_window": ABSENT, "num_key_value_heads": 4},
        {"rope_theta": ABSENT, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
        {"head_dim": 12, "rms_norm_eps": ABSENT},
    ],
    "qwen2": [
        {"max_window_layers": 1},
        {"sliding_window": None},
        {"sliding_window": ABSENT, "max_window_layers": 0},
        {"use_sliding_window": ABSENT},
        {"use_sliding_window": False, "layer_types": [FULL] * 3},
        {"layer_types": [SLIDING, FULL, SLIDING]},
        {"head_dim": 12, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"tie_word_embeddings": ABSENT, "max_window_layers": ABSENT},
    ],
    "qwen3": [
        {"head_dim": ABSENT},
        {"attention_bias": True, "rms_norm_eps": ABSENT},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        {"rope_theta": ABSENT, "rope_scaling": {"rope_type": "default", "rope_theta": 300.0}},
    ],
    "gemma2": [
        {"sliding_window": ABSENT},
        {"query_pre_attn_scalar": ABSENT, "attn_logit_softcapping": ABSENT, "final_logit_softcapping": ABSENT},
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"layer_types": [FULL, FULL, SLIDING], "attention_bias": True},
        {"head_dim": ABSENT, "tie_word_embeddings": ABSENT, "num_key_value_heads": ABSENT},
        {"hidden_activation": "gelu", "tie_word_embeddings": False},
        {"rope_theta": ABSENT, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
    ],
    "gemma3": [
        PLAIN_ROPE | {"rope_local_base_freq": ABSENT, "sliding_window": ABSENT},
        {"sliding_window_pattern": 2},
        {"layer_types": [FULL, SLIDING, FULL]},
        {
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9.0},
        },
        {
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_scaling": None,
            "rope_parameters": {
                FULL: {"rope_type": "default"},
                SLIDING: {"rope_type": "linear", "factor": 2.0, "rope_theta": 70.0},
            },
        },
        {
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 80.0}, SLIDING: None},
        },
        {"final_logit_softcapping": 3.0, "use_bidirectional_attention": None},
        {"query_pre_attn_scalar": ABSENT, "head_dim": ABSENT, "num_key_value_heads": ABSENT},
    ],
    "gpt2": [
        {},
        {"n_inner": 48, "activation_function": "relu", "layer_norm_epsilon": ABSENT},
        {"n_embd": ABSENT, "hidden_size": 48, "n_positions": ABSENT, "max_position_embeddings": 24},
        {"tie_word_embeddings": False, "reorder_and_upcast_attn": True},
    ],
    "opt": [
        {},
        {"enable_bias": False, "activation_function": "gelu"},
        {"do_layer_norm_before": False, "tie_word_embeddings": ABSENT},
        {"_remove_final_layer_norm": True, "word_embed_proj_dim": None},
    ],
}
REFUSED = [
    ("qwen3", {"rope_theta": None}, "'rope_theta' must be a positive number; found null"),
    ("llama", {"rms_norm_eps": None}, "'rms_norm_eps' must be a positive number; found null"),
    ("llama", {"tie_word_embeddings": None}, "'tie_word_embeddings' must be true or false; found null"),
    ("llama", {"hidden_size": 32.0}, "'hidden_size' must be a positive integer"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' must be a positive number; found nothing"),
    ("mistral", {"num_key_value_heads": None}, "'num_key_value_heads' must be a positive integer; found null"),
    ("qwen2", {"use_sliding_window": False, "layer_types": [SLIDING] * 3}, "'sliding_window' must be in use"),
    ("gemma2", {"sliding_window": None}, "'sliding_window' must be in use"),
    ("gemma3", {"sliding_window": None}, "'sliding_window' must be in use"),
    ("gemma3", {"head_dim": None}, "'head_dim' must be a positive integer; found null"),
    ("gpt2", {"n_head": 5}, "'n_embd' must be a multiple of n_head"),
]
VARIANTS = [(family, change) for family, changes in AGREED.items() for change in changes]


@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_logits_equal_those_of_transformers(family, change, tmp_path):
    expected = theirs(tmp_path, config(family, change))
    np.testing.assert_allclose(ours(tmp_path), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_transformers_refuses_is_refused_by_name(family, change, message, tmp_path):
    entries = config(family, change)
    with pytest.raises((ValueError, TypeError, KeyError, StrictDataclassError)):
        theirs(tmp_path, entries)
    with pytest.raises(ValueError, match=message):
        config_from_hf(entries)


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_decoder_of_a_multimodal_gemma_is_read_and_leaves_as_one(tied, tmp_path):
    text = {"num_hidden_layers": 3, "sliding_window": 5, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    entries = {
        "model_type": "gemma3",
        "text_config": text | {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "vision_config": vision | {"image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 63,
        "eos_token_id": [1, 5],
        "tie_word_embeddings": tied,
    }
    expected = theirs(tmp_path, entries)
    with pytest.warns(UserWarning, match=r"only the text decoder is read; left out are \d+ tensors"):
        found = load_hf(tmp_path)
    assert (found.config.architecture, found.config.tied, found.config.eos_token_ids) == ("gemma3_text", tied, (1, 5))
    np.testing.assert_allclose(np.asarray(found.model(TOKENS)), expected, atol=2e-4, rtol=0)
    saved = tmp_path / "saved"
    save_hf(found.model, saved, beside=read_side_files(tmp_path, found.config))
    np.testing.assert_allclose(logits(saved, TOKENS), expected, atol=2e-4, rtol=0)
