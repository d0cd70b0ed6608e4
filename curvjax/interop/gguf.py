"""Models as GGUF files: another file's copy, in which the projections that are codes have a type each.

All else is carried over byte for byte: metadata, tokenizer, embeddings, norms, projections that were left as they are.
Where the model has other sizes than the file, its tensors are written anew; see `curvjax.interop.gguf_layers`.

Source: llama.cpp's `convert_hf_to_gguf.py` for names and the order of rows; `gguf.GGUFWriter` as of version 0.19.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, Keys

from curvjax.interop.coded import CodedExport, coded_projections, counted, zeros
from curvjax.interop.folder import new_folder
from curvjax.interop.gguf_blocks import Grid, block_type, blocks, offset_change
from curvjax.interop.gguf_layers import (
    SIZE_KEYS,
    Stored,
    add_sizes,
    plain_tensors,
    require_writable,
    written_architecture,
)
from curvjax.models import Decoder, DecoderConfig, config_from_gguf, decoder_from_gguf, gguf_rows, parameters, read_gguf
from curvjax.models.gguf_file import GGUFFile
from curvjax.surgery import QuantizedLinear, coded_modules
from curvjax.surgery.rounding.codes import unpacked

MODEL_FILE = "model.gguf"
_REPLACED = {Keys.General.ARCHITECTURE, Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT}
_REPLACED |= {Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, Keys.General.ALIGNMENT}
_OF_SIZES = {Keys.General.FILE_TYPE, Keys.General.SIZE_LABEL}


def save_gguf(model: Decoder, base: str | Path, directory: str | Path) -> CodedExport:
    """Write `directory/model.gguf`: the file `base`, with the projections that are codes in their place.

    Codes and scales are as they are, and so are offsets but for those of Q4_1 and Q5_1, which have them in float16;
    see `curvjax.interop.gguf_blocks` for what each type holds. A model with fewer layers, channels or heads than `base`
    needs no codes; all its tensors are its own, and only tokenizer and other metadata are those of `base`.

    Args:
      model: a decoder with projections stored as codes, of the model in `base`, or one cut out of it.
      base: a GGUF file of any types; of a model in parts any one.
      directory: must be new or empty; written whole or not at all.

    Returns:
      Projections by width, the bytes of their blocks, and the most that an offset moved.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if no projection is stored as codes, GGUF has no type for a grid, the scales are not float16, or the
        rest of the model is not that of `base`; of a model of other sizes if its family has no place for them.
    """
    file = read_gguf(base)
    cut = _sizes(model.config) != _sizes(config_from_gguf(file))
    if cut:
        require_writable(model, file)
        found = coded_modules(model)
    else:
        found = coded_projections(model)
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
    if cut:
        whole = plain_tensors(model, file) | {name: _only(parts, kinds) for name, parts in tensors.items()}
    else:
        coded = {name: _whole(name, parts, kinds, file) for name, parts in tensors.items()}
        whole = {name: coded.get(name) or _carried(file, name) for name in file.tensors}
    with new_folder(directory) as new:
        _write(file, whole, new / MODEL_FILE, model.config if cut else None)
    return counted(found, size, change)


def _sizes(config: DecoderConfig) -> tuple[Any, ...]:
    """What `gguf_layers` can change."""
    one = config.intermediate_size, config.num_heads, config.num_kv_heads
    return config.num_layers, *one, config.intermediate_sizes, config.kv_heads


def _only(parts: dict[int, tuple[str, np.ndarray]], kinds: dict[str, GGMLQuantizationType]) -> Stored:
    """A projection that is a tensor by itself."""
    ((path, rows),) = parts.values()
    return kinds[path], rows


def _carried(file: GGUFFile, name: str) -> Stored:
    """A tensor as it is."""
    info = file.tensors[name]
    return info.type, file.data[info.file][info.start : info.start + info.size].reshape(*info.shape[:-1], -1)


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


def _write(file: GGUFFile, tensors: dict[str, Stored], path: Path, sizes: DecoderConfig | None) -> None:
    """The metadata of `file`, with other `sizes` or its own, and these tensors."""
    reader = GGUFReader(next(iter(file.data)))  # knows the types that numbers are stored in
    before = str(file.metadata[Keys.General.ARCHITECTURE])
    writer = GGUFWriter(path, before if sizes is None else written_architecture(sizes, file))
    alignment = file.metadata.get(Keys.General.ALIGNMENT)
    if isinstance(alignment, int):
        writer.add_custom_alignment(alignment)
    left_out = _REPLACED | (set() if sizes is None else _OF_SIZES | {f"{before}.{key}" for key in SIZE_KEYS})
    for field in reader.fields.values():
        if field.name in left_out or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        name = re.sub(rf"^{before}\.", f"{writer.arch}.", field.name)
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    if sizes is not None:
        add_sizes(writer, sizes)
    if Keys.General.QUANTIZATION_VERSION not in file.metadata:
        writer.add_quantization_version(GGML_QUANT_VERSION)
    for name, (kind, rows) in tensors.items():
        writer.add_tensor_info(name, rows.shape, rows.dtype, rows.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, rows in tensors.values():
        writer.write_tensor_data(rows)
    writer.close()
