"""Codes as MLX's quantised layers: a directory that `mlx_lm.load` runs as it is.

MLX reads a weight of group g as q scale_g + bias_g, with the codes q of an output as one stream of bits in uint32
words, the first lowest: `packed_codes` with its axes exchanged. Ours is (q - zero) scale, so bias = -zero scale.

Source: Hannun et al., "MLX", 2023, `mlx.core.quantize` as of version 0.32; `mlx_lm.utils.load_model` as of 0.32.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from curvjax.interop.coded import CodedExport, coded_projections, counted, group_size, words, zeros
from curvjax.models import Decoder, DecoderConfig, SideFiles, Tokenizer, config_to_hf, save_hf
from curvjax.models.hf_names import stored_module
from curvjax.surgery import QuantizedLinear, dense_equivalent

_WIDTHS = (2, 3, 4, 5, 6, 8)
_GROUPS = (128, 64, 32)
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def save_mlx(
    model: Decoder, directory: str | Path, *, tokenizer: Tokenizer | None = None, beside: SideFiles | None = None
) -> CodedExport:
    """Write `model` for `mlx_lm.load(directory)`: codes and scales as they are, other tensors as `save_hf` does.

    A scale of more inputs than a group of MLX is written once for each of its groups. An offset is float16 where that
    is exact, and float32 elsewhere; products of float32 scales are rounded to float32.

    Args:
      model: a decoder with projections stored as codes.
      directory: where to; as for `save_hf`.
      tokenizer: as for `save_hf`.
      beside: as for `save_hf`.

    Returns:
      Projections by width, and their bytes.

    Raises:
      FileExistsError: as `save_hf`.
      ValueError: if no projection is stored as codes; if MLX has no such width or group, or mlx-lm computes
        something else for the family; or as `save_hf`.
    """
    found = coded_projections(model)
    groups = {path: _group(path, linear) for path, linear in found.items()}
    tensors = {f"{path}.kernel": _tensors(linear, groups[path]) for path, linear in found.items()}
    modules = {
        stored_module(model.config, path): {"group_size": groups[path], "bits": linear.bits}
        for path, linear in found.items()
    }
    (group, bits), _ = Counter((each["group_size"], each["bits"]) for each in modules.values()).most_common(1)[0]
    entries = _entries(model.config) | {"quantization": {"group_size": group, "bits": bits} | modules}
    save_hf(dense_equivalent(model), directory, tokenizer=tokenizer, beside=beside, coded=tensors, entries=entries)
    return counted(found, sum(array.nbytes for parts in tensors.values() for array in parts.values()))


def _entries(config: DecoderConfig) -> dict[str, Any]:
    """Those that mlx-lm reads, all written out, and the rotation in v4's form: what is left out it makes up."""
    if config.architecture not in _FAMILIES or config.activation != "silu":
        msg = (
            f"mlx-lm was tried on {list(_FAMILIES)} with silu; the model is {config.architecture}, {config.activation}."
        )
        raise ValueError(msg)
    if any(config.windowed):
        msg = f"mlx-lm's {config.architecture} sees all tokens, where the model has windows of {config.window}."
        raise ValueError(msg)
    return config_to_hf(config)


def _group(path: str, linear: QuantizedLinear) -> int:
    """The largest of MLX's groups that divides the inputs of one scale."""
    if linear.bits not in _WIDTHS:
        msg = f"{path} has codes of {linear.bits} bits; MLX has {list(_WIDTHS)}."
        raise ValueError(msg)
    own = group_size(linear)
    fitting = [group for group in _GROUPS if own % group == 0]
    if not fitting:
        msg = f"{path} has a scale for every {own} inputs; MLX needs a multiple of {_GROUPS[-1]}."
        raise ValueError(msg)
    return fitting[0]


def _tensors(linear: QuantizedLinear, group: int) -> dict[str, np.ndarray]:
    scales = np.asarray(linear.scales[...])
    exact = -zeros(linear).astype(np.float64) * scales
    with np.errstate(over="ignore"):
        narrow = exact.astype(scales.dtype)
    biases = narrow if np.array_equal(narrow, exact) else exact.astype(np.float32)
    times = group_size(linear) // group
    rows = {name: np.repeat(rows, times, axis=0).T for name, rows in (("scales", scales), ("biases", biases))}
    return {"weight": words(linear.codes[...])} | rows
