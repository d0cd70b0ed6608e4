"""A decoder written as a Hugging Face directory, whole or not at all."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder, abstract_decoder
from curvjax.models.hf_files import json_object
from curvjax.models.hf_names import place, prefix, stored_module
from curvjax.models.parameters import parameter_shapes, parameters
from curvjax.models.side_files import SideFiles, hf_entries, in_dtype, stored_dtype
from curvjax.models.tokenizer import Tokenizer, save_tokenizer

_HEAD = "lm_head.weight"
_CONFIG = "config.json"
_MARK = "saved_by_curvjax"  # in config.json, SHA-256 of the save's files: other programs keep the entry, not the files


def save_hf(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    beside: SideFiles | None = None,
    tokenizer_files: Iterable[str | Path] | None = None,
    shard_bytes: int = 5_000_000_000,
    coded: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
    entries: Mapping[str, Any] = MappingProxyType({}),
    described: DecoderConfig | None = None,
) -> None:
    """Write `model` as config.json and safetensors that `load_hf` and transformers load with equal logits.

    The directory is written under a hidden name beside its place and then renamed, so that it is never there in part.
    An earlier one by this function is replaced, if its files are still as they were written; it lies under the hidden
    name until the new one is in its place.

    Args:
      model: a plain decoder: adapters are merged, parameters have their original shapes.
      directory: where to; its parent is made if need be.
      tokenizer: written as tokenizer.json and tokenizer_config.json, where `beside` has no tokenizer.json.
      beside: what the model came with, `Loaded.beside`: its files are written as they were, config.json keeps its
        entries, and each tensor goes back into the dtype it was stored in, unless a value is too large for that.
      tokenizer_files: files copied in as they are, e.g. those of the model's beside.
      shard_bytes: largest file; a bigger model is written in shards with an index.
      coded: `kernel path -> {suffix: array}`, written as `NAME.suffix` in place of the kernel's `NAME.weight`, for
        another program, which then is the one that loads it.
      entries: of config.json, over those that it would have.
      described: what config.json is to say where `entries` say the rest, such as sizes of layers; None: the model's.

    Raises:
      FileExistsError: if `directory` holds files that this function did not write, or that changed since.
      ValueError: if the model is not what its config says, or the config's family cannot express it.
    """
    directory, beside = Path(directory).resolve(), beside or SideFiles()
    require_replaceable(directory)
    tensors, config = _stored(model, beside), hf_entries(described or model.config, beside)
    config |= _dtype_entries(config, tensors) | dict(entries)
    tensors = _with_codes(tensors, model.config, coded)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()  # not the scratch directory itself, which only its owner may read
        _write_weights(tensors, new, shard_bytes)
        for name, content in beside.files.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(content)
        if tokenizer is not None and "tokenizer.json" not in beside.files:
            save_tokenizer(tokenizer, new)
        for file in tokenizer_files or ():
            shutil.copyfile(file, new / Path(file).name)
        for file in new.glob("*.safetensors"):  # the library lets only their owner read them
            file.chmod(new.stat().st_mode & 0o666)
        _write_json(new / _CONFIG, config)
        digests = {file.relative_to(new).as_posix(): _digest(file) for file in sorted(new.rglob("*")) if file.is_file()}
        _write_json(new / _CONFIG, config | {_MARK: digests})
        _put(new, directory, Path(scratch) / "old")


def require_replaceable(directory: str | Path) -> None:
    """Do nothing if `save_hf` may write to `directory`: it is new, empty, or an earlier save that nobody changed.

    Args:
      directory: of whose files, if it is an earlier save, every byte is read.

    Raises:
      FileExistsError: if `directory` holds files that `save_hf` did not write, or that changed since: a model that
        another program trained on and saved still has the entries of its config.json.
    """
    directory = Path(directory).resolve()
    if not directory.exists():
        return
    mark = _mark(directory / _CONFIG)
    if isinstance(mark, list):
        msg = (
            f"{directory} bears the mark of an earlier version, which does not tell whether its files are still those "
            f"that were saved; choose an empty or a new directory."
        )
        raise FileExistsError(msg)
    strange = _strange(directory, mark if isinstance(mark, dict) else {})
    if strange:
        msg = (
            f"{directory} holds what save_hf did not write, {strange[:3]}, or what changed since; "
            f"choose an empty or a new directory."
        )
        raise FileExistsError(msg)


def _mark(config: Path) -> Any:
    """What an earlier save says of its files; None where `config` was not written by one."""
    try:
        return json_object(config).get(_MARK)
    except (OSError, ValueError):
        return None


def _strange(directory: Path, digests: Mapping[str, Any]) -> list[str]:
    """What in `directory` a save with these `digests` did not write; where it wrote all, what changed since."""
    if not directory.is_dir():
        return [directory.name]
    folders = {"", *(name.partition("/")[0] for name in digests if "/" in name)}  # none lies deeper
    inside = [directory / folder for folder in folders if (directory / folder).is_dir()]
    found = {path.relative_to(directory).as_posix(): path for folder in inside for path in folder.iterdir()}
    files = {name: path for name, path in found.items() if not (path.is_dir() and name in folders)}
    added = [name for name, path in files.items() if name not in digests or not path.is_file()]
    return sorted(added or [name for name, path in files.items() if _digest(path) != digests[name]])


def _digest(file: Path) -> str:
    """SHA-256; of config.json, that of its entries without the mark, which cannot hold its own."""
    if file.name == _CONFIG:
        entries = {key: value for key, value in json_object(file).items() if key != _MARK}
        return hashlib.sha256(_text(entries).encode()).hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _dtype_entries(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What config.json says of the dtype: what it said before, if that can hold every tensor."""
    sizes: dict[str, int] = {}
    for value in tensors.values():
        sizes[str(value.dtype)] = sizes.get(str(value.dtype), 0) + value.size
    said = {key: config[key] for key in ("torch_dtype", "dtype") if config.get(key) is not None}
    if not said:
        return {"torch_dtype": max(sizes, key=lambda name: sizes[name])}
    narrow = "float16" in said.values()
    wide = [str(v.dtype) for v in tensors.values() if narrow and in_dtype(v, "float16").dtype != np.float16]
    return dict.fromkeys(said, wide[0]) if wide else said


