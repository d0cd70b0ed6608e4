"""Codes as tensors of a GGUF file: another file's copy, in which the projections that are codes have a type each.

All else is carried over byte for byte: metadata, tokenizer, embeddings, norms, projections that were left as they are.

Source: llama.cpp's `convert_hf_to_gguf.py` for names and the order of rows; `gguf.GGUFWriter` as of version 0.19.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, Keys

from curvjax.interop.coded import CodedExport, coded_projections, counted, zeros
from curvjax.interop.folder import new_folder
from curvjax.interop.gguf_blocks import Grid, block_type, blocks, offset_change
from curvjax.models import Decoder, config_from_gguf, decoder_from_gguf, gguf_rows, parameters, read_gguf
from curvjax.models.gguf_file import GGUFFile
from curvjax.surgery import QuantizedLinear
from curvjax.surgery.codes import unpacked

MODEL_FILE = "model.gguf"
_REPLACED = {Keys.General.ARCHITECTURE, Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT}
_REPLACED |= {Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, Keys.General.ALIGNMENT}


def save_gguf(model: Decoder, base: str | Path, directory: str | Path) -> CodedExport:
    """Write `directory/model.gguf`: the file `base`, with the projections that are codes in their place.

    Codes and scales are as they are, and so are offsets but for those of Q4_1 and Q5_1, which have them in float16;
    see `curvjax.interop.gguf_blocks` for what each type holds.

    Args:
      model: a decoder with projections stored as codes, of the model in `base`.
      base: a GGUF file of any types; of a model in parts any one.
      directory: must be new or empty; written whole or not at all.

    Returns:
      Projections by width, the bytes of their blocks, and the most that an offset moved.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if no projection is stored as codes, GGUF has no type for a grid, the scales are not float16, or the
        rest of the model is not that of `base`.
    """
    found, file = coded_projections(model), read_gguf(base)
    _require_base(model, file)
    kinds = {path: _kind(path, linear) for path, linear in found.items()}
    tensors: dict[str, dict[int, tuple[str, np.ndarray]]] = {}  # by name and first row
    size, change = 0, 0.0
    for path, linear in found.items():
        grid = _grid(linear)
        rows = _blocks(path, grid, kinds[path])
        name, order = gguf_rows(f"{path}.kernel", (linear.inputs, linear.scales.shape[1]), model.config)
        placed = np.empty_like(rows)
        placed[order - order.min()] = rows
        tensors.setdefault(name, {})[int(order.min())] = path, placed
        size, change = size + rows.nbytes, max(change, offset_change(grid, kinds[path]))
    whole = {name: _whole(name, parts, kinds, file) for name, parts in tensors.items()}
    with new_folder(directory) as new:
        _write(file, whole, new / MODEL_FILE)
    return counted(found, size, change)


def _require_base(model: Decoder, file: GGUFFile) -> None:
    """Do nothing if all that is not codes is what `file` holds."""
    original = parameters(decoder_from_gguf(file))
    other = [
        path
        for path, value in parameters(model).items()
        if path not in original or not np.array_equal(value, original[path])
    ]
    if model.config != config_from_gguf(file) or other:
        what = f"{len(other)} of its parameters, e.g. {other[:3]}," if other else "its configuration"
        msg = f"the model is not that of {file.path}: {what} differ; give the GGUF file that it was quantised from."
        raise ValueError(msg)


def _kind(path: str, linear: QuantizedLinear) -> GGMLQuantizationType:
    try:
        return block_type(linear.bits, linear.inputs // linear.scales.shape[0], symmetric=linear.zeros is None)
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _grid(linear: QuantizedLinear) -> Grid:
    codes = np.asarray(unpacked(linear.codes[...], linear.bits, inputs=linear.inputs))
    return Grid(codes.T, np.asarray(linear.scales[...]).T, zeros(linear).T, linear.bits, linear.zeros is None)


def _blocks(path: str, grid: Grid, kind: GGMLQuantizationType) -> np.ndarray:
    try:
        return blocks(grid, kind)
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _whole(
    name: str, parts: dict[int, tuple[str, np.ndarray]], kinds: dict[str, GGMLQuantizationType], file: GGUFFile
) -> tuple[GGMLQuantizationType, np.ndarray]:
    """A tensor's type and rows; GPT-2's query, key and value are one tensor and need one type."""
    paths, rows = zip(*(part for _, part in sorted(parts.items())), strict=True)
    types = {kinds[path] for path in paths}
    if len(types) > 1 or sum(map(len, rows)) != file.tensors[name].shape[0]:
        kept = sorted(kind.name for kind in types)
        msg = f"GGUF has one tensor {name} for {list(paths)} and what lies beside them: all need one type, not {kept}."
        raise ValueError(msg)
    return types.pop(), np.concatenate(rows)


def _write(file: GGUFFile, coded: dict[str, tuple[GGMLQuantizationType, np.ndarray]], path: Path) -> None:
    reader = GGUFReader(next(iter(file.data)))  # knows the types that numbers are stored in
    writer = GGUFWriter(path, str(file.metadata[Keys.General.ARCHITECTURE]))
    alignment = file.metadata.get(Keys.General.ALIGNMENT)
    if isinstance(alignment, int):
        writer.add_custom_alignment(alignment)
    for field in reader.fields.values():
        if field.name in _REPLACED or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    if Keys.General.QUANTIZATION_VERSION not in file.metadata:
        writer.add_quantization_version(GGML_QUANT_VERSION)
    rows = {}
    for name, info in file.tensors.items():
        stored = file.data[info.file][info.start : info.start + info.size].reshape(*info.shape[:-1], -1)
        kind, rows[name] = coded.get(name, (info.type, stored))
        writer.add_tensor_info(name, rows[name].shape, rows[name].dtype, rows[name].nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for value in rows.values():
        writer.write_tensor_data(value)
    writer.close()
