"""Calibration rows for the commands: as many tokens as asked for, checked against the model."""

import numpy as np

from curvjax.data import Batch, Document, Packed, packed
from curvjax.models import Loaded


def calibration_batch(documents: list[Document], loaded: Loaded, *, tokens: int, length: int) -> Batch:
    """Rows of packed calibration tokens, as many as hold `tokens` in all.

    Raises:
      ValueError: if the documents hold fewer rows, or tokens or positions that the model lacks.
    """
    return calibration_rows(documents, loaded, tokens=tokens, length=length).batch


def calibration_rows(documents: list[Document], loaded: Loaded, *, tokens: int, length: int) -> Packed:
    """The rows of `calibration_batch`, and what was cut to fill them.

    Raises:
      ValueError: as `calibration_batch`.
    """
    rows = -(-tokens // length)
    found = packed(documents[: 8 * rows], loaded.tokenizer, length=length)
    if found.batch.tokens.shape[0] < rows and len(documents) > 8 * rows:
        found = packed(documents, loaded.tokenizer, length=length)
    if found.batch.tokens.shape[0] < rows:
        count = found.batch.tokens.shape[0]
        msg = f"{len(documents)} documents fill {count} rows of {length} tokens; {rows} are needed."
        raise ValueError(msg)
    found, config = found.first(rows), loaded.config
    batch = found.batch
    ids = np.concatenate([batch.tokens, batch.targets])
    if not 0 <= ids.min() <= ids.max() < config.vocab_size:
        msg = (
            f"the texts' token ids run from {ids.min()} to {ids.max()}, the model's from 0 to {config.vocab_size - 1}: "
            "the tokenizer belongs to another model."
        )
        raise ValueError(msg)
    if config.rope is None and batch.positions.max() >= config.max_positions:
        msg = f"rows of {length} tokens need as many positions; the model has learned {config.max_positions}."
        raise ValueError(msg)
    return found
