"""config.json of each supported family, in the styles of transformers v4 and v5, to and from `DecoderConfig`."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from curvjax.models.config import DecoderConfig
from curvjax.models.hf_defaults import DEFAULTS, GPT2_ALIASES, HARMLESS, OF_IMAGES
from curvjax.models.hf_families import FAMILIES
from curvjax.models.hf_fields import Fields
from curvjax.models.hf_names import first_few
from curvjax.models.rope import Rope

MULTIMODAL = "gemma3"  # whose text decoder is a gemma3_text

_ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
_CLASS_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
}
_NEVER = {
    "quantization_config": "load unquantized weights",
    "compression_config": "load unquantized weights",
    "quantization": "load unquantized weights",
    "per_layer_config": "layers with settings of their own are not supported",
    "pruned_heads": "save the model with its heads taken out",
}


def config_from_hf(entries: Mapping[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """The decoder that a config.json describes; every value that shapes the computation is checked.

    What a file leaves out means what it means in transformers. Entries that neither this nor the list of harmless ones
    knows are named in a warning. Of a multimodal Gemma 3, the text decoder is read.

    Args:
      entries: the parsed file, as written by transformers v4 (`rope_theta`, `rope_scaling`) or v5
        (`rope_parameters`).
      source: what errors call it.

    Returns:
      The configuration.

    Raises:
      ValueError: if the architecture is unknown, an entry is wrong, or asks for what is not supported.
    """
    outside = Fields(entries, source=source)
    outside.choice("model_type", dict.fromkeys([*FAMILIES, MULTIMODAL]))
    fields = _text_fields(outside) if entries["model_type"] == MULTIMODAL else outside
    family = "gemma3_text" if fields is not outside else entries["model_type"]
    fields.defaults = DEFAULTS[family]
    if family == "gpt2":
        fields.rename(GPT2_ALIASES)
    _refuse_for_all(outside)
    _refuse_for_all(fields)
    settings: dict[str, Any] = FAMILIES[family](fields) | {
        "vocab_size": fields.count("vocab_size"),
        "bos_token_id": fields.optional("bos_token_id", fields.index),
        "eos_token_ids": _end_tokens(fields),
    }
    unread = fields.unread(HARMLESS)
    if fields is not outside:
        unread += outside.unread(HARMLESS | OF_IMAGES)
    if unread:
        warnings.warn(f"{source}: not read, because nothing here knows them: {first_few(unread)}.", stacklevel=2)
    try:
        return DecoderConfig(architecture=family, **settings)
    except ValueError as error:
        msg = f"{source}: {error}"
        raise ValueError(msg) from error


def _refuse_for_all(fields: Fields) -> None:
    """What changes the computation of any family."""
    for key, why in _NEVER.items():
        fields.ignore(key)
        if fields.entries.get(key):
            fields.refuse(key, fields.entries[key], f"absent: {why}")
    fields.require("is_causal", True, "only causal attention is supported")


def _text_fields(outside: Fields) -> Fields:
    """Entries of the text decoder of a multimodal model; those that ties and end tokens are at lie outside."""
    text = outside.part("text_config")
    text.require("model_type", "gemma3_text", "no other text decoder belongs to gemma3")
    shared = {key: outside.entries[key] for key in ("tie_word_embeddings", "eos_token_id") if key in outside.entries}
    outside.ignore(*shared, "text_config")
    inner = {**text.entries, **shared}
    text.ignore(*text.entries)
    return Fields(inner, source=text.source)


def _end_tokens(fields: Fields) -> tuple[int, ...]:
    found = fields.optional("eos_token_id", lambda key: fields.entries.get(key, fields.defaults.get(key)))
    ids = tuple(found) if isinstance(found, list | tuple) else (() if found is None else (found,))
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            fields.refuse("eos_token_id", found, "a token number or a list of them")
    return ids


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The entries of a config.json in v4 style, which transformers v4 and v5 both read.

    Args:
      config: the configuration; its `architecture` decides the family.

    Returns:
      Entries that `config_from_hf` turns back into `config`.

    Raises:
      ValueError: if the family has no way to say what `config` says; the fields in question are named.
    """
    if config.architecture not in FAMILIES:
        msg = f"architecture {config.architecture!r} is unknown; allowed are {sorted(FAMILIES)}."
        raise ValueError(msg)
    eos = config.eos_token_ids
    entries = {
        "model_type": config.architecture,
        "architectures": [_CLASS_NAMES[config.architecture]],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if len(eos) > 1 else (eos[0] if eos else None),
        **_WRITERS[config.architecture](config),
    }
    read = config_from_hf(entries)
    lost = {key: value for key, value in vars(config).items() if getattr(read, key) != value}
    if lost:
        msg = f"config.json of {config.architecture!r} cannot express {lost}; choose another architecture."
        raise ValueError(msg)
    return entries


