"""Codes in the format of compressed-tensors, `pack-quantized`, which transformers loads and vLLM serves.

A weight is (q - zero) scale with signed q = code - 2^(bits - 1), stored as the code: one stream of bits for each
output, in int32 words, the first lowest. Zeros are packed the same way along the outputs. In earlier versions a word
held whole codes only; the two agree at 2, 4 and 8 bits.

Source: compressed-tensors, `compressors/pack_quantized` and `QuantizationArgs` as of version 0.20; vLLM's
`compressed_tensors_wNa16.py` as of 0.11 for what its kernels run.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from curvjax.interop.coded import CodedExport, coded_projections, counted, group_size, words, zeros
from curvjax.models import Decoder, SideFiles, Tokenizer, save_hf, submodules
from curvjax.models.hf_names import stored_module
from curvjax.storage import UNTOUCHED
from curvjax.surgery import QuantizedLinear, dense_equivalent
from curvjax.surgery.rounding.codes import packed_codes

Serve = Literal["any", "vllm"]

_VLLM_WIDTHS = (4, 8)
_VLLM_ZEROS = (4,)
_VLLM_GROUPS = (32, 64, 128)  # or one scale for all inputs
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # one matrix in vLLM


def save_compressed_tensors(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    beside: SideFiles | None = None,
    serve: Serve = "any",
) -> CodedExport:
    """Write `model` for transformers' `from_pretrained`, codes, scales and zeros as they are.

    Other tensors are written as by `save_hf`. config.json has one group of modules for each width, by their full names.
    The loader puts scales into the dtype that it loads a model in: float32 and float16 hold float16 scales exactly.

    Args:
      model: a decoder with projections stored as codes.
      directory: where to; as for `save_hf`.
      tokenizer: as for `save_hf`.
      beside: as for `save_hf`.
      serve: "vllm": refuse what its kernels do not run.

    Returns:
      Projections by width, and their bytes.

    Raises:
      FileExistsError: as `save_hf`.
      ValueError: if no projection is stored as codes, the family fuses projections (GPT-2), or vLLM was asked for and
        cannot serve a projection; or as `save_hf`.
    """
    found = coded_projections(model)
    if serve == "vllm":
        _require_servable(model, found)
    names = {path: stored_module(model.config, path) for path in found}
    tensors = {f"{path}.kernel": _tensors(linear) for path, linear in found.items()}
    groups: dict[str, Any] = {}
    for path, linear in found.items():
        weights = _arguments(linear)
        group = "_".join(str(part) for part in ("bits", linear.bits, weights["strategy"], weights["group_size"] or ""))
        groups.setdefault(group.rstrip("_"), _group(weights))["targets"].append(names[path])
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
    }
    entries = {"quantization_config": config}
    save_hf(dense_equivalent(model), directory, tokenizer=tokenizer, beside=beside, coded=tensors, entries=entries)
    stored = [array.nbytes for parts in tensors.values() for name, array in parts.items() if name != "weight_shape"]
    return counted(found, sum(stored))


def _group(weights: dict[str, Any]) -> dict[str, Any]:
    return {"targets": [], "weights": weights, "input_activations": None, "output_activations": None}


def _arguments(linear: QuantizedLinear) -> dict[str, Any]:
    whole = linear.scales.shape[0] == 1
    return {
        "num_bits": linear.bits,
        "type": "int",
        "symmetric": linear.zeros is None,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else group_size(linear),
        "dynamic": False,
    }


def _tensors(linear: QuantizedLinear) -> dict[str, np.ndarray]:
    outputs = linear.scales.shape[1]
    parts = {
        "weight_packed": words(linear.codes[...]).view("<i4"),
        "weight_scale": np.asarray(linear.scales[...]).T,
        "weight_shape": np.array([outputs, linear.inputs], np.int64),
    }
    if linear.zeros is None:
        return parts
    return parts | {"weight_zero_point": words(packed_codes(zeros(linear).T, linear.bits)).view("<i4").T}


def _require_servable(model: Decoder, found: dict[str, QuantizedLinear]) -> None:
    """Do nothing if vLLM's mixed-precision kernels run every projection."""
    for path, linear in found.items():
        if linear.bits not in _VLLM_WIDTHS:
            msg = f"{path} has codes of {linear.bits} bits; vLLM's kernels run {list(_VLLM_WIDTHS)}."
            raise ValueError(msg)
        if linear.zeros is not None and linear.bits not in _VLLM_ZEROS:
            msg = f"{path} has zeros at {linear.bits} bits; vLLM's kernels take them at {list(_VLLM_ZEROS)}."
            raise ValueError(msg)
        if linear.scales.shape[0] > 1 and group_size(linear) not in _VLLM_GROUPS:
            msg = f"{path} has a scale for every {group_size(linear)} inputs; vLLM's kernels take {list(_VLLM_GROUPS)}."
            raise ValueError(msg)
    modules = submodules(model)
    for path, linear in found.items():
        parent, _, name = path.rpartition(".")
        for fused in (f"{parent}.{other}" for names in _FUSED if name in names for other in names):
            width = found[fused].bits if fused in found else UNTOUCHED
            if fused in modules and width != linear.bits:
                msg = f"{path} has {linear.bits} bits and {fused} {width}; vLLM makes one matrix of them, of one width."
                raise ValueError(msg)
