"""Records on disk: JSON written whole or not at all, and read back into the value that it was, or refused by place."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np

_PACKAGES = ("curvjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "gguf", "tokenizers")


Kind = TypeVar("Kind", bound="Value")  # not Self, which run-time checks of single methods cannot read

LEFT_OUT = {"left_out": True}
"""Metadata of fields that stay in memory: models and arrays, which are saved in forms of their own."""


class Value:
    """What a frozen dataclass of this room can do: become JSON, and come back from it, checked field by field.

    Example:
      >>> import tempfile
      >>> from curvjax.records import Scores
      >>> from curvjax.testing import tiny_scores
      >>> scores = tiny_scores([3.0, 1.0])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Scores.load(scores.save(f"{folder}/gains.json")) == scores
      True
    """

    schema: ClassVar[str]
    """Name and version of the form on disk; a change of meaning needs a new one."""

    def to_json(self) -> dict[str, Any]:
        """The value in JSON's own types, its schema first; numbers that are not finite become None."""
        return {"schema": self.schema} | plain(self)

    @classmethod
    def from_json(cls: type[Kind], record: Any, *, source: str | Path = "the record") -> Kind:
        """The value that `to_json` gave.

        Args:
          record: a JSON object.
          source: where it comes from, for messages.

        Raises:
          ValueError: if it has another schema, lacks a field, or a field has another type; the message says where.
        """
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        if found != cls.schema:
            msg = f"{source} has schema {found!r}; this version reads {cls.schema!r}. Write it again with this version."
            raise ValueError(msg)
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            msg = f"{source} is no {cls.schema}: {error}. Write it again with this version."
            raise ValueError(msg) from error

    def save(self, path: str | Path) -> Path:
        """Write the value to `path`, whole or not at all.

        Raises:
          OSError: if the folder cannot be written; what was there before is untouched.
        """
        return write_json(path, self.to_json())

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """The value in `path`.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is no JSON, or not this value's.
        """
        if not Path(path).is_file():
            msg = f"{path} does not exist; a record with schema {cls.schema!r} is needed."
            raise FileNotFoundError(msg)
        return cls.from_json(read_json(path), source=path)

    @property
    def sha256(self) -> str:
        """Hash of the JSON, by which one record names another."""
        return digest(self.to_json())


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON through a temporary file and a rename.

    Raises:
      OSError: if the folder cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(plain(value), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: if it is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid JSON ({error}); write it again."
        raise ValueError(msg) from error


def plain(value: Any) -> Any:  # noqa: PLR0911 (a case each)
    """`value` in JSON's own types; numbers that are not finite become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.metadata != LEFT_OUT}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if (
        isinstance(value, (np.ndarray, np.generic))
        or hasattr(value, "__jax_array__")
        or hasattr(value, "addressable_shards")
    ):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value as JSON, or of the bytes of a file."""
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a number depends on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """What the numbers were computed on; no host name."""
    import jax  # here, so that reading a record does not load it

    devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
    return {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "devices": devices}


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
