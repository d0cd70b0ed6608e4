import dataclasses

import pytest

from curvjax.models import DecoderConfig, Rope, config_from_hf, config_to_hf
from tests.models.families import FAMILIES

LLAMA = FAMILIES["llama"]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"model_type": "mamba"}, r"'model_type' must be one of \['gemma2', .*'qwen3'\]; found 'mamba'"),
        ("llama", {"model_type": None}, "'model_type' must be one of .*; found null"),
        ("llama", {"model_type": ["llama"]}, "'model_type' must be one of"),
        ("llama", {"hidden_size": "32"}, "'hidden_size' must be a positive integer; found '32'"),
        ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' must be a positive integer; found 0"),
        ("llama", {"num_hidden_layers": None}, "'num_hidden_layers' must be a positive integer; found null"),
        ("llama", {"vocab_size": True}, "'vocab_size' must be a positive integer; found true"),
        ("llama", {"num_key_value_heads": 3}, "'num_key_value_heads' must be a divisor of num_attention_heads, 4"),
        ("llama", {"hidden_size": 30}, "'hidden_size' must be a multiple of num_attention_heads, 4, where head_dim"),
        ("llama", {"head_dim": 7}, "config.json: head_dim must be even"),
        ("llama", {"rms_norm_eps": -1.0}, "'rms_norm_eps' must be a positive number; found -1.0"),
        ("llama", {"hidden_act": "mish"}, "'hidden_act' must be one of .*; found 'mish'"),
        ("llama", {"tie_word_embeddings": "no"}, "'tie_word_embeddings' must be true or false; found 'no'"),
        ("llama", {"bos_token_id": -1}, "'bos_token_id' must be an integer from 0; found -1"),
        ("llama", {"eos_token_id": ["</s>"]}, "'eos_token_id' must be a token number or a list of them"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: 'rope_type' .* found 'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling: 'type' must be one of .* found 'dynamic'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' must be a positive number; found nothing"),
        ("llama", {"rope_scaling": 4}, "'rope_scaling' must be an object; found 4"),
        (
            "llama",
            {"rope_scaling": LLAMA["rope_scaling"] | {"low_freq_factor": 5.0}},
            "must be below high_freq_factor, 4.0; found 5.0",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' must be 1: .*; found 0.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "'quantization_config' must be absent: load unquantized"),
        ("gemma3", {"layer_types": ["full_attention"]}, "'layer_types' must be 12 entries out of"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 12}, "'layer_types' must be 12 entries out of"),
        ("gemma3", {"sliding_window": None}, "'sliding_window' must be in use: some layers are windowed; found null"),
        ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' must be false"),
        ("llama", {"is_causal": False}, "'is_causal' must be true: only causal"),
        ("llama", {"per_layer_config": {"0": {}}}, "'per_layer_config' must be absent"),
        ("llama", {"rope_theta": None}, "'rope_theta' must be a positive number; found null"),
        ("llama", {"num_hidden_layers": 10**9}, "'num_hidden_layers' must be at most 10000"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, r"rope_scaling: 'rope_type' must be given beside \['factor'\]"),
        ("llama", {"original_max_position_embeddings": 8}, "must be the same as outside, 8; found 16"),
        ("mistral", {"num_key_value_heads": None}, "'num_key_value_heads' must be a positive integer; found null"),
        ("mistral", {"layer_types": ["full_attention"] * 12}, "'layer_types' must be sliding_attention where"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"] * 6}, "must be the same for all layers"),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 12}, "must be in use"),
        (
            "gemma3",
            {"rope_parameters": {"rope_theta": 3.0}},
            "'rope_theta' must be absent: there is one object for each",
        ),
        ("gemma3", {"attn_logit_softcapping": 3.0}, "'attn_logit_softcapping' must be null"),
        ("gemma3", {"_sliding_window_pattern": 3}, "'_sliding_window_pattern' must be 6"),
        ("gpt2", {"hidden_size": 48}, "'hidden_size' must be the same as 'n_embd', 32; found 48"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' must be false"),
        ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' must be false"),
        ("gpt2", {"n_head": 5}, "'n_embd' must be a multiple of n_head, 5; found 32"),
        ("opt", {"num_attention_heads": 5}, "'hidden_size' must be a multiple of num_attention_heads, 5; found 32"),
        ("opt", {"word_embed_proj_dim": 16}, "'word_embed_proj_dim' must be hidden_size, 32: projected"),
        ("opt", {"layer_norm_elementwise_affine": False}, "'layer_norm_elementwise_affine' must be true"),
    ],
)
def test_what_is_wrong_or_unsupported_is_refused_by_name(family, change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(FAMILIES[family] | change)


def test_the_source_is_named():
    with pytest.raises(ValueError, match=r"^somewhere/config.json: 'vocab_size'"):
        config_from_hf(LLAMA | {"vocab_size": 0}, source="somewhere/config.json")


def test_what_a_family_leaves_out_has_its_own_default():
    def without(family, *keys):
        return config_from_hf({key: value for key, value in FAMILIES[family].items() if key not in keys})

    assert not without("llama", "tie_word_embeddings").tied
    assert without("gemma2", "tie_word_embeddings").tied
    assert without("llama", "num_key_value_heads").num_kv_heads == 4
    assert without("mistral", "sliding_window").window == 4096
    assert without("gemma2", "attn_logit_softcapping").attention_softcap == 50.0
    assert without("gemma3", "rope_theta").rope == Rope(base=1e6, factor=4.0)
    assert without("gpt2", "tie_word_embeddings").intermediate_size == 128


def test_sizes_that_are_absent_are_those_of_transformers():
    found = config_from_hf({"model_type": "gemma3", "text_config": {"hidden_size": 64, "num_hidden_layers": 12}})
    assert (found.architecture, found.hidden_size, found.num_heads, found.head_dim) == ("gemma3_text", 64, 8, 256)
    assert (found.windowed.count(False), found.window, found.tied) == (2, 4096, True)
    assert config_from_hf({"model_type": "gpt2"}).hidden_size == 768


def test_the_base_of_a_rotation_is_read_wherever_it_lies():
    plain = {key: value for key, value in LLAMA.items() if key not in {"rope_scaling", "rope_theta"}}
    inside = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}
    for entries in (
        {"rope_scaling": inside},
        {"rope_parameters": inside},
        {"rope_theta": 900.0, "rope_scaling": inside},
        {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": inside, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
    ):
        assert config_from_hf(plain | entries).rope == Rope(base=300.0, factor=2.0), entries


def test_each_kind_of_layer_of_gemma_3_has_a_rotation_of_its_own_and_it_survives_a_round_trip():
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 70.0},
        "sliding_attention": {"rope_type": "linear", "factor": 2.0},
    }
    found = config_from_hf(FAMILIES["gemma3"] | {"rope_scaling": None, "rope_parameters": ropes})
    assert (found.rope, found.local_rope) == (Rope(base=70.0, factor=8.0), Rope(base=500.0, factor=2.0))
    assert config_from_hf(config_to_hf(found)) == found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_magic": True}, "use_magic"),
        ({"sliding_window": 7, "logit_scale": 2.0}, "sliding_window, logit_scale"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}},
            "rope_scaling.attention_factor",
        ),
        ({f"k{number}": 1 for number in range(8)}, "k0, k1, k2, k3, k4 and 3 more"),
    ],
)
def test_entries_that_nothing_reads_are_named(change, named):
    with pytest.warns(UserWarning, match=rf"config.json: not read, because nothing here knows them: {named}\."):
        config_from_hf(LLAMA | change)


def test_null_switches_a_feature_off():
    assert config_from_hf(FAMILIES["mistral"] | {"sliding_window": None}).windowed == ()
    assert config_from_hf(FAMILIES["gemma2"] | {"attn_logit_softcapping": None}).attention_softcap is None
    assert config_from_hf(FAMILIES["qwen2"] | {"use_sliding_window": False}).window is None


def test_several_end_tokens_survive():
    config = config_from_hf(LLAMA | {"eos_token_id": [2, 5]})
    assert config.eos_token_ids == (2, 5)
    assert config_to_hf(config)["eos_token_id"] == [2, 5]


def test_what_a_family_cannot_express_is_refused_on_writing():
    config = config_from_hf(LLAMA)
    with pytest.raises(ValueError, match=r"config.json of 'llama' cannot express \{'qk_norm': True\}"):
        config_to_hf(dataclasses.replace(config, qk_norm=True))
    with pytest.raises(ValueError, match="architecture 'mamba' is unknown; allowed are"):
        config_to_hf(dataclasses.replace(config, architecture="mamba"))


def test_a_plain_config_is_a_llama():
    config = DecoderConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4
    )
    assert config_to_hf(config)["architectures"] == ["LlamaForCausalLM"]