def _stored(model: Decoder, beside: SideFiles) -> dict[str, np.ndarray]:
    """Tensors by stored name, laid out and in the dtypes as the family's checkpoints are."""
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
    dtypes: dict[str, str] = {}
    for path, value in parameters(model).items():  # fused parts come in module order: query, key, value
        at = place(model.config, path)
        name = at.name if at.name == _HEAD else prefix(model.config) + at.name
        parts.setdefault(name, []).append(np.asarray(value).T if at.transposed else np.asarray(value))
        dtypes[name] = stored_dtype(model.config, path, beside) or str(value.dtype)
    whole = {name: np.concatenate(part, axis=-1) if len(part) > 1 else part[0] for name, part in parts.items()}
    return {name: in_dtype(value, dtypes[name]) for name, value in whole.items()}


def _with_codes(
    tensors: Mapping[str, np.ndarray], config: DecoderConfig, coded: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`tensors` with those of codes where the kernels that they stand for were."""
    names = {f"{stored_module(config, path.removesuffix('.kernel'))}.weight": path for path in coded}
    return {
        new: array
        for name, value in tensors.items()
        for new, array in (
            {f"{name.removesuffix('weight')}{suffix}": array for suffix, array in coded[names[name]].items()}
            if name in names
            else {name: value}
        ).items()
    }


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
    file.write_text(_text(entries), encoding="utf-8")


def _text(entries: Mapping[str, Any]) -> str:
    return json.dumps(entries, indent=2) + "\n"


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
