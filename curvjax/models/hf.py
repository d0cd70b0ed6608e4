"""A decoder from a Hugging Face directory: config.json and safetensors, checked before anything is allocated."""

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import safe_open

from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder, abstract_decoder
from curvjax.models.hf_config import MULTIMODAL, config_from_hf
from curvjax.models.hf_files import PICKLES, SINGLE, StoredTensor, json_object, refuse_pickle, stored_tensors
from curvjax.models.hf_names import Place, first_few, harmless, of_images, place, plain_name, prefix
from curvjax.models.parameters import parameter_shapes, require_finite, with_parameters

_FLOATS = ("BF16", "F16", "F32", "F64")
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.embedding"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save)\.")


class HuggingFaceModel(NamedTuple):
    """model: the decoder, in the dtype asked for. config: what config.json says, also at `model.config`."""

    model: Decoder
    config: DecoderConfig


def load_hf(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> HuggingFaceModel:
    """The decoder that a Hugging Face directory holds.

    Tensors may bear the names that wrappers give them (`_orig_mod.`, `module.` and the like). Of a multimodal model
    the text decoder is read, and a warning counts what is left out.

    Args:
      path: directory with config.json and model.safetensors, or shards with model.safetensors.index.json.
      dtype: of the parameters in memory, whatever the file has.

    Returns:
      The model and its configuration.

    Raises:
      FileNotFoundError: if the directory, config.json, the weights or a shard is absent.
      ValueError: if a file is damaged, the architecture unknown, a tensor missing, surplus, of the wrong shape or not
        finite, or the weights are pickled. The message names the file, the tensors, what was found and expected.
    """
    directory = Path(path)
    if directory.is_file() and directory.suffix in PICKLES:
        refuse_pickle(directory)
    if not directory.is_dir():
        msg = f"{directory}: no such directory; expected one with config.json and {SINGLE}."
        raise FileNotFoundError(msg)
    entries = json_object(directory / "config.json")
    config = config_from_hf(entries, source=str(directory / "config.json"))
    tensors = _plainly_named(stored_tensors(directory), directory)
    if entries["model_type"] == MULTIMODAL:
        tensors = _text_tensors(tensors, directory)
    _check_layers(config, tensors, directory)
    shell = abstract_decoder(config, dtype=dtype)
    shapes = parameter_shapes(shell)
    places = _places(config, shapes, tensors)
    _check_names(config, places, tensors, directory)
    _check_shapes(shapes, places, tensors, directory)
    if config.tied and _HEAD in tensors:
        _check_tied_head(tensors[_HEAD], tensors[places[_TABLE].name])
    return HuggingFaceModel(with_parameters(shell, _read(places, tensors, np.dtype(dtype))), config)


def _plainly_named(stored: Mapping[str, StoredTensor], directory: Path) -> dict[str, StoredTensor]:
    """The tensors by their names without those of wrappers."""
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        plain = plain_name(name)
        if plain in tensors and not harmless(plain):
            msg = f"{directory}: {tensors[plain].name} and {name} are both {plain}; remove one of them."
            raise ValueError(msg)
        tensors[plain] = tensor
    adapters = [name for name in tensors if _ADAPTER.search(name)]
    if adapters:
        msg = (
            f"{directory}: {len(adapters)} tensors belong to adapters: {first_few(adapters)}. Merge them into the "
            f"model (PEFT: merge_and_unload) and save it again."
        )
        raise ValueError(msg)
    return tensors


def _text_tensors(tensors: Mapping[str, StoredTensor], directory: Path) -> dict[str, StoredTensor]:
    images = [name for name in tensors if of_images(name)]
    if images:
        text = f"{directory}: only the text decoder is read; left out are {len(images)} tensors, {first_few(images)}."
        warnings.warn(text, stacklevel=3)
    return {name: tensor for name, tensor in tensors.items() if not of_images(name)}


def _check_layers(config: DecoderConfig, tensors: Iterable[str], directory: Path) -> None:
    """Before anything is built: a damaged count must not make ten thousand layers."""
    layers = 1 + max((int(match[1]) for name in tensors if (match := _LAYER.search(name))), default=-1)
    if config.num_layers > layers:
        msg = f"{directory}: config.json says {config.num_layers} layers, but the tensors are those of {layers}."
        raise ValueError(msg)


def _places(config: DecoderConfig, paths: Iterable[str], tensors: Mapping[str, StoredTensor]) -> dict[str, Place]:
    """Where each parameter is stored; checkpoints of a base model lack the prefix."""
    start = prefix(config)
    if not any(name.startswith(start) for name in tensors):
        start = ""
    found = {path: place(config, path) for path in paths}
    places = {path: at if at.name == _HEAD else at._replace(name=start + at.name) for path, at in found.items()}
    if config.tied and _HEAD in tensors and places[_TABLE].name not in tensors:  # either copy of the one table
        places[_TABLE] = places[_TABLE]._replace(name=_HEAD)
    return places


def _check_names(
    config: DecoderConfig, places: Mapping[str, Place], tensors: Mapping[str, StoredTensor], directory: Path
) -> None:
    names = list(dict.fromkeys(at.name for at in places.values()))
    missing = [name for name in names if name not in tensors]
    spare = [name for name in tensors if name not in names and not harmless(name)]
    surplus = [tensors[name].name for name in spare if not (config.tied and name == _HEAD)]
    if missing or surplus:
        counts = [
            f"{len(some)} {what}" + (f" ({first_few(some)})" if some else "")
            for what, some in (("missing", missing), ("surplus", surplus))
        ]
        msg = (
            f"{directory}: tensors do not match {config.architecture!r} with {config.num_layers} layers: "
            f"{', '.join(counts)}."
        )
        raise ValueError(msg)


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    places: Mapping[str, Place],
    tensors: Mapping[str, StoredTensor],
    directory: Path,
) -> None:
    shapes = {at.name: _stored_shape(at, expected[path]) for path, at in places.items()}
    wrong = [
        f"{found.file.name}: {found.name} is {found.dtype} {found.shape}, expected {shape}"
        for found, shape in ((tensors[name], shape) for name, shape in shapes.items())
        if found.shape != shape or found.dtype not in _FLOATS
    ]
    if wrong:
        msg = f"{directory}: {len(wrong)} tensors have the wrong shape, or none of {_FLOATS}: {first_few(wrong)}."
        raise ValueError(msg)


