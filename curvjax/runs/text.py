"""Texts for the commands: documents, the rows of tokens that they become, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from curvjax.data import Batch, Document, Packed, documents_hash, packed_rows, read_documents, sample, split_documents
from curvjax.evaluation import require_positions
from curvjax.models import Loaded, require_decoder
from curvjax.records import TextOrigin


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Settings = TypeVar("Settings", bound=_Dataclass)


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How much of a text is read, and in what rows."""

    tokens: int = 512
    """Tokens to read."""
    length: int = 256
    """Tokens in a row."""
    text_seed: int = 0
    """Of the order in which documents are used."""

    def __post_init__(self) -> None:
        """Refuse less than a row."""
        for name in ("tokens", "length"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be positive, got {getattr(self, name)!r}."
                raise ValueError(msg)
        if self.tokens < self.length:
            msg = f"need tokens >= length, got {self.tokens} and {self.length} tokens."
            raise ValueError(msg)


class Text(NamedTuple):
    """Rows of packed tokens. documents: in the order in which they were used. origin: for records.

    Example:
      >>> import curvjax as cj
      >>> text = cj.read("demo:squad", cj.load("glassllm"), tokens=128, length=64)
      >>> text.origin.source, text.origin.sequences
      ('demo:squad', 2)
    """

    batch: Batch
    origin: TextOrigin
    documents: tuple[Document, ...]


def read(source: str | Path, loaded: Loaded, settings: TextSettings | None = None, **changes: int) -> Text:
    """Rows of a text for a model: its documents, shuffled by a seed, encoded and packed.

    Args:
      source: `.txt` or `.jsonl` file, directory of such, `demo:NAME` or `task:NAME`; see `curvjax.data.read_documents`.
      loaded: the model, whose tokenizer decides how texts begin.
      settings: how much; `TextSettings()` if None.
      **changes: fields of `TextSettings` to change.

    Returns:
      A `Text`.

    Raises:
      ValueError: if the documents fill fewer rows, or hold tokens or positions that the model lacks.

    Example:
      >>> import curvjax as cj
      >>> text = cj.read("demo:squad", cj.load("glassllm"), tokens=128, length=64)
      >>> text.batch.tokens.shape
      (2, 64)
    """
    require_decoder(loaded, "read")
    chosen = changed(settings or TextSettings(), changes)
    documents = read_documents(str(source))
    return packed_text(sample(documents, len(documents), seed=chosen.text_seed), loaded, chosen, source=str(source))


def packed_text(documents: Sequence[Document], loaded: Loaded, settings: TextSettings, *, source: str) -> Text:
    """As many rows as hold `settings.tokens`, from documents in the order given.

    Raises:
      ValueError: if the documents fill fewer rows, or hold tokens or positions that the model lacks.
    """
    rows, length, documents = -(-settings.tokens // settings.length), settings.length, list(documents)
    found = packed_rows(documents[: 8 * rows], loaded.tokenizer, length=length)
    if found.batch.tokens.shape[0] < rows and len(documents) > 8 * rows:
        found = packed_rows(documents, loaded.tokenizer, length=length)
    if found.batch.tokens.shape[0] < rows:
        count = found.batch.tokens.shape[0]
        msg = f"{len(documents)} documents fill {count} rows of {length} tokens; {rows} are needed."
        raise ValueError(msg)
    found = found.first(rows)
    require_known(found.batch, loaded)
    return Text(found.batch, text_origin(found, loaded, documents, source=source), tuple(documents))


def text_origin(rows: Packed, loaded: Loaded, documents: Sequence[Document], *, source: str) -> TextOrigin:
    """Where rows of these documents come from."""
    around, (sequences, length) = loaded.tokenizer.around, rows.batch.tokens.shape
    return TextOrigin(
        source=source,
        sha256=documents_hash(list(documents)),
        tokens=int(rows.batch.weights.sum()),
        sequences=sequences,
        length=length,
        begin_of_text=around.begin_of_text,
        end_of_text=around.end_of_text,
        cut=tuple(rows.cut),
    )


class JudgedTexts(NamedTuple):
    """Texts that share no document, for a comparison by outcome: to calibrate on, to select by, to test on by name.

    scored: what scores look at, of the calibration documents.
    """

    scored: Text
    calibration: Text
    selection: Text
    tests: dict[str, Text]


def judged_texts(
    loaded: Loaded, data: str, others: Sequence[str], settings: TextSettings, test_tokens: int
) -> JudgedTexts:
    """A text split by document, 40% for calibration, 20% to select by and 40% to test on, and others to test on.

    Calibration and selection have at least 2048 tokens.

    Raises:
      ValueError: if a part fills too few rows, or a text to test on shares a document with the others.
    """
    parts = split_documents(read_documents(data), seed=settings.text_seed, shares=(0.4, 0.2, 0.4))
    much = replace(settings, tokens=max(settings.tokens, 2048))
    tested = replace(settings, tokens=test_tokens)
    tests = {data: parts.test} | {other: read_documents(other) for other in others}
    found = JudgedTexts(
        packed_text(parts.calibration, loaded, settings, source=data),
        packed_text(parts.calibration, loaded, much, source=data),
        packed_text(parts.selection, loaded, much, source=data),
        {name: packed_text(documents, loaded, tested, source=name) for name, documents in tests.items()},
    )
    require_apart(calibration=found.calibration, selection=found.selection, **found.tests)
    return found


def with_validation(text: Text, loaded: Loaded, settings: TextSettings) -> tuple[Text, Text]:
    """The same text in two that share no document: three of four for calibration, every fourth for validation.

    Raises:
      ValueError: if either fills too few rows.
    """
    kept = [document for place, document in enumerate(text.documents) if place % 4 != 3]
    parts = (kept, text.documents[3::4])
    calibration, validation = (packed_text(part, loaded, settings, source=text.origin.source) for part in parts)
    return calibration, validation


def require_apart(**texts: Text) -> None:
    """Do nothing if no two of these texts share a document.

    Raises:
      ValueError: if two do; the message names both, and some documents.
    """
    seen: dict[str, str] = {}  # by content, not by id: files of two directories share names
    for name, text in texts.items():
        shared = sorted(
            (document.id, seen[document.content]) for document in text.documents if document.content in seen
        )
        if shared:
            ids = [document for document, _ in shared[:3]]
            msg = f"{len(shared)} documents are in {shared[0][1]} and {name}, e.g. {ids}; give texts apart."
            raise ValueError(msg)
        seen |= {document.content: name for document in text.documents}


def changed(settings: Settings | type[Settings], changes: Mapping[str, Any]) -> Settings:
    """Settings, or the defaults of a kind of them, with some fields changed.

    Raises:
      ValueError: if a field is unknown, or its value out of range.
    """
    known = [field.name for field in fields(settings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        kind = settings if isinstance(settings, type) else type(settings)
        msg = f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}."
        raise ValueError(msg)
    return settings(**changes) if isinstance(settings, type) else replace(settings, **changes)


def require_known(batch: Batch, loaded: Loaded) -> None:
    """Do nothing if the model has the tokens and the positions of these rows.

    Raises:
      ValueError: if it lacks one.
    """
    config, ids = loaded.config, np.concatenate([batch.tokens, batch.targets])
    if not 0 <= ids.min() <= ids.max() < config.vocab_size:
        msg = (
            f"the texts' token ids run from {ids.min()} to {ids.max()}, the model's from 0 to {config.vocab_size - 1}: "
            "the tokenizer belongs to another model."
        )
        raise ValueError(msg)
    require_positions(config, 1 + int(batch.positions.max()), what="a document")
