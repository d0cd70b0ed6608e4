"""Documents from text files, JSON lines and directories of either."""

import gzip
import json
import zlib
from collections import Counter
from pathlib import Path

from curvjax.data.documents import Document
from curvjax.data.tokens import require_unicode

_TEXT, _LINES = "text", "JSON lines"
_KINDS = {".txt": _TEXT, ".jsonl": _LINES, ".jsonl.gz": _LINES}


def read_path(path: Path) -> list[Document]:
    """Documents of a file, or of all such files of a directory and the folders below it, in sorted order.

    All are UTF-8. A `.txt` file is one document. A `.jsonl` or `.jsonl.gz` file has one JSON object a line, `{"text"}`
    or `{"prompt", "completion"}`; other keys are not looked at. Blank lines, blank texts and blank completions are left
    out; so are files of other kinds and hidden ones in a directory.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if a file is of an unknown kind, empty, undecodable, or has a line that is no such object or holds
        half of a surrogate pair; if kinds are mixed; if no document remains.
    """
    if not path.exists():
        msg = f"{path}: no such file or directory."
        raise FileNotFoundError(msg)
    files = _directory_files(path) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    documents = [document for file in files for document in _read_file(file, str(file.relative_to(root)))]
    if not documents:
        msg = f"{path}: no usable documents in {len(files)} file(s): every text is blank."
        raise ValueError(msg)
    return documents


def _kind(path: Path) -> str | None:
    return next((kind for suffix, kind in _KINDS.items() if path.name.lower().endswith(suffix)), None)


def _directory_files(directory: Path) -> list[Path]:
    inside = (file for file in sorted(directory.rglob("*")) if file.is_file())
    visible = [f for f in inside if not any(part.startswith(".") for part in f.relative_to(directory).parts)]
    files = [file for file in visible if _kind(file)]
    counts = Counter(_kind(file) for file in files)
    if not files:
        found = sorted({file.suffix or file.name for file in visible})[:5]
        msg = f"{directory}: no {', '.join(_KINDS)} file among {len(visible)} files; found {found or 'nothing'}."
        raise ValueError(msg)
    if len(counts) > 1:
        msg = f"{directory}: mixed kinds of documents, {dict(counts)}; put each kind in a directory of its own."
        raise ValueError(msg)
    return files


def _read_file(path: Path, name: str) -> list[Document]:
    kind = _kind(path)
    if kind is None:
        msg = f"{path}: unknown kind of file; allowed are {', '.join(_KINDS)}."
        raise ValueError(msg)
    text = _decoded(path)
    if kind == _TEXT:
        return [Document(name, text)] if text.strip() else []
    return _read_lines(path, name, text)


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if not raw:
        msg = f"{path}: the file is empty."
        raise ValueError(msg)
    if path.name.lower().endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            msg = f"{path}: not a whole gzip file: {error}."
            raise ValueError(msg) from error
    if (nul := raw.find(0)) >= 0:  # UTF-8 as well, so that UTF-16 without a mark would pass for text
        msg = f"{path}: byte {nul} is NUL: UTF-16, or no text at all; convert it to UTF-8 first."
        raise ValueError(msg)
    try:
        return raw.decode().removeprefix("\ufeff")  # a byte order mark is not text
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 at byte {error.start} ({raw[error.start : error.start + 4]!r}); convert it first."
        raise ValueError(msg) from error


def _read_lines(path: Path, name: str, text: str) -> list[Document]:
    documents, first = [], None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _record(where, line)
        keys = ("prompt", "completion") if "prompt" in record else ("text",)
        first = keys if first is None else first
        if keys != first:
            msg = f"{where}: mixed kinds of documents, {keys} after lines with {first}; use one file for each."
            raise ValueError(msg)
        *given, predicted = (record[key] for key in keys)
        if predicted.strip():
            documents.append(Document(f"{name}:{number}", predicted, prompt="".join(given)))
    return documents


def _record(where: str, line: str) -> dict[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of a thousand digits are no JSONDecodeError
        msg = f"{where}: not JSON: {error}."
        raise ValueError(msg) from error
    found = sorted(record) if isinstance(record, dict) else type(record).__name__
    kinds = ({"text"}, {"prompt", "completion"})
    if not isinstance(record, dict) or record.keys() & set.union(*kinds) not in kinds:
        msg = (
            f"{where}: need either 'text', or 'prompt' and 'completion', not both; found {found}. Rename the one to "
            "predict to 'completion' if a prompt comes before it; take the other out if not."
        )
        raise ValueError(msg)
    for key in sorted(record.keys() & set.union(*kinds)):
        if not isinstance(record[key], str):
            msg = f"{where}: every value must be a string; found {{{key!r}: {type(record[key]).__name__!r}}}."
            raise ValueError(msg)
        try:
            require_unicode(record[key])
        except ValueError as error:
            msg = f"{where}: {key!r}: {error}"
            raise ValueError(msg) from error
    return record
