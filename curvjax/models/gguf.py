"""Decoders from GGUF files: tensor names to dotted paths, values to our layout.

Source: the names and conversions of llama.cpp's convert_hf_to_gguf.py.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from curvjax.layers import layer_index, layer_prefix
from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder, abstract_decoder
from curvjax.models.gguf_config import ROPE_FACTORS, config_from_gguf
from curvjax.models.gguf_file import GGUFFile
from curvjax.models.hf_names import first_few
from curvjax.models.parameters import parameter_shapes, require_finite, with_parameters

_MODULES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_SANDWICH = {  # a norm after attention too moves the name of the norm before the MLP
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # one attn_qkv in GPT-2, in this order


class _Source(NamedTuple):
    """Which tensor holds a parameter. shape: the tensor's. rows: those that are the parameter's."""

    name: str
    shape: tuple[int, ...]
    rows: slice


def decoder_from_gguf(file: GGUFFile, *, dtype: DTypeLike = jnp.float32) -> Decoder:
    """The decoder that a GGUF file holds, dequantised.

    Args:
      file: of `read_gguf`; architectures llama (also Mistral), deci, qwen2, qwen3, gemma2, gemma3 and gpt2.
      dtype: of all parameters.

    Returns:
      A decoder on arrays of its own; its `config` is `config_from_gguf(file)`.

    Raises:
      ValueError: if tensors are missing, surplus or of another shape, before any is read; or if one is not finite.
    """
    config = config_from_gguf(file)
    model = abstract_decoder(config, dtype=dtype)
    sources = {path: _source(path, shape, config) for path, shape in parameter_shapes(model).items()}
    expected = {source.name: source.shape for source in sources.values()}
    found = {name: info.shape for name, info in file.tensors.items() if name != ROPE_FACTORS}
    problems = [
        *(f"{name} is missing, expected {shape}" for name, shape in expected.items() if name not in found),
        *(f"{name} {shape} is surplus" for name, shape in found.items() if name not in expected),
        *(f"{n} has shape {found[n]}, expected {s}" for n, s in expected.items() if found.get(n, s) != s),
    ]
    if problems:
        msg = f"{file.path}: {len(problems)} tensors do not fit {config.architecture}: {first_few(problems)}."
        raise ValueError(msg)
    values = {}
    for path, source in sources.items():
        with np.errstate(over="ignore"):  # what a narrower dtype cannot hold is refused on the next line
            value = np.asarray(_value(path, source, file, config), np.dtype(dtype))
        require_finite(value, f"{file.tensors[source.name].file}: {source.name}")
        values[path] = jnp.array(value)  # a copy: the file's own bytes may change
    return with_parameters(model, values)


def _source(path: str, shape: tuple[int, ...], config: DecoderConfig) -> _Source:
    module, _, leaf = path.rpartition(".")
    suffix = "bias" if leaf == "bias" else "weight"
    rows, *columns = shape[::-1] if leaf == "kernel" else shape
    if (layer := layer_index(path)) < 0:
        return _Source(f"{_MODULES[module]}.{suffix}", (rows, *columns), slice(None))
    module = module.removeprefix(f"{layer_prefix(layer)}.")
    if config.architecture == "gpt2" and module in _FUSED:
        start = rows * _FUSED.index(module)
        return _Source(f"blk.{layer}.attn_qkv.{suffix}", (3 * rows, *columns), slice(start, start + rows))
    names = _MODULES | _SANDWICH if config.sandwich_norm else _MODULES
    return _Source(f"blk.{layer}.{names[module]}.{suffix}", (rows, *columns), slice(None))


def gguf_rows(path: str, shape: tuple[int, ...], config: DecoderConfig) -> tuple[str, np.ndarray]:
    """The tensor that holds a kernel, and which of its rows each output of ours is; of vectors each entry.

    Args:
      path: of the kernel, or of another parameter.
      shape: ours, (in, out) of a kernel.
      config: of the model.

    Returns:
      The tensor's name, and `[out]` row numbers.
    """
    source = _source(path, shape, config)
    return source.name, _ordered(path, np.arange(source.shape[0])[source.rows], config)


def gguf_tensor(path: str, value: np.ndarray, config: DecoderConfig) -> tuple[str, np.ndarray]:
    """The tensor that holds a parameter by itself, and its values in the order in which they are stored there.

    Args:
      path: of the parameter; in families that fuse no projections and store norms as they are.
      value: in our layout.
      config: of the model.

    Returns:
      The tensor's name, and `[rows, ...]`.
    """
    name, order = gguf_rows(path, value.shape, config)
    rows = value.T if path.endswith(".kernel") else value
    placed = np.empty_like(rows)
    placed[order] = rows
    return name, placed


def _value(path: str, source: _Source, file: GGUFFile, config: DecoderConfig) -> np.ndarray:
    """A parameter in our layout, float32."""
    value = _ordered(path, file.tensor(source.name)[source.rows], config)
    if path.endswith(".kernel"):
        return value.T
    if path.endswith("norm.scale") and config.norm_offset:
        return value - config.norm_offset  # llama.cpp stores the sum
    return value


def _ordered(path: str, rows: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Rows as they are stored in our order."""
    if config.architecture not in {"llama", "mistral"} and not config.per_layer:  # deci is Llama's order too
        return rows
    keys = config.layer_kv_heads(layer_index(path))
    if ".self_attn.q_proj." in path:
        return halves_from_pairs(rows, keys * (config.num_heads // config.num_kv_heads))
    return halves_from_pairs(rows, keys) if ".self_attn.k_proj." in path else rows


def halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores these so that channels 2i and 2i + 1 turn together; ours are i and i + head_dim/2."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
