"""The files of a Hugging Face directory: which tensors lie where, found from their headers alone."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors import SafetensorError, safe_open

from curvjax.models.hf_names import first_few, harmless

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


class StoredTensor(NamedTuple):
    """A tensor's entry. file: that holds it. name: its own there. dtype: the format's name. shape: as stored."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def json_object(path: Path) -> dict[str, Any]:
    """The entries of a file that holds one JSON object.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds anything else.
    """
    if not path.is_file():
        msg = f"{path}: no such file."
        raise FileNotFoundError(msg)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not JSON: {error}."
        raise ValueError(msg) from error
    if not isinstance(entries, dict):
        msg = f"{path}: must be a JSON object; found {type(entries).__name__}."
        raise ValueError(msg)
    return entries


def refuse_pickle(path: Path) -> NoReturn:
    """Raise for a file of pickled weights.

    Raises:
      ValueError: always, with the reason.
    """
    msg = (
        f"{path}: pickled weights are refused, because unpickling can run any code that the file contains. "
        f"Convert them to safetensors where you trust their origin."
    )
    raise ValueError(msg)


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the directory's checkpoint, by its name in the file; no tensor is read.

    Raises:
      FileNotFoundError: if there are no weights, or a shard is absent.
      ValueError: if they are pickled, a file is damaged, or the index does not tell what the shards hold.
    """
    if (directory / SINGLE).is_file():
        return file_tensors(directory / SINGLE)
    if not (directory / INDEX).is_file():
        for found in sorted(directory.iterdir()):
            if found.suffix in PICKLES:
                refuse_pickle(found)
        names = sorted(found.name for found in directory.iterdir())
        msg = f"{directory}: neither {SINGLE} nor {INDEX} is there; found {first_few(names)}."
        raise FileNotFoundError(msg)
    index = directory / INDEX
    placed = _weight_map(index)
    shards = {file: file_tensors(directory / file) for file in sorted(set(placed.values()))}
    astray = [f"{name} (not in {file})" for name, file in placed.items() if name not in shards[file]]
    if astray:
        msg = f"{index}: {len(astray)} tensors are missing from their shards: {first_few(astray)}."
        raise ValueError(msg)
    holders: dict[str, list[str]] = defaultdict(list)
    for file, tensors in shards.items():
        for name in tensors:
            holders[name].append(file)
    twice = [f"{name} in {' and '.join(files)}" for name, files in holders.items() if len(files) > 1]
    if twice:
        msg = f"{index}: {len(twice)} tensors are stored twice or more, and which counts is open: {first_few(twice)}."
        raise ValueError(msg)
    unsaid = [f"{name} in {files[0]}" for name, files in holders.items() if name not in placed and not harmless(name)]
    if unsaid:
        msg = f"{index}: does not name {len(unsaid)} tensors that the shards hold: {first_few(unsaid)}."
        raise ValueError(msg)
    return {name: shards[file][name] for name, file in placed.items()}


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; the library compares its header with the file's length.

    Raises:
      ValueError: if the file is cut short, damaged or of another kind.
    """
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: StoredTensor(path, name, found.get_dtype(), tuple(found.get_shape()))
                for name, found in slices.items()
            }
    except SafetensorError as error:
        msg = f"{path}: not a whole safetensors file: {error}. It is damaged or cut short; fetch it again."
        raise ValueError(msg) from error


def _weight_map(index: Path) -> Mapping[str, str]:
    placed = json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        msg = f"{index}: weight_map must be an object of tensor name -> file name; found {type(placed).__name__}."
        raise ValueError(msg)
    files = sorted(set(placed.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        msg = f"{index}: shards must lie beside the index; found {first_few(outside)}."
        raise ValueError(msg)
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        msg = f"{index}: names {len(absent)} shards that are not in {index.parent}: {first_few(absent)}."
        raise FileNotFoundError(msg)
    return placed
