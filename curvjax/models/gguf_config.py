"""The configuration in a GGUF file's metadata, by way of config.json's entries, so that both are checked alike.

Every entry under the architecture's name is read, known to be harmless, or refused; entries that llama.cpp does not
know either are named in a warning.

Source: the keys of llama.cpp's gguf package, and how its llama-model.cpp reads them.
"""

import inspect
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gguf.constants import Keys

from curvjax.models.config import DecoderConfig
from curvjax.models.gguf_file import GGUFFile
from curvjax.models.hf_config import config_from_hf
from curvjax.models.hf_names import first_few
from curvjax.models.rope import Llama3Bands, Rope

ROPE_FACTORS = "rope_freqs.weight"
DECI = "deci"
"""Llama with sizes of their own for each layer."""

_FAMILIES = {
    "llama": "llama",  # Mistral too
    DECI: "llama",  # or Qwen 2, by its biases
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}
ARCHITECTURES = {family: name for name, family in _FAMILIES.items() if name != DECI} | {"mistral": "llama"}
"""GGUF's name of each family."""
_ROTARY = {  # metadata key under the architecture's name -> config.json's
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_OPTIONAL: dict[str, dict[str, str]] = {
    "llama": _WINDOW,
    "gemma2": _WINDOW | _SOFTCAPS,
    "gemma3": _WINDOW | _SOFTCAPS | {"rope.freq_base_swa": "rope_local_base_freq"},
}
_GPT2 = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # the two whose queries are not scaled by head_dim
_LAYER = re.compile(r"blk\.(\d+)\.")
_FRACTIONS = re.compile(r"epsilon|freq_base|softcapping|factor|scale")  # the numbers that are no counts
_ROTARY_NUMBERS = (
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
)
_SCALES = ("rope.scaling.factor", "rope.scale_linear")  # the second is the name of 2023
_QUERY_BIAS, _OUTPUT_BIAS = "blk.0.attn_q.bias", "blk.0.attn_output.bias"
_PATTERN = "attention.sliding_window_pattern"
_HARMLESS = {
    "vocab_size",  # the tokens are counted, and the table compared with them
    "name",
    "tensor_data_layout",
    "pooling_type",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
_NEUTRAL = {  # harmless as long as they say what is so anyway; 0 stands for absent in llama.cpp
    "expert_count": {0},
    "expert_used_count": {0},
    "expert_shared_count": {0},
    "nextn_predict_layers": {0},
    "leading_dense_block_count": {0},
    "use_parallel_residual": {False},
    "attention.causal": {True},
    "attention.clamp_kqv": {0.0},
    "attention.max_alibi_bias": {0.0},
    "attention.shared_kv_layers": {0},
    "logit_scale": {0.0, 1.0},
    "residual_scale": {0.0, 1.0},
    "embedding_scale": {0.0, 1.0},
    "attention.scale": {0.0},
    "rope.scaling.attn_factor": {1.0},
    "rope.scaling.yarn_ext_factor": {0.0},
}


def config_from_gguf(file: GGUFFile) -> DecoderConfig:
    """The configuration that a GGUF file describes.

    Args:
      file: of `read_gguf`.

    Returns:
      The configuration that the same model's config.json would give.

    Raises:
      ValueError: if the architecture is not supported, or an entry is missing, does not fit the tensors or asks for
        what is not supported.
    """
    metadata, architecture = file.metadata, file.metadata.get("general.architecture")
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        msg = f"{file.path}: general.type is {kind!r:.100}; only whole models are read, not adapters or projectors."
        raise ValueError(msg)
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        msg = f"{file.path}: general.architecture {architecture!r} is not supported; known: {sorted(_FAMILIES)}."
        raise ValueError(msg)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        found = "an empty one" if isinstance(tokens, list) else type(tokens).__name__
        msg = f"{file.path}: metadata need the list tokenizer.ggml.tokens; found {found}."
        raise ValueError(msg)
    settings: dict[str, Any] = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    sizes = _layer_sizes(file, settings) if architecture == DECI else {}
    required = _GPT2 if architecture == "gpt2" else _ROTARY
    optional = _OPTIONAL.get(architecture, {})
    numbers = () if architecture == "gpt2" else (*_ROTARY_NUMBERS, *_SCALES)
    _check_numbers(file, architecture, settings, [*required, *(k for k in (*optional, *numbers) if k in settings)])
    _check_layers(file, architecture, settings["block_count"])
    _check_rest(file, architecture, settings, {*required, *optional, *numbers})
    entries = {
        "vocab_size": len(tokens),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_renamed(settings, required | optional),
        **({} if architecture == "gpt2" else _rotary_entries(file, architecture, settings)),
    }
    family = "mistral" if architecture == "llama" and "sliding_window" in entries else _FAMILIES[architecture]
    if architecture == DECI and {_QUERY_BIAS, _OUTPUT_BIAS} & file.tensors.keys() == {_QUERY_BIAS}:
        family = "qwen2"
        del entries["attention_bias"], entries["mlp_bias"]
    return replace(config_from_hf({"model_type": family, **entries}, source=f"{file.path}: metadata"), **sizes)


def _layer_sizes(file: GGUFFile, settings: dict[str, Any]) -> dict[str, Any]:
    """Each layer's sizes as fields of `DecoderConfig`; in `settings` the largest take their place."""
    count, found = settings.get("block_count"), {}
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        value = settings.get(key)
        whole = isinstance(value, np.ndarray) and value.dtype.kind in "iu"
        if not whole or value.size != count or value.min() < 1:
            msg = (
                f"{file.path}: deci.{key} must be one number above 0 for each of the {count} layers, since layers "
                f"without attention or MLP are not supported; found {value!r:.100}."
            )
            raise ValueError(msg)
        found[key], settings[key] = value, int(value.max())
    heads, keys, inner = found.values()
    if np.unique(heads * keys[0] - keys * heads[0]).tolist() != [0]:
        msg = f"{file.path}: every layer needs as many query heads for a key head; found {heads} for {keys}."
        raise ValueError(msg)
    return {"kv_heads": tuple(keys.tolist()), "intermediate_sizes": tuple(inner.tolist())}


def _check_numbers(file: GGUFFile, architecture: str, settings: Mapping[str, Any], keys: list[str]) -> None:
    def fits(key: str, value: Any) -> bool:
        allowed = (int, float) if _FRACTIONS.search(key) else (int,)
        return isinstance(value, allowed) and not isinstance(value, bool) and 0 < _decimal(value) < math.inf

    wrong = [
        f"{architecture}.{key} (found {settings.get(key)!r:.100})" for key in keys if not fits(key, settings.get(key))
    ]
    if wrong:
        msg = f"{file.path}: metadata need one positive number each, whole if it counts, for {first_few(wrong)}."
        raise ValueError(msg)


def _check_layers(file: GGUFFile, architecture: str, count: int) -> None:
    """Before anything is built: a damaged count must not make a billion layers."""
    layers = 1 + max((int(match[1]) for name in file.tensors if (match := _LAYER.match(name))), default=-1)
    if count != layers:
        msg = f"{file.path}: {architecture}.block_count is {count}, but the tensors are those of {layers} layers."
        raise ValueError(msg)


def _check_rest(file: GGUFFile, architecture: str, settings: Mapping[str, Any], read: set[str]) -> None:
    """Refuse what would change the computation and is not read; warn of what nobody knows."""
    if architecture != "gpt2":
        read |= {"rope.scaling.type", *((_PATTERN,) if architecture.startswith("gemma") else ())}
    neutral = _NEUTRAL
    if architecture == "gpt2":
        heads, width = settings["attention.head_count"], settings["embedding_length"]
        sizes = {key: {width // heads} for key in ("attention.key_length", "attention.value_length")}
        neutral = neutral | sizes | {"attention.head_count_kv": {heads}}
    known = _known_to_llama_cpp()
    strange = []
    for key, value in settings.items():
        if key in read or key in _HARMLESS:
            continue
        if key in neutral and np.ndim(value) == 0 and value in neutral[key]:
            continue
        if key in neutral or key in known:
            allowed = f"absent or {' or '.join(map(str, sorted(neutral[key])))}" if key in neutral else "absent"
            msg = (
                f"{file.path}: {architecture}.{key} must be {allowed}, since it is not supported; found {value!r:.100}."
            )
            raise ValueError(msg)
        strange.append(f"{architecture}.{key}")
    if strange:
        warnings.warn(f"{file.path}: not read, because nothing here knows them: {first_few(strange)}.", stacklevel=3)


def _known_to_llama_cpp(group: type = Keys) -> set[str]:
    """All keys under an architecture's name."""
    values = [value for name, value in vars(group).items() if not name.startswith("_")]
    found = {value.removeprefix("{arch}.") for value in values if isinstance(value, str) and "{arch}." in value}
    return found.union(*(_known_to_llama_cpp(value) for value in values if inspect.isclass(value)))


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: _decimal(settings[theirs]) for theirs, ours in names.items() if theirs in settings}


def _decimal(value: Any) -> Any:
    """A float32 as the number that was meant: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _rotary_entries(file: GGUFFile, architecture: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What GGUF leaves out has defaults of its own, not those of each family's config.json."""
    heads, width = settings["attention.head_count"], settings["embedding_length"]
    head_dim = settings.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, head_dim) != head_dim:
            msg = f"{file.path}: {architecture}.{key} must be the size of a head, {head_dim}; found {settings[key]}."
            raise ValueError(msg)
    base = _decimal(settings.get("rope.freq_base", 10000.0))
    all_layers = settings["block_count"] == _GEMMA_27B_LAYERS.get(architecture)
    biases = {"attention_bias": _OUTPUT_BIAS in file.tensors}
    entries: dict[str, Any] = {
        "num_key_value_heads": settings.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_theta": base,
        "rope_scaling": _scaling(file, architecture, settings, base),
    }
    if architecture.startswith("gemma"):
        entries |= {"query_pre_attn_scalar": width / heads if all_layers else head_dim}
        entries |= _pattern(file, architecture, settings)
    if architecture in {"llama", DECI} and "attention.sliding_window" not in settings:
        entries |= biases | {"mlp_bias": "blk.0.ffn_up.bias" in file.tensors}
    return entries | (biases if architecture in {"qwen3", "gemma2", "gemma3"} else {})


def _pattern(file: GGUFFile, architecture: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers are windowed, where the file says so: every n-th is not, or one truth value for each layer."""
    if architecture == "gemma3" and "attention.sliding_window" not in settings:
        msg = f"{file.path}: metadata need gemma3.attention.sliding_window, the tokens that a windowed layer sees."
        raise ValueError(msg)
    found = settings.get(_PATTERN)
    if found is None:
        return {}
    if isinstance(found, np.ndarray) and found.dtype == bool:
        return {"layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in found.tolist()]}
    if architecture == "gemma3" and isinstance(found, int) and not isinstance(found, bool):
        return {"sliding_window_pattern": found}
    msg = f"{file.path}: {architecture}.{_PATTERN} must be one truth value for each layer; found {found!r:.100}."
    raise ValueError(msg)


def _scaling(file: GGUFFile, architecture: str, settings: Mapping[str, Any], base: float) -> dict[str, Any] | None:
    """As llama.cpp: positions are divided by the factor unless the type is "none", which need not be given."""
    kind = settings.get("rope.scaling.type", "linear")
    if not isinstance(kind, str) or kind not in {"none", "linear"}:
        msg = f"{file.path}: {architecture}.rope.scaling.type must be 'none' or 'linear'; found {kind!r:.100}."
        raise ValueError(msg)
    factors = [_decimal(settings[key]) for key in _SCALES if key in settings]  # the newer name goes first
    factor = factors[0] if factors and kind == "linear" else 1.0
    if ROPE_FACTORS not in file.tensors:
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if factor != 1.0:
        msg = f"{file.path}: has both {ROPE_FACTORS} and a scaling of positions by {factor}; only one is supported."
        raise ValueError(msg)
    return _llama3_scaling(file, base)


def _llama3_scaling(file: GGUFFile, base: float) -> dict[str, Any]:
    """Llama 3's scaling, of which the file holds only the resulting divisors; the released models' bands are tried."""
    divisors = file.tensor(ROPE_FACTORS).reshape(-1)
    bands = Llama3Bands(low=1.0, high=4.0, original_positions=8192)
    factor = float(divisors.max())
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        msg = f"{file.path}: {ROPE_FACTORS} must be positive numbers; found {divisors.min()} to {factor}."
        raise ValueError(msg)
    expected = Rope(base=base).frequencies(2 * divisors.size)
    expected /= Rope(base=base, factor=factor, bands=bands).frequencies(2 * divisors.size)
    if not np.allclose(divisors, expected, rtol=1e-3):
        msg = f"{file.path}: {ROPE_FACTORS} are not the divisors of Llama 3's scaling by {factor} with {bands}."
        raise ValueError(msg)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": bands.low,
        "high_freq_factor": bands.high,
        "original_max_position_embeddings": bands.original_positions,
    }
