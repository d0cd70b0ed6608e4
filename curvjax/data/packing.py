"""Documents as rows of tokens."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class Arrangement(NamedTuple):
    """Pieces in rows. row, column: `[N]` where in the batch each piece begins, in the order they were given."""

    batch: Batch
    row: Int[np.ndarray, " N"]
    column: Int[np.ndarray, " N"]


def pack(
    documents: Iterable[Document],
    tokenizer: Encoder,
    *,
    length: int,
    end: bool = False,
    prefix: Sequence[int] = (),
) -> Batch:
    """All documents as rows of `length` tokens, several to a row, none seeing another.

    A document of n tokens is n - 1 predictions, each counted once: its last token is a target only. Documents with a
    prompt count the predictions of `text` alone. Longer documents are cut, and each piece starts afresh at position 0
    without sight of what came before; a piece of prompt alone is dropped.

    Args:
      documents: what to pack.
      tokenizer: its `encode` adds no special tokens.
      length: tokens in a row.
      end: also predict `tokenizer.eos_id` after each document.
      prefix: ids to put before each document, such as `[tokenizer.bos_id]`; never predicted.

    Returns:
      A batch of all rows. Same documents, same rows.

    Raises:
      ValueError: if `length` is below 1; if `end` is asked of a tokenizer without an end; if no document has anything
        to predict.
    """
    if length < 1:
        msg = f"packing needs rows of at least one token; got length={length}."
        raise ValueError(msg)
    suffix = (tokenizer.eos_id,) if end else ()
    if None in suffix:
        msg = "end=True needs a tokenizer with an eos_id; this one has None."
        raise ValueError(msg)
    wholes = (_predictions(document, tokenizer, prefix, suffix) for document in documents)
    pieces = [piece for whole in wholes for piece in _cut(whole, length) if piece.weights.any()]
    if not pieces:
        msg = "nothing to predict: every document is shorter than two tokens; give longer ones, or end=True."
        raise ValueError(msg)
    return arrange(pieces, length=length).batch


def windows(documents: Iterable[Document], tokenizer: Encoder, *, length: int, max_tokens: int | None = None) -> Batch:
    """The texts joined by blank lines and cut into rows of `length`, whatever their borders: the usual perplexity.

    Within a row every token sees all before it; the last one predicts nothing, so `length - 1` predictions count. What
    is left after the last full row, and everything from token `max_tokens` on, is not used.

    Raises:
      ValueError: if there are fewer than `length` tokens.
    """
    ids = tokenizer.encode("\n\n".join(document.prompt + document.text for document in documents))[:max_tokens]
    if length < 2 or len(ids) < length:
        msg = f"one window of {length} tokens (at least 2) needs as many; the texts have {len(ids)}."
        raise ValueError(msg)
    tokens = np.asarray(ids[: len(ids) // length * length], np.int32).reshape(-1, length)
    pieces = [Piece(row, np.append(row[1:], 0), np.append(np.ones(length - 1), 0)) for row in tokens]
    return arrange(pieces, length=length).batch


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
    batch = Batch(*map(jnp.asarray, (tokens, targets, weights, positions, segments)))
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
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(rows, jnp.int32)], batch)


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
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, missing), (0, 0))), batch)
    for start in range(0, rows, size):
        yield jax.tree.map(lambda leaf: leaf[start : start + size], padded)  # noqa: B023  used at once


def _predictions(document: Document, tokenizer: Encoder, prefix: Sequence[int], suffix: Sequence[int | None]) -> Piece:
    ids, given = encode_pair(tokenizer, document.prompt, document.text)
    whole = np.asarray([*prefix, *ids, *suffix], np.int32)
    weights = np.arange(1, len(whole)) >= len(prefix) + given
    return Piece(whole[:-1], whole[1:], weights.astype(np.float32))


def _cut(piece: Piece, length: int) -> Iterator[Piece]:
    for start in range(0, len(piece.tokens), length):
        yield Piece(*(part[start : start + length] for part in piece))


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
