"""The GGUF container, versions 2 and 3: metadata, tensor table, and one tensor at a time as float32.

Everything the header claims is checked against the file's length before anything of that size is allocated.
The reader is our own because `gguf.GGUFReader` takes seconds where this takes a tenth of one; the arithmetic of the
quantised types is theirs.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

Value = int | float | bool | str | list[str] | np.ndarray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MOST_PARTS = 99_999  # five digits
_PART = re.compile(r"(?P<name>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_SMALLEST_FIELD = 8 + 4 + 1  # key length, type, one-byte value
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # name length, rank, one dimension, type, offset
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class TensorInfo(NamedTuple):
    """Where a tensor lies. file: which. shape: slowest axis first (the file's order reversed). start, size: bytes."""

    file: Path
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    size: int


class GGUFFile(NamedTuple):
    """A checked header over a memory-mapped file, or over all files of a model in parts.

    path: the file that was named. data: by file, `[bytes]` uint8, the whole of it, read on demand.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data: dict[Path, np.ndarray]

    def tensor(self, name: str) -> np.ndarray:
        """`[shape]` float32 values of one tensor."""
        info = self.tensors[name]
        rows = self.data[info.file][info.start : info.start + info.size].reshape(*info.shape[:-1], -1)
        return quants.dequantize(rows, info.type).reshape(info.shape)


def read_gguf(path: str | Path) -> GGUFFile:
    """Header of a GGUF file, with every count, length, type, offset and size checked.

    Args:
      path: the file; its tensors are mapped, not read. Of a model in parts (`name-00001-of-00003.gguf`) any one: all
        are opened, and the metadata are those of the first.

    Returns:
      Metadata by key, tensor table by name, both in the file's order.

    Raises:
      FileNotFoundError: if there is no file at `path`, or a part is missing.
      ValueError: if a file is not well-formed GGUF; names the file, the field or tensor, found, expected.
    """
    path = Path(path)
    file = _read_one(path)
    count = file.metadata.get("split.count", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_PARTS:
        msg = f"{path}: split.count must be a number of parts up to {_MOST_PARTS}; found {count!r:.100}."
        raise ValueError(msg)
    return file if count < 2 else _joined(file, count)


def _joined(named: GGUFFile, count: int) -> GGUFFile:
    """All parts of the model that `named` is one of; llama.cpp's naming tells where the others are."""
    match = _PART.fullmatch(named.path.name)
    if match is None or int(match["count"]) != count:
        expected = f"NAME-00001-of-{count:05d}.gguf"
        msg = f"{named.path}: is one of {count} parts of a model, which must be called {expected} and so on."
        raise ValueError(msg)
    paths = [named.path.with_name(f"{match['name']}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        msg = f"{named.path}: is one of {count} parts of a model; missing beside it: {', '.join(absent[:5])}{more}."
        raise FileNotFoundError(msg)
    parts = [named if path == named.path else _read_one(path) for path in paths]
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts):
        found = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if found != (number, count):
            msg = f"{part.path}: split.no and split.count are {found}, expected {(number, count)}."
            raise ValueError(msg)
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            msg = f"{part.path}: tensor {twice[0]!r} is in an earlier part already; {len(twice)} such."
            raise ValueError(msg)
        tensors |= part.tensors
    total = parts[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        msg = f"{named.path}: split.tensors.count is {total}, but the {count} parts hold {len(tensors)} tensors."
        raise ValueError(msg)
    data = {path: values for part in parts for path, values in part.data.items()}
    return GGUFFile(named.path, parts[0].metadata, tensors, data)


def _read_one(path: Path) -> GGUFFile:
    if not path.is_file():
        msg = f"{path}: no such file."
        raise FileNotFoundError(msg)
    # mapping an empty file is an error of its own, so that case goes through the cursor as no bytes at all
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    cursor = _Cursor(path, data)
    if (magic := bytes(cursor.take(4, "magic"))) != _MAGIC:
        raise ValueError(cursor.fault("magic", f"found {magic!r}, expected {_MAGIC!r}; this is not a GGUF file"))
    if (version := cursor.number("<I", "version")) not in _VERSIONS:
        raise ValueError(
            cursor.fault("version", f"found {version}, expected one of {_VERSIONS} in little-endian order")
        )
    tensors, fields = cursor.number("<Q", "tensor count"), cursor.number("<Q", "metadata count")
    cursor.check_room(fields, _SMALLEST_FIELD, "metadata count")
    cursor.check_room(tensors, _SMALLEST_TENSOR, "tensor count")
    metadata = _unique(cursor, "metadata key", (_field(cursor) for _ in range(fields)))
    entries = _unique(cursor, "tensor", (_tensor_entry(cursor) for _ in range(tensors)))
    return GGUFFile(path, metadata, _located(cursor, entries, metadata), {path: data})


class _Cursor:
    """Reads forward through a file's bytes and refuses to run past their end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path = path
        self.bytes = data.data
        self.position = 0

    def fault(self, what: str, problem: str) -> str:
        return f"{self.path}: {what}: {problem}."

    def check_room(self, count: int, size: int, what: str) -> None:
        left = len(self.bytes) - self.position
        if count * size > left:
            problem = f"{count} x {size} bytes or more needed at byte {self.position}, only {left} are left"
            raise ValueError(self.fault(what, problem + "; the file is cut short or its header is damaged"))

    def take(self, size: int, what: str) -> memoryview:
        self.check_room(size, 1, what)
        taken = self.bytes[self.position : self.position + size]
        self.position += size
        return taken

    def number(self, code: str, what: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str) -> str:
        encoded = bytes(self.take(self.number("<Q", what), what))
        try:
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise ValueError(self.fault(what, f"not UTF-8 text ({error.reason} at byte {error.start})")) from None


def _unique(cursor: _Cursor, what: str, pairs: Iterable[tuple]) -> dict:
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(cursor.fault(f"{what} {name!r}", "given twice"))
        found[name] = value
    return found


def _field(cursor: _Cursor) -> tuple[str, Value]:
    key = cursor.string("metadata key")
    kind = cursor.number("<I", key)
    if kind == _STRING:
        return key, cursor.string(key)
    if kind != _ARRAY:
        return key, _scalars(cursor, key, kind, 1)[0].item()
    kind, count = cursor.number("<I", key), cursor.number("<Q", key)
    if kind != _STRING:
        return key, _scalars(cursor, key, kind, count)
    cursor.check_room(count, 8, key)
    return key, [cursor.string(key) for _ in range(count)]


def _scalars(cursor: _Cursor, key: str, kind: int, count: int) -> np.ndarray:
    if kind not in _SCALARS:
        raise ValueError(cursor.fault(key, f"value type {kind} is unknown or an array within an array"))
    dtype = np.dtype(_SCALARS[kind])
    cursor.check_room(count, dtype.itemsize, key)
    return np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype)


def _tensor_entry(cursor: _Cursor) -> tuple[str, TensorInfo]:
    """One row of the tensor table; `start` still counts from the beginning of the data section."""
    name = cursor.string("tensor name")
    rank = cursor.number("<I", f"tensor {name!r}")
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise ValueError(cursor.fault(f"tensor {name!r}", f"{rank} dimensions, expected 1 to {_MAX_DIMENSIONS}"))
    shape = tuple(cursor.number("<Q", f"tensor {name!r}") for _ in range(rank))[::-1]
    code, start = cursor.number("<I", f"tensor {name!r}"), cursor.number("<Q", f"tensor {name!r}")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise ValueError(cursor.fault(f"tensor {name!r}", f"unknown type number {code}")) from None
    if not _dequantizable(kind):
        raise ValueError(
            cursor.fault(f"tensor {name!r}", f"type {kind.name} cannot be turned into floats by the gguf package")
        )
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        problem = f"shape {shape}, expected positive sizes with a multiple of {block} last ({kind.name} blocks)"
        raise ValueError(cursor.fault(f"tensor {name!r}", problem))
    return name, TensorInfo(cursor.path, name, shape, kind, start, math.prod(shape) // block * block_bytes)


@cache
def _dequantizable(kind: GGMLQuantizationType) -> bool:
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _located(cursor: _Cursor, entries: dict[str, TensorInfo], metadata: dict[str, Value]) -> dict[str, TensorInfo]:
    """The tensor table with absolute positions; every tensor aligned, inside the file, on bytes of its own."""
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise ValueError(cursor.fault("general.alignment", f"found {alignment!r}, expected a positive multiple of 8"))
    base = -(-cursor.position // alignment) * alignment
    length = len(cursor.bytes)
    located = {name: info._replace(start=base + info.start) for name, info in entries.items()}
    end, before = base, ""
    for name, info in sorted(located.items(), key=lambda item: item[1].start):
        if (info.start - base) % alignment:
            problem = f"offset {info.start - base} is not a multiple of the alignment {alignment}"
            raise ValueError(cursor.fault(f"tensor {name!r}", problem))
        if info.start + info.size > length:
            problem = f"bytes {info.start} to {info.start + info.size} of a file of {length} bytes"
            raise ValueError(cursor.fault(f"tensor {name!r}", problem))
        if info.start < end:
            raise ValueError(
                cursor.fault(f"tensor {name!r}", f"begins at byte {info.start}, inside {before!r}, ending at {end}")
            )
        end, before = info.start + info.size, name
    return located