def _stored_shape(at: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    if at.part is not None:
        return (*shape[:-1], 3 * shape[-1])
    return shape[::-1] if at.transposed else shape


def _read(places: Mapping[str, Place], tensors: Mapping[str, StoredTensor], dtype: np.dtype) -> dict[str, jax.Array]:
    """The parameters, read one tensor at a time."""
    values = {}
    with contextlib.ExitStack() as stack:
        files = {tensor.file for tensor in tensors.values()}
        opened = {file: stack.enter_context(safe_open(file, "np")) for file in files}
        for path, at in places.items():
            tensor = tensors[at.name]
            with np.errstate(over="ignore"):  # what a narrower dtype cannot hold is refused on the next line
                value = np.asarray(opened[tensor.file].get_tensor(tensor.name), dtype)
            require_finite(value, f"{tensor.file}: {tensor.name}")
            if at.part is not None:
                value = np.split(value, 3, axis=-1)[at.part]
            values[path] = jnp.asarray(np.ascontiguousarray(value.T if at.transposed else value))
    return values


def _check_tied_head(head: StoredTensor, table: StoredTensor) -> None:
    with safe_open(head.file, "np") as first, safe_open(table.file, "np") as second:
        if not np.array_equal(first.get_tensor(head.name), second.get_tensor(table.name)):
            msg = (
                f"{head.file}: {head.name} differs from {table.name}, but config.json ties them; "
                f"set tie_word_embeddings to false there, or remove {head.name}."
            )
            raise ValueError(msg)
