"""From text to token ids, with the border between what is given and what is predicted."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Encoder(Protocol):
    """The part of a tokenizer that data need: `encode` adds no special tokens; `eos_id` is None if there is none."""

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document."""

    @property
    def begin(self) -> Sequence[int]:
        """Ids before every text: a model that was trained behind them was never without. Often one, or none."""

    @property
    def end(self) -> Sequence[int]:
        """Ids after every whole text; mostly none."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of `text`."""


def encode_pair(tokenizer: Encoder, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of `context + continuation` behind the tokenizer's `begin`, and how many of them are given.

    Both are tokenised together, and cut where the context's own tokens end; blanks that end the context count as the
    continuation's, because tokenizers put them in front of the next word. A text that brings `begin` itself, as one
    that a chat template made, gets no second.

    Returns:
      The ids, and the number of those that are begin or context. At least one token is left to the continuation.

    Source: `_encode_pair` of EleutherAI's lm-evaluation-harness.
    """
    text = list(tokenizer.encode(context + continuation))
    whole = with_begin(tokenizer, text)
    given = len(whole) - len(text) + len(tokenizer.encode(context.rstrip()))
    given = max(given, min(len(tokenizer.begin), len(whole)))  # a begin that the text brings is given too
    return whole, min(given, max(len(whole) - 1, 0))


def with_begin(tokenizer: Encoder, ids: Sequence[int]) -> list[int]:
    """The ids behind the tokenizer's `begin`, once."""
    begin = list(tokenizer.begin)
    return list(ids) if list(ids[: len(begin)]) == begin else [*begin, *ids]


def require_unicode(text: str) -> None:
    """Refuse what no UTF-8 file can hold.

    Raises:
      ValueError: if `text` has half of a surrogate pair; says which, and where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        msg = (
            f"{half} at character {error.start} is half of a surrogate pair and no character; U+FFFD may stand for it."
        )
        raise ValueError(msg) from error
