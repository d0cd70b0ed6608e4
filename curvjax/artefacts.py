"""JSON records on disk: written whole or not at all, read only where schema and model fit."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

Record = dict[str, Any]

GAINS_SCHEMA = "curvjax.gains/1"
ALLOCATION_SCHEMA = "curvjax.allocation/1"
COMPARE_SCHEMA = "curvjax.compare/1"
EVALUATION_SCHEMA = "curvjax.evaluation/1"
RUN_SCHEMA = "curvjax.run/1"
TRANSFER_SCHEMA = "curvjax.transfer/1"

_PACKAGES = ("curvjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "gguf", "tokenizers")


def write_record(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write `record` as JSON through a temporary file and a rename; not-finite numbers become null.

    Raises:
      OSError: if the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(_plain(record), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_record(path: str | Path, *, schema: str) -> Record:
    """The JSON object in `path`, in which a key that is asked for and absent is an error that names file and place.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no JSON object or has another schema; or, of gains and allocations, if an entry that others
        depend on has another type than it was written with, or two units have one name.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path} does not exist; a record with schema {schema!r} is needed."
        raise FileNotFoundError(msg)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid JSON ({error}); write it again."
        raise ValueError(msg) from error
    found = record.get("schema") if isinstance(record, dict) else type(record).__name__
    if found != schema:
        msg = f"{path} has schema {found!r}; this version reads {schema!r}. Write it again with this version."
        raise ValueError(msg)
    if schema in (GAINS_SCHEMA, ALLOCATION_SCHEMA):
        _require_entries(record, path)
    return _placed(record, path, "")


def require_model(record: Mapping[str, Any], weights_sha256: str, *, source: str | Path) -> None:
    """Refuse a record that belongs to other weights.

    Raises:
      ValueError: if the hash in the record differs.
    """
    found = record["model"]["weights_sha256"]
    if found != weights_sha256:
        msg = (
            f"{source} was made for model {record['model']['name']!r} with weights {found[:12]}..., but the model "
            f"given has {weights_sha256[:12]}...; score and allocate again for this model."
        )
        raise ValueError(msg)


def require_target(allocation: Mapping[str, Any], *targets: str, need: str) -> None:
    """Refuse an allocation of something else; `need` begins the rest of the sentence, "pruning needs".

    Raises:
      ValueError: if its target is none of `targets`.
    """
    if allocation["target"] not in targets:
        allowed = " or ".join(map(repr, targets))
        msg = f"the allocation is of {allocation['target']}; {need} target {allowed}: allocate again."
        raise ValueError(msg)


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of a record, or of the bytes of a file."""
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a number depends on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def machine() -> Record:
    """What the numbers were computed on; no host name."""
    devices = jax.devices()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in devices],
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Entries(dict[str, Any]):
    """An object of a record that knows where it stands."""

    def __init__(self, entries: Mapping[str, Any], path: Path, place: str):
        super().__init__(entries)
        self.path, self.place = path, place

    def __missing__(self, key: str) -> NoReturn:
        where = f"{self.place} has no" if self.place else "there is no"
        msg = f"{self.path}: {where} {key!r}; write the file again with the command that made it."
        raise ValueError(msg)


def _placed(value: Any, path: Path, place: str) -> Any:
    if isinstance(value, dict):
        inside = f"{place}." if place else ""
        return _Entries({key: _placed(item, path, f"{inside}{key}") for key, item in value.items()}, path, place)
    if isinstance(value, list):
        return [_placed(item, path, f"{place}[{number}]") for number, item in enumerate(value)]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


Expected = tuple[Callable[[Any], bool], str]
_TEXT: Expected = (_is_text, "a text")
_WHOLE: Expected = (_is_whole, "a whole number")
_NUMBER: Expected = (_is_number, "a finite number")
_OBJECT: Expected = (lambda value: isinstance(value, dict), "an object")
_LIST: Expected = (lambda value: isinstance(value, list), "a list")
_TARGETS = ("rank", "bits", "sparsity", "experts")
_TOP: Mapping[str, Expected] = {
    "model": _OBJECT,
    "target": (lambda value: value in _TARGETS, f"one of {', '.join(_TARGETS)}"),
    "budget": _OBJECT,
    "granularity": _TEXT,
    "units": (lambda value: isinstance(value, list) and bool(value), "a list with at least one unit"),
}
_MODEL: Mapping[str, Expected] = {
    "name": _TEXT,
    "weights_sha256": _TEXT,
    "layers": _WHOLE,
    "parameters": _WHOLE,
    "architecture": _TEXT,
    "projections": (lambda v: isinstance(v, list) and all(map(_is_text, v)), "a list of texts"),
}
_UNIT: Mapping[str, Expected] = {
    "name": _TEXT,
    "index": _WHOLE,
    "amount": _NUMBER,
    "cost": _NUMBER,
    "maximum": (lambda value: value is None or _is_number(value), "a finite number, or null where there is no limit"),
    "gains": _LIST,
}


def _require_entries(record: Record, path: Path) -> None:
    """Refuse gains or an allocation in which something that is there is not of its type."""
    _require_types(record, _TOP, path, "")
    whole = record.get("target") in ("rank", "bits", "experts")
    unit_types = {**_UNIT, "amount": _WHOLE} if whole else _UNIT
    _require_types(record.get("model", {}), _MODEL, path, "model.")
    names: set[str] = set()
    for number, unit in enumerate(record.get("units", [])):
        place = f"units[{number}]"
        if not isinstance(unit, dict):
            _refuse(path, place, unit, "an object")
        _require_types(unit, unit_types, path, f"{place}.")
        if (name := unit.get("name")) in names:
            _refuse(path, f"{place}.name", name, "the name of no other unit")
        names.add(str(name))


def _require_types(entries: Record, types: Mapping[str, Expected], path: Path, place: str) -> None:
    for key, (fits, expected) in types.items():
        if key in entries and not fits(entries[key]):
            _refuse(path, f"{place}{key}", entries[key], expected)


def _refuse(path: Path, place: str, found: Any, expected: str) -> NoReturn:
    msg = f"{path}: {place} must be {expected}; found {found!r}. Write the file again with the command that made it."
    raise ValueError(msg)


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
