"""How each family's config.json reads: from its entries to the switches of `DecoderConfig`.

Source: the configuration classes of transformers 5 and the modules that read them.
"""

from collections.abc import Callable
from typing import Any

from curvjax.models.config import Activation
from curvjax.models.hf_fields import Fields
from curvjax.models.rope import Llama3Bands, Rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}
_SCALINGS = ("default", "linear", "llama3")
_MOST_LAYERS = 10_000
_LEARNED_POSITIONS = {"norm": "layer", "rope": None, "gated_mlp": False}


def _rotary(fields: Fields) -> dict[str, Any]:
    """What all families with rotary positions share, but for the rotation itself."""
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    groups = fields.optional("num_key_value_heads", fields.count) or heads
    if heads % groups:
        fields.refuse("num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}")
    head_dim = fields.optional("head_dim", fields.count)
    if head_dim is None and width % heads:
        fields.refuse("hidden_size", width, f"a multiple of num_attention_heads, {heads}, where head_dim is absent")
    return {
        "hidden_size": width,
        "intermediate_size": fields.count("intermediate_size"),
        "num_layers": _layers(fields, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": groups,
        "head_dim": head_dim or width // heads,
        "max_positions": fields.count("max_position_embeddings"),
        "norm_eps": fields.number("rms_norm_eps"),
        "tied": fields.flag("tie_word_embeddings"),
    }


def _layers(fields: Fields, key: str) -> int:
    layers = fields.count(key)
    if layers > _MOST_LAYERS:  # a damaged count must not make a billion layers
        fields.refuse(key, layers, f"at most {_MOST_LAYERS}")
    return layers


def _rope(fields: Fields) -> Rope:
    """The rotation of v4's two entries or of v5's one; `rope_scaling` goes before `rope_parameters`."""
    old, new = fields.part("rope_scaling"), fields.part("rope_parameters")
    if old.entries:
        fields.ignore("rope_parameters")
        new.ignore(*new.entries)
    return _rotation(fields, old if old.entries else new, base=fields.number("rope_theta"))


def _rotation(fields: Fields, scaling: Fields, *, base: float) -> Rope:
    """One rotation. base: where `scaling` has none of its own, which goes before."""
    base = scaling.number("rope_theta", base)
    rotating = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if rotating != 1.0:
        fields.refuse("partial_rotary_factor", rotating, "1: rotating a part of the channels is not supported")
    key = "rope_type" if "rope_type" in scaling.entries else "type"
    scaling.ignore("type")
    beside = sorted(scaling.entries.keys() - {"rope_theta", "partial_rotary_factor"})
    if key not in scaling.entries and beside:
        scaling.refuse("rope_type", scaling.entries.get("rope_type", "nothing"), f"given beside {beside}")
    kind = scaling.choice(key, dict(zip(_SCALINGS, _SCALINGS, strict=True)), "default")
    if kind == "default":
        return Rope(base=base)
    if kind == "linear":
        scaling.ignore("original_max_position_embeddings")
        return Rope(base=base, factor=scaling.number("factor"))
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        scaling.refuse("low_freq_factor", low, f"below high_freq_factor, {high}")
    bands = Llama3Bands(low=low, high=high, original_positions=_original_positions(fields, scaling))
    return Rope(base=base, factor=scaling.number("factor"), bands=bands)


def _original_positions(fields: Fields, scaling: Fields) -> int:
    key = "original_max_position_embeddings"
    outside = fields.count(key, fields.count("max_position_embeddings"))
    found = scaling.count(key, outside)
    if key in fields.entries and found != outside:  # transformers takes one or the other, by version
        scaling.refuse(key, found, f"the same as outside, {outside}")
    return found


def _windows(fields: Fields, window: int | None, default: Callable[[int], bool]) -> dict[str, Any]:
    """Which layers are windowed: `layer_types`, or the family's rule of the layer index."""
    layers, types = _layers(fields, "num_hidden_layers"), fields.entries.get("layer_types")
    fields.ignore("layer_types")
    if types is None:
        windowed = tuple(default(layer) for layer in range(layers))
    elif isinstance(types, list | tuple) and len(types) == layers and set(map(str, types)) <= _LAYER_TYPES.keys():
        windowed = tuple(_LAYER_TYPES[kind] for kind in types)
    else:
        fields.refuse("layer_types", types, f"{layers} entries out of {sorted(_LAYER_TYPES)}")
    if not any(windowed):
        return {}
    if window is None:
        fields.refuse("sliding_window", fields.entries.get("sliding_window"), "in use: some layers are windowed")
    return {"window": window, "windowed": windowed}


def _llama(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias")
    return _rotary(fields) | {
        "rope": _rope(fields),
        "activation": fields.choice("hidden_act", _ACTIVATIONS),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": fields.flag("mlp_bias"),
    }


def _mistral(fields: Fields) -> dict[str, Any]:
    window = fields.optional("sliding_window", fields.count)
    windows = _windows(fields, window, lambda _: window is not None)
    if windows and not all(windows["windowed"]):
        fields.refuse("layer_types", fields.entries["layer_types"], "the same for all layers of this family")
    if window is not None and not windows and fields.entries.get("layer_types") is not None:
        fields.refuse("layer_types", fields.entries["layer_types"], "sliding_attention where sliding_window is given")
    activation = fields.choice("hidden_act", _ACTIVATIONS)
    fields.count("num_key_value_heads")  # may be absent, not null
    return _rotary(fields) | windows | {"rope": _rope(fields), "activation": activation}


def _qwen2(fields: Fields) -> dict[str, Any]:
    activation = fields.choice("hidden_act", _ACTIVATIONS)
    qwen = {"rope": _rope(fields), "activation": activation, "qkv_bias": True}
    return _rotary(fields) | _qwen_windows(fields) | qwen


def _qwen3(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias")
    fields.count("head_dim")  # may be absent, not null
    return _qwen2(fields) | {"qkv_bias": bias, "output_bias": bias, "qk_norm": True}


def _qwen_windows(fields: Fields) -> dict[str, Any]:
    used, window = fields.flag("use_sliding_window"), fields.optional("sliding_window", fields.count)
    window, first = window if used else None, fields.index("max_window_layers")
    return _windows(fields, window, lambda layer: window is not None and layer >= first)


def _gemma(fields: Fields) -> dict[str, Any]:
    if fields.optional("use_bidirectional_attention", fields.flag):
        fields.refuse("use_bidirectional_attention", True, "false: only causal attention is supported")
    bias, width = fields.flag("attention_bias"), fields.count("hidden_size")
    activation = fields.choice("hidden_activation", _ACTIVATIONS)
    for key in ("num_key_value_heads", "head_dim"):
        fields.count(key)  # may be absent, not null
    if fields.entries.get("hidden_act") == fields.entries.get("hidden_activation"):  # the older name, not read
        fields.ignore("hidden_act")
    return _rotary(fields) | {
        "activation": activation,
        "norm_offset": 1.0,
        "sandwich_norm": True,
        "embedding_scale": width**0.5,
        "query_scalar": fields.number("query_pre_attn_scalar"),
        "attention_softcap": fields.optional("attn_logit_softcapping", fields.number),
        "logit_softcap": fields.optional("final_logit_softcapping", fields.number),
        "qkv_bias": bias,
        "output_bias": bias,
    }


def _gemma2(fields: Fields) -> dict[str, Any]:
    window = fields.optional("sliding_window", fields.count)
    return _gemma(fields) | _windows(fields, window, lambda layer: layer % 2 == 0) | {"rope": _rope(fields)}


def _gemma3(fields: Fields) -> dict[str, Any]:
    period, window = fields.count("sliding_window_pattern"), fields.optional("sliding_window", fields.count)
    if fields.entries.get("layer_types") is None:  # transformers writes this one and does not read it
        fields.require("_sliding_window_pattern", period, "the sliding_window_pattern, or layer_types given")
    fields.ignore("_sliding_window_pattern")
    if fields.optional("attn_logit_softcapping", fields.number) is not None:
        found = fields.entries["attn_logit_softcapping"]
        fields.refuse("attn_logit_softcapping", found, "null: transformers' Gemma 3 reads it and applies no cap")
    windows = _windows(fields, window, lambda layer: (layer + 1) % period != 0)
    return _gemma(fields) | windows | _gemma3_ropes(fields) | {"qk_norm": True}


def _gemma3_ropes(fields: Fields) -> dict[str, Any]:
    """One rotation for each kind of layer; v4's `rope_scaling` is that of the layers that see all."""
    nested = fields.part("rope_parameters")
    for key in nested.entries.keys() - _LAYER_TYPES.keys():
        nested.refuse(key, nested.entries[key], f"absent: there is one object for each of {sorted(_LAYER_TYPES)}")
    full, local = nested.part("full_attention"), nested.part("sliding_attention")
    old = fields.part("rope_scaling", under=full.entries)
    if fields.entries.get("rope_scaling"):
        full.ignore(*full.entries)
        full = old
    else:
        old.ignore(*old.entries)
    return {
        "rope": _rotation(fields, full, base=fields.number("rope_theta")),
        "local_rope": _rotation(fields, local, base=fields.number("rope_local_base_freq")),
    }


def _gpt2(fields: Fields) -> dict[str, Any]:
    fields.require("scale_attn_weights", True, "scores without scale are not supported")
    fields.require("scale_attn_by_inverse_layer_idx", False, "scales by layer are not supported")
    fields.require("add_cross_attention", False, "cross-attention is not supported")
    width, heads = fields.count("n_embd"), fields.count("n_head")
    if width % heads:
        fields.refuse("n_embd", width, f"a multiple of n_head, {heads}")
    return _LEARNED_POSITIONS | {
        "hidden_size": width,
        "intermediate_size": fields.optional("n_inner", fields.count) or 4 * width,
        "num_layers": _layers(fields, "n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "max_positions": fields.count("n_positions"),
        "norm_eps": fields.number("layer_norm_epsilon"),
        "activation": fields.choice("activation_function", _ACTIVATIONS),
        "tied": fields.flag("tie_word_embeddings"),
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    }


def _opt(fields: Fields) -> dict[str, Any]:
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if width % heads:
        fields.refuse("hidden_size", width, f"a multiple of num_attention_heads, {heads}")
    projected = fields.optional("word_embed_proj_dim", fields.count) or width
    if projected != width:
        fields.refuse("word_embed_proj_dim", projected, f"hidden_size, {width}: projected embeddings are not supported")
    fields.require("layer_norm_elementwise_affine", True, "norms without parameters are not supported")
    bias, before = fields.flag("enable_bias"), fields.flag("do_layer_norm_before")
    return _LEARNED_POSITIONS | {
        "hidden_size": width,
        "intermediate_size": fields.count("ffn_dim"),
        "num_layers": _layers(fields, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "max_positions": fields.count("max_position_embeddings"),
        "position_offset": 2,
        "norm_eps": 1e-5,
        "pre_norm": before,
        "final_norm": not fields.flag("_remove_final_layer_norm") and before,
        "activation": fields.choice("activation_function", _ACTIVATIONS),
        "tied": fields.flag("tie_word_embeddings"),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
    }


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "opt": _opt,
}
