"""A decoder written as a Hugging Face directory, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from curvjax.models.decoder import Decoder, abstract_decoder
from curvjax.models.hf_config import config_to_hf
from curvjax.models.hf_names import place, prefix
from curvjax.models.parameters import parameter_shapes, parameters
from curvjax.models.tokenizer import Tokenizer, save_tokenizer

_HEAD = "lm_head.weight"
_MARK = "saved_by_curvjax"  # in config.json, the files of the save: a directory of only these may be replaced


def save_hf(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    tokenizer_files: Iterable[str | Path] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write `model` as config.json and safetensors that `load_hf` and transformers load with equal logits.

    The directory is written under a hidden name beside its place and then renamed, so that it is never there in part.
    An earlier one by this function is replaced; it lies under the hidden name until the new one is in its place.

    Args:
      model: a plain decoder: adapters are merged, parameters have their original shapes.
      directory: where to; its parent is made if need be.
      tokenizer: written as tokenizer.json and tokenizer_config.json.
      tokenizer_files: files copied in as they are, e.g. those of the model's origin.
      shard_bytes: largest file; a bigger model is written in shards with an index.

    Raises:
      FileExistsError: if `directory` holds files that this function did not write.
      ValueError: if the model is not what its config says, or the config's family cannot express it.
    """
    directory = Path(directory).resolve()
    require_replaceable(directory)
    tensors = _stored(model)
    dtypes = sorted({str(value.dtype) for value in tensors.values()})
    config = config_to_hf(model.config) | {"torch_dtype": dtypes[0]}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()  # not the scratch directory itself, which only its owner may read
        _write_weights(tensors, new, shard_bytes)
        if tokenizer is not None:
            save_tokenizer(tokenizer, new)
        for file in tokenizer_files or ():
            shutil.copyfile(file, new / Path(file).name)
        names = sorted({"config.json", *(file.name for file in new.iterdir())})
        _write_json(new / "config.json", config | {_MARK: names})
        _put(new, directory, Path(scratch) / "old")


def require_replaceable(directory: str | Path) -> None:
    """Do nothing if `save_hf` may write to `directory`: it is new, empty, or an earlier save.

    Raises:
      FileExistsError: if `directory` holds files that `save_hf` did not write.
    """
    directory = Path(directory).resolve()
    if not directory.exists():
        return
    found = {file.name for file in directory.iterdir()} if directory.is_dir() else {directory.name}
    strange = sorted(found - _saved_files(directory / "config.json"))
    if strange:
        msg = f"{directory} holds what save_hf did not write, {strange[:3]}; choose an empty or a new directory."
        raise FileExistsError(msg)


def _saved_files(config: Path) -> set[str]:
    """The files of an earlier save; none where `config` was not written by one."""
    try:
        entries = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(entries.get(_MARK, ())) if isinstance(entries, dict) else set()


def _stored(model: Decoder) -> dict[str, np.ndarray]:
    """Tensors by stored name, laid out as the family's checkpoints are."""
    expected = parameter_shapes(abstract_decoder(model.config))
    variables = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    found = parameter_shapes(model) | variables  # adapters are no parameters, and would be lost in silence
    wrong = [path for path in found | expected if found.get(path) != expected.get(path)]
    if wrong:
        msg = (
            f"{len(wrong)} parameters are not those of the model's config: {wrong}; "
            f"merge adapters and keep shapes before saving."
        )
        raise ValueError(msg)
    parts: dict[str, list[np.ndarray]] = {}
    for path, value in parameters(model).items():  # fused parts come in module order: query, key, value
        at = place(model.config, path)
        name = at.name if at.name == _HEAD else prefix(model.config) + at.name
        parts.setdefault(name, []).append(np.asarray(value).T if at.transposed else np.asarray(value))
    return {name: np.concatenate(part, axis=-1) if len(part) > 1 else part[0] for name, part in parts.items()}


def _write_weights(tensors: Mapping[str, np.ndarray], directory: Path, shard_bytes: int) -> None:
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        _write_shard(tensors, directory / "model.safetensors", shards[0])
        return
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
        "weight_map": {},
    }
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(tensors, directory / file, names)
        index["weight_map"] |= dict.fromkeys(names, file)
    _write_json(directory / "model.safetensors.index.json", index)


def _shards(tensors: Mapping[str, np.ndarray], shard_bytes: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, value in tensors.items():
        if names and size + value.nbytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += value.nbytes
    yield names


def _write_shard(tensors: Mapping[str, np.ndarray], file: Path, names: list[str]) -> None:
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in names}  # one shard's copies at a time
    save_file(contiguous, file, metadata={"format": "pt"})


def _write_json(file: Path, entries: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _put(new: Path, directory: Path, old: Path) -> None:
    """Rename `new` to `directory`; what was there is kept at `old` until that has happened."""
    if not directory.exists():
        new.rename(directory)
        return
    try:
        directory.rename(old)
        new.rename(directory)
    except BaseException:  # an interrupt too: the scratch directory, and `old` in it, is about to be removed
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
