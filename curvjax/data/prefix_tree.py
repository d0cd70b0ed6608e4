"""Texts in rows that hold each common beginning once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from curvjax.data.batch import SharedRows

_OPEN = 8  # rows that still take texts; more would fill no better, and every text is compared with each


class SharedArrangement(NamedTuple):
    """Where texts lie. row: `[N]`. columns: for each text those of its tokens. tokens: in all rows, without padding."""

    rows: SharedRows
    row: Int[np.ndarray, " N"]
    columns: list[np.ndarray]
    tokens: int


def share_prefixes(texts: Sequence[Sequence[int]], *, length: int) -> SharedArrangement:
    """Token ids in rows of `length`, each common beginning once in a row.

    In lexicographic order a text has its longest common beginning with a neighbour, and to lay it after the last one
    less what the two share is to lay a prefix tree depth first: what continues a token is then a run of columns. A text
    goes into the row, of the last few, in which it adds least, and of such into the fullest.

    Args:
      texts: each of at least one token.
      length: tokens in a row.

    Raises:
      ValueError: if a text is empty, or longer than a row.
    """
    sizes = [len(text) for text in texts]
    if not sizes or min(sizes) < 1 or max(sizes) > length:
        found = f"from {min(sizes)} to {max(sizes)}" if sizes else "none"
        msg = f"rows of {length} take texts of 1 to {length} tokens; got {found}: make rows longer, or cut the texts."
        raise ValueError(msg)
    rows: list[_Row] = []
    row, columns = np.zeros(len(texts), int), [np.zeros(0, int)] * len(texts)
    for number in sorted(range(len(texts)), key=lambda one: tuple(texts[one])):
        row[number], columns[number] = _placed(rows, texts[number], length)
    return SharedArrangement(_as_arrays(rows, length), row, columns, sum(len(one.tokens) for one in rows))


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass
class _Row:
    """A row while it is filled. last: the text laid last; path: its tokens' columns."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    reach: list[int] = field(default_factory=list)
    last: Sequence[int] = ()
    path: list[int] = field(default_factory=list)

    def lay(self, text: Sequence[int]) -> np.ndarray:
        shared, filled = common_beginning(self.last, text), len(self.tokens)
        self.close(shared)
        self.tokens += text[shared:]
        self.positions += range(shared, len(text))
        self.reach += [0] * (len(text) - shared)
        self.last, self.path = text, [*self.path[:shared], *range(filled, len(self.tokens))]
        return np.asarray(self.path)

    def close(self, depth: int) -> None:
        for column in self.path[depth:]:  # nothing more will continue these
            self.reach[column] = len(self.tokens) - 1 - column


def _placed(rows: list[_Row], text: Sequence[int], length: int) -> tuple[int, np.ndarray]:
    last = range(max(len(rows) - _OPEN, 0), len(rows))
    shared = {number: common_beginning(rows[number].last, text) for number in last}
    fitting = [n for n in last if len(rows[n].tokens) + len(text) - shared[n] <= length]
    if not fitting:
        rows.append(_Row())
    best = max(fitting, key=lambda n: (shared[n], len(rows[n].tokens)), default=len(rows) - 1)
    return best, rows[best].lay(text)


def _as_arrays(rows: Sequence[_Row], length: int) -> SharedRows:
    arrays = np.zeros((3, len(rows), length), np.int32)
    for number, row in enumerate(rows):
        row.close(0)
        arrays[:, number, : len(row.tokens)] = row.tokens, row.positions, row.reach
    return SharedRows(*map(jnp.asarray, arrays))
