"""Log-probabilities of continuations of contexts, with every common beginning read once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from curvjax.data import SharedArrangement, common_beginning, share_prefixes
from curvjax.evaluation.scoring import Targets, require_positions, target_log_probabilities
from curvjax.models import Decoder
from curvjax.tick import Tick

_EVEN = 1536  # columns of a row at which attention costs a small model on a CPU as much as all the rest
_WIDEST = 2048  # columns: scores of attention take the square of it in memory


class EncodedPair(NamedTuple):
    """What is given and what is predicted after it, token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Continuations(NamedTuple):
    """log_probability: `[N]` nats of each continuation after its context.

    greedy: `[N]` whether each of its tokens is a likeliest one. tokens_read: by the model for all of them, without
    padding, shared beginnings counted once for each row that holds them. tokens: in all pairs, as if none were shared.
    """

    log_probability: Float[np.ndarray, " N"]
    greedy: Bool[np.ndarray, " N"]
    tokens_read: int
    tokens: int


def continuation_scores(
    model: Decoder,
    pairs: Sequence[EncodedPair],
    *,
    length: int = 128,
    rows_at_once: int = 16,
    progress: Tick | None = None,
) -> Continuations:
    """sum_t log p(continuation_t | context, continuation_<t) for every pair.

    Pairs lie in rows of `length` tokens, as trees: a beginning that several have in common (examples before the
    question, a context with several continuations, a continuation that begins another) is read once in a row. Rows are
    longer where all pairs begin with many of the same tokens; pairs that fit into none go into rows twice as long, and
    so on: few compilations, little padding.

    Args:
      model: used through `embed`, `layers` and `readout` alone.
      pairs: at least one.
      length: tokens in the shortest rows.
      rows_at_once: rows of `length` in memory at a time; fewer of longer ones.
      progress: told `(done, all)` rows after each microbatch.

    Raises:
      ValueError: if there is no pair, one has an empty half or is longer than the model was made for; if a
        log-probability is not finite.
    """
    if not pairs or not all(pair.context and pair.continuation for pair in pairs):
        msg = f"each of {len(pairs)} pairs needs a token of context and one to predict, and there must be a pair."
        raise ValueError(msg)
    texts = [(*pair.context, *pair.continuation[:-1]) for pair in pairs]
    require_positions(model.config, max(map(len, texts)), what="a context and its continuation")
    sizes = _widths(texts, length)
    parts = [np.flatnonzero(sizes == width) for width in np.unique(sizes)]
    placed = [share_prefixes([texts[i] for i in part], length=int(sizes[part[0]])) for part in parts]
    rows = np.cumsum([0, *(len(one.rows.tokens) for one in placed)])
    total, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    for part, one, before in zip(parts, placed, rows[:-1], strict=True):
        targets, owner = _targets([pairs[i] for i in part], one)
        scores = target_log_probabilities(
            model,
            one.rows,
            targets,
            rows_at_once=-(-rows_at_once * length // one.rows.tokens.shape[1]),
            progress=_continued(progress, int(before), int(rows[-1])),
        )
        total[part] = np.bincount(owner, scores.log_probability)
        greedy[part[owner[~scores.greedy]]] = False
    if not np.isfinite(total).all():
        msg = f"the model gives {np.sum(~np.isfinite(total))} of {len(total)} continuations no finite log-probability."
        raise ValueError(msg)
    return Continuations(total, greedy, sum(one.tokens for one in placed), sum(map(len, texts)))


def _widths(texts: Sequence[tuple[int, ...]], length: int) -> Int[np.ndarray, " N"]:
    """Tokens in the row of each text.

    With P columns that every row repeats, rows of W cost W (1 + W / _EVEN) for W - P columns of news: least, for each
    of these, at W = P + sqrt(P (P + _EVEN)).
    """
    sizes = np.asarray([len(text) for text in texts])
    repeated = common_beginning(min(texts), max(texts))
    all_in_one = repeated + np.sum(sizes - repeated)
    best = min(repeated + math.sqrt(repeated * (repeated + _EVEN)), all_in_one, _WIDEST)
    shortest = length * math.ceil(max(best, 1) / length)
    return np.asarray([shortest << ((size - 1) // shortest).bit_length() for size in sizes.tolist()])


def _targets(pairs: Sequence[EncodedPair], placed: SharedArrangement) -> tuple[Targets, Int[np.ndarray, " M"]]:
    """What is predicted where, and the pair that it belongs to."""
    columns = [c[len(pair.context) - 1 :] for pair, c in zip(pairs, placed.columns, strict=True)]
    owner = np.repeat(np.arange(len(pairs)), [len(c) for c in columns])
    token = np.concatenate([pair.continuation for pair in pairs])
    return Targets(placed.row[owner], np.concatenate(columns), token), owner


def _continued(progress: Tick | None, before: int, total: int) -> Tick | None:
    return progress and (lambda done, _: progress(before + done, total))
