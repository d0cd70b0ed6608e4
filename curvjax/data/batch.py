"""The shapes in which token data reach a model."""

from typing import NamedTuple, TypeVar

from jaxtyping import Array, Float, Int


class Batch(NamedTuple):
    """Packed token rows.

    tokens: `[B, T]` inputs. targets: `[B, T]` the token to predict at each position. weights: `[B, T]` 1 where that
    prediction counts in the mean [M1], 0 on padding, on the last token of a document and on prompts. positions:
    `[B, T]` place in the document, from 0. segments: `[B, T]` number of the document in its row, from 1; 0 is padding.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]


class SharedRows(NamedTuple):
    """Rows of prefix trees: a text is a path from a root, and a common beginning is there once in its row.

    tokens: `[B, T]`. positions: `[B, T]` place in the text, from 0. reach: `[B, T]` how many columns after a token the
    last one lies that continues it; 0 on padding.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    reach: Int[Array, "B T"]


AnyRows = TypeVar("AnyRows", bound=Batch | SharedRows)
