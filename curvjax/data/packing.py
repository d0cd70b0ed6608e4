"""Documents as rows of tokens."""

import warnings
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from curvjax.data.batch import AnyRows, Batch
from curvjax.data.documents import Document
from curvjax.data.tokens import Encoder, encode_pair


class Piece(NamedTuple):
    """What lies in one row as one segment. tokens, targets: `[n]`. weights: `[n]` 1 where the prediction counts."""

    tokens: Int[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


class Truncation(NamedTuple):
    """What rows did not hold whole.

    prompts: how many lost their beginning. tokens: how many tokens of prompts were left out in all. completions: how
    many were longer than a row, and are predicted in pieces.
    """

    prompts: int
    tokens: int
    completions: int


class Packed(NamedTuple):
    """Rows, and what was cut to fill them.

    cuts: `[B, 3]` the numbers of `Truncation` for documents that begin in the row.
    """

    batch: Batch
    cuts: Int[np.ndarray, "B 3"]

    @property
    def cut(self) -> Truncation:
        """Of all rows."""
        return Truncation(*self.cuts.sum(axis=0).tolist())

    def first(self, rows: int) -> "Packed":
        """The first rows alone."""
        return self.rows(range(rows))

    def rows(self, rows: Sequence[int] | np.ndarray) -> "Packed":
        """The given rows alone, in the order given."""
        return Packed(take(self.batch, rows), self.cuts[np.asarray(rows)])


class Arrangement(NamedTuple):
    """Pieces in rows. row, column: `[N]` where in the batch each piece begins, in the order they were given."""

    batch: Batch
    row: Int[np.ndarray, " N"]
    column: Int[np.ndarray, " N"]


def pack(documents: Iterable[Document], tokenizer: Encoder, *, length: int, end: bool = False) -> Batch:
    """The rows of `packed_rows`.

    Raises:
      ValueError: as `packed_rows`.
    """
    return packed_rows(documents, tokenizer, length=length, end=end).batch


def packed_rows(documents: Iterable[Document], tokenizer: Encoder, *, length: int, end: bool = False) -> Packed:
    """All documents as rows of `length` tokens, several to a row, none seeing another.

    Every document begins with the tokenizer's `begin`, which is read and never predicted, and its first own token is
    predicted from there: n tokens are n predictions with a begin and n - 1 without, each counted once. Documents with a
    prompt count the predictions of `text` alone.

    Documents longer than a row are cut, and each piece starts afresh at position 0 without sight of what came before.
    Each begins with `begin` again, whose prediction then does not count: to the model a piece is a text of its own, and
    models lean on their first token as on no other (attention sinks); llama.cpp's perplexity does so in each window.
    Of a prompt that does not fit, the last tokens stay in one row with the whole completion; before a completion longer
    than a row, those that fill half of it. Cut prompts are counted, and warned of.

    Args:
      documents: what to pack.
      tokenizer: its `encode` adds no special tokens.
      length: tokens in a row.
      end: also predict `tokenizer.eos_id` after each document; what the tokenizer's `end` asks for is predicted anyway.

    Returns:
      All rows. Same documents, same rows.

    Raises:
      ValueError: if a row holds no token beside `begin`; if `end` is asked of a tokenizer without an end; if a text
        cannot be encoded; if no document has anything to predict.

    Source: attention sinks are those of Xiao et al. 2024 (arXiv:2309.17453).
    """
    room = length - len(tokenizer.begin)
    if room < 1:
        beside = f" beside the {len(tokenizer.begin)} that begin a text" if tokenizer.begin else ""
        msg = f"packing needs rows of at least one token{beside}; got length={length}."
        raise ValueError(msg)
    suffix = list(tokenizer.end)
    if end and not suffix:
        if tokenizer.eos_id is None:
            msg = "end=True needs a tokenizer with an eos_id; this one has None."
            raise ValueError(msg)
        suffix = [tokenizer.eos_id]
    pieces: list[Piece] = []
    begins, cuts = [], []
    for document in documents:
        whole, cut = _shortened(_encoded(document, tokenizer, suffix), length, prompted=bool(document.prompt))
        made = [piece for piece in _cut(whole, length) if piece.weights.any()]
        begins += [len(pieces)] * bool(made)
        cuts += [cut] * bool(made)
        pieces += made
    if not pieces:
        msg = "nothing to predict: every document is shorter than two tokens; give longer ones, or end=True."
        raise ValueError(msg)
    placed = arrange(pieces, length=length)
    counts = np.zeros((len(placed.batch.tokens), 3), int)
    np.add.at(counts, placed.row[begins], cuts)
    found = Packed(placed.batch, counts)
    _warn(found.cut, len(begins), length)
    return found


def windows(documents: Iterable[Document], tokenizer: Encoder, *, length: int, max_tokens: int | None = None) -> Batch:
    """The texts joined by blank lines and cut into rows of `length`, whatever their borders: the usual perplexity.

    Within a row every token sees all before it. Each row begins with the tokenizer's `begin`, for the reason given in
    `packed_rows`; its first token of text is not predicted, with or without a begin, so `length - len(begin) - 1`
    predictions count. What is left after the last full row, and everything from token `max_tokens` on, is not used.

    Raises:
      ValueError: if there are fewer tokens than fill a row.
    """
    ids = tokenizer.encode("\n\n".join(document.prompt + document.text for document in documents))[:max_tokens]
    begin = np.asarray(tokenizer.begin, np.int32)
    room = length - len(begin)
    if room < 2 or len(ids) < room:
        msg = f"one window of {room} tokens (at least 2) needs as many; the texts have {len(ids)}."
        raise ValueError(msg)
    tokens = np.asarray(ids[: len(ids) // room * room], np.int32).reshape(-1, room)
    rows = [np.concatenate([begin, row]) for row in tokens]
    weights = np.asarray([0] * len(begin) + [1] * (room - 1) + [0])
    return arrange([Piece(row, np.append(row[1:], 0), weights) for row in rows], length=length).batch


def arrange(pieces: Sequence[Piece], *, length: int) -> Arrangement:
    """Each piece into the fullest row of `length` tokens that still holds it (best fit, in the order given).

    Raises:
      ValueError: if a piece is longer than a row.
    """
    longest = max((len(piece.tokens) for piece in pieces), default=0)
    if longest > length:
        msg = f"a piece of {longest} tokens does not fit into rows of {length}; make them longer, or cut it."
        raise ValueError(msg)
    row, column, segment, rows = _best_fit([len(piece.tokens) for piece in pieces], length)
    ints = np.zeros((4, rows, length), np.int32)
    tokens, targets, positions, segments = ints
    weights = np.zeros((rows, length), np.float32)
    for piece, r, start, number in zip(pieces, row, column, segment, strict=True):
        place = slice(start, start + len(piece.tokens))
        tokens[r, place], targets[r, place], weights[r, place] = piece
        positions[r, place] = np.arange(len(piece.tokens))
        segments[r, place] = number
    batch = Batch(*map(jax.device_put, (tokens, targets, weights, positions, segments)))
    return Arrangement(batch, np.asarray(row), np.asarray(column))


def take(batch: Batch, rows: Sequence[int] | np.ndarray) -> Batch:
    """The given rows, in the order given.

    Raises:
      ValueError: if a row is not there.
    """
    count = batch.tokens.shape[0]
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong:
        msg = f"no row {wrong[0]}: the batch has rows 0 to {count - 1}."
        raise ValueError(msg)
    places = jax.device_put(np.asarray(rows, np.int32))
    return jax.tree.map(lambda leaf: leaf[places], batch)  # where they lie: training takes rows at every step


def microbatches(batch: AnyRows, size: int) -> Iterator[AnyRows]:
    """The batch in parts of `size` rows, the last filled up with rows of padding: one shape, one compilation.

    Yields:
      The same of `[size, T]`.

    Raises:
      ValueError: if `size` is below 1.
    """
    if size < 1:
        msg = f"a microbatch needs at least one row; got size={size}."
        raise ValueError(msg)
    rows = batch.tokens.shape[0]
    missing = -rows % size
    # On the host, and `device_put`: `jnp.asarray` too compiles for each shape.
    padded = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), ((0, missing), (0, 0))), batch)
    for start in range(0, rows, size):
        yield jax.tree.map(lambda leaf: jax.device_put(leaf[start : start + size]), padded)  # noqa: B023  used at once