def _rotary_entries(config: DecoderConfig) -> dict[str, Any]:
    entries = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        **_rope_entries(config.rope or Rope()),
    }
    if config.window is not None:
        types = ["sliding_attention" if windowed else "full_attention" for windowed in config.windowed]
        entries |= {"sliding_window": config.window, "layer_types": types}
    return entries


def _llama_entries(config: DecoderConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}
    return _rotary_entries(config) | {"hidden_act": _ACTIVATION_NAMES[config.activation]} | biases


def _rope_entries(rope: Rope) -> dict[str, Any]:
    scaling = _scaling(rope)
    return {"rope_theta": rope.base, "rope_scaling": None if scaling["rope_type"] == "default" else scaling}


def _scaling(rope: Rope) -> dict[str, Any]:
    if rope.bands is not None:
        return {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.bands.low,
            "high_freq_factor": rope.bands.high,
            "original_max_position_embeddings": rope.bands.original_positions,
        }
    return {"rope_type": "linear", "factor": rope.factor} if rope.factor != 1.0 else {"rope_type": "default"}


def _mistral_entries(config: DecoderConfig) -> dict[str, Any]:
    activation = _ACTIVATION_NAMES[config.activation]
    entries = _rotary_entries(config) | {"sliding_window": config.window, "hidden_act": activation}
    entries.pop("layer_types", None)  # Mistral has none: all its layers are windowed, or no layer is
    return entries


def _qwen2_entries(config: DecoderConfig) -> dict[str, Any]:
    activation = _ACTIVATION_NAMES[config.activation]
    return _rotary_entries(config) | {"use_sliding_window": config.window is not None, "hidden_act": activation}


def _qwen3_entries(config: DecoderConfig) -> dict[str, Any]:
    return _qwen2_entries(config) | {"attention_bias": config.output_bias}


def _gemma_entries(config: DecoderConfig) -> dict[str, Any]:
    types = ["sliding_attention" if config.layer_window(i) else "full_attention" for i in range(config.num_layers)]
    scalar = config.query_scalar
    return _rotary_entries(config) | {
        "attention_bias": config.output_bias,
        "hidden_activation": _ACTIVATION_NAMES[config.activation],
        "query_pre_attn_scalar": scalar if scalar is None or scalar % 1 else int(scalar),  # v5 demands an integer
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "layer_types": types,
    }


def _gemma3_entries(config: DecoderConfig) -> dict[str, Any]:
    rope = config.rope or Rope()
    local = config.local_rope or rope
    entries = _gemma_entries(config) | {"rope_local_base_freq": local.base}
    if local == Rope(base=local.base):
        return entries
    # v4 has no word for it
    ropes = {"full_attention": rope, "sliding_attention": local}
    nested = {kind: {"rope_theta": rope.base} | _scaling(rope) for kind, rope in ropes.items()}
    return entries | {"rope_parameters": nested, "rope_scaling": None}


def _gpt2_entries(config: DecoderConfig) -> dict[str, Any]:
    return {
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else config.activation,
    }


def _opt_entries(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "word_embed_proj_dim": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "do_layer_norm_before": config.pre_norm,
        "_remove_final_layer_norm": config.pre_norm and not config.final_norm,
        "activation_function": _ACTIVATION_NAMES[config.activation],
        "enable_bias": config.mlp_bias,
    }


_WRITERS: dict[str, Callable[[DecoderConfig], dict[str, Any]]] = {
    "llama": _llama_entries,
    "mistral": _mistral_entries,
    "qwen2": _qwen2_entries,
    "qwen3": _qwen3_entries,
    "gemma2": _gemma_entries,
    "gemma3_text": _gemma3_entries,
    "gpt2": _gpt2_entries,
    "opt": _opt_entries,
}
