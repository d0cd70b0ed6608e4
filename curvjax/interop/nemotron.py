"""Decoders whose MLPs differ in width, as `nemotron-nas`: config.json with `block_configs`, an entry for each layer.

Widths there are multiples of 256. Others are filled up with channels of zeros, which change nothing. Query heads are as
many in every layer, and all together as wide as the residual stream, so that models without some heads have no place.

Source: `mlx_lm/models/nemotron-nas.py` of mlx-lm 0.32, after NVIDIA's DeciLM: a width is 2 ffn_mult hidden / 3, rounded
down, then up to a multiple of 256.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from curvjax.interop.coded import CodedExport
from curvjax.models import (
    Decoder,
    DecoderConfig,
    SideFiles,
    Tokenizer,
    abstract_decoder,
    config_to_hf,
    parameters,
    require_plain,
    save_hf,
    with_parameters,
)

_MULTIPLE = 256
_FAMILIES = ("llama", "mistral")


def save_nemotron(
    model: Decoder,
    directory: str | Path,
    *,
    round_to: int = 0,
    tokenizer: Tokenizer | None = None,
    beside: SideFiles | None = None,
) -> CodedExport:
    """Write `model` for `mlx_lm.load(directory)`, layers with widths of their own.

    Args:
      model: a plain decoder.
      directory: where to; as for `save_hf`.
      round_to: widths are filled up with zeros to a multiple of this, itself one of 256; 0: they have to be such.
      tokenizer: as for `save_hf`.
      beside: as for `save_hf`.

    Returns:
      No codes.

    Raises:
      FileExistsError: as `save_hf`.
      ValueError: if the family has no place there, heads are gone, or a width is no multiple; or as `save_hf`.
    """
    require_plain(model)
    _require_place(model.config)
    widths = [model.config.layer_intermediate_size(layer) for layer in range(model.config.num_layers)]
    filled = _filled(model, [_rounded(layer, width, round_to) for layer, width in enumerate(widths)])
    alike = replace(model.config, intermediate_size=max(filled.config.intermediate_sizes), intermediate_sizes=())
    entries = config_to_hf(alike) | _entries(filled.config)
    save_hf(filled, directory, tokenizer=tokenizer, beside=beside, entries=entries, described=alike)
    return CodedExport({}, 0)


def _require_place(config: DecoderConfig) -> None:
    if config.architecture not in _FAMILIES or any(config.windowed) or config.activation != "silu":
        windows = ", with windows" if any(config.windowed) else ""
        msg = (
            f"nemotron-nas is of {' and '.join(_FAMILIES)} with silu, without windows; the model is "
            f"{config.architecture}, {config.activation}{windows}."
        )
        raise ValueError(msg)
    if config.kv_heads or config.num_heads * config.head_dim != config.hidden_size:
        each = config.num_heads // config.num_kv_heads
        heads = [each * config.layer_kv_heads(layer) for layer in range(config.num_layers)]
        msg = (
            f"nemotron-nas has query heads of {config.hidden_size} channels together in every layer; the model's have "
            f"{config.head_dim} each, and layers {heads} of them: prune channels only, or export gguf."
        )
        raise ValueError(msg)


def _rounded(layer: int, width: int, round_to: int) -> int:
    if round_to % _MULTIPLE or round_to < 0:
        msg = f"widths are rounded to multiples of {_MULTIPLE}, not {round_to}."
        raise ValueError(msg)
    if width % _MULTIPLE and not round_to:
        msg = (
            f"layer {layer} has {width} channels, which are no multiple of {_MULTIPLE}: fill up with zeros "
            f"(--round-to {_MULTIPLE})."
        )
        raise ValueError(msg)
    return width if not round_to else -(-width // round_to) * round_to


def _filled(model: Decoder, widths: list[int]) -> Decoder:
    """The model with channels of zeros after its own; layers have their widths one by one, equal or not."""
    values = parameters(model)
    for layer, width in enumerate(widths):
        more = width - model.config.layer_intermediate_size(layer)
        for path in [path for path in values if path.startswith(f"layers.{layer}.mlp.")]:
            inputs = path.endswith("down_proj.kernel")
            if inputs or "down_proj" not in path:
                values[path] = _with_zeros(values[path], more, 0 if inputs else -1)
    config = replace(model.config, intermediate_sizes=tuple(widths))
    return with_parameters(abstract_decoder(config), values)


def _with_zeros(value: jax.Array, more: int, axis: int) -> jax.Array:
    pads = [(0, 0)] * value.ndim
    pads[axis] = (0, more)
    return jnp.pad(value, pads)


def _entries(config: DecoderConfig) -> dict[str, Any]:
    attention = {"no_op": False, "replace_with_linear": False}
    attention["n_heads_in_group"] = config.num_heads // config.num_kv_heads
    ffn = {"no_op": False, "replace_with_linear": False}
    blocks = [
        {"attention": attention, "ffn": ffn | {"ffn_mult": 1.5 * width / config.hidden_size}}
        for width in config.intermediate_sizes
    ]
    return {"model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"], "block_configs": blocks}