class _Whole(NamedTuple):
    """Ids of a document: the first `begin` stand before every piece, the first `given` are not predicted."""

    ids: list[int]
    begin: int
    given: int


def _encoded(document: Document, tokenizer: Encoder, suffix: Sequence[int]) -> _Whole:
    try:
        ids, given = encode_pair(tokenizer, document.prompt, document.text)
    except ValueError as error:
        msg = f"document {document.id!r}: {error}"
        raise ValueError(msg) from error
    return _Whole([*ids, *suffix], len(tokenizer.begin), max(given, len(tokenizer.begin), 1))


def _shortened(whole: _Whole, length: int, *, prompted: bool) -> tuple[_Whole, Truncation]:
    """The document with as much of its prompt's end as `length` predictions leave room for, and what that cut."""
    ids, begin, given = whole
    if not prompted or len(ids) - 1 <= length:
        return whole, Truncation(0, 0, 0)
    room = length + 1 - begin - (len(ids) - given)
    split = room < 1 - min(begin, 1)  # no row holds the completion behind one token
    kept = min(given - begin, max((length - begin) // 2, 1) if split else room)
    left_out = given - begin - kept
    shorter = _Whole([*ids[:begin], *ids[given - kept :]], begin, begin + kept)
    return shorter, Truncation(int(left_out > 0), left_out, int(split))


def _cut(whole: _Whole, length: int) -> Iterator[Piece]:
    ids, begin = np.asarray(whole.ids, np.int32), whole.begin
    weights = (np.arange(1, len(ids)) >= whole.given).astype(np.float32)
    yield Piece(ids[:-1][:length], ids[1:][:length], weights[:length])
    for start in range(length, len(ids) - 1, length - begin):
        stop = start + length - begin
        tokens = np.concatenate([ids[:begin], ids[:-1][start:stop]])
        targets = np.append(tokens[1:], ids[min(stop, len(ids) - 1)])
        yield Piece(tokens, targets, np.concatenate([np.zeros(begin, np.float32), weights[start:stop]]))


def _warn(cut: Truncation, documents: int, length: int) -> None:
    said = [
        f"{cut.prompts} of {documents} prompts did not fit into rows of {length} tokens: their first tokens, "
        f"{cut.tokens:,} in all, are left out, and the last stay with what is predicted."
    ] * bool(cut.prompts)
    said += [
        f"{cut.completions} of {documents} completions are longer than a row of {length} tokens, and are predicted in "
        "pieces."
    ] * bool(cut.completions)
    if said:
        warnings.warn(" ".join([*said, "Longer rows (length) hold more."]), stacklevel=4)


def _best_fit(sizes: Sequence[int], length: int) -> tuple[list[int], list[int], list[int], int]:
    """For each size its row, its first column and its number in the row from 1; and how many rows there are."""
    room: list[tuple[int, int]] = []  # (free columns, row), sorted
    row, column, segment, filled = [], [], [], []
    for size in sizes:
        at = bisect_left(room, (size, -1))
        if at < len(room):
            free, chosen = room.pop(at)
        else:
            free, chosen = length, len(filled)
            filled.append(0)
        filled[chosen] += 1
        row.append(chosen)
        column.append(length - free)
        segment.append(filled[chosen])
        insort(room, (free - size, chosen))
    return row, column, segment, len(filled)
