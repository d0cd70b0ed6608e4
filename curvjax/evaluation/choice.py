"""Ranked choice: of several continuations, is the right one the likeliest?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from curvjax.data import Question, encode_pair
from curvjax.data.tokens import Encoder
from curvjax.evaluation.continuations import EncodedPair, continuation_scores
from curvjax.evaluation.scoring import require_positions
from curvjax.models import Decoder
from curvjax.tick import Tick


class RankedChoice(NamedTuple):
    """accuracy: share of questions whose right continuation has the largest log-probability.

    accuracy_per_character: the same after division by the continuation's characters (leading blanks not counted).
    gold_nll: mean over questions of -log p(right continuation), nats. Each with its standard_error over questions, nan
    for a single one. correct, correct_per_character: `[Q]` one entry per question. question_gold_nll: `[Q]` nats.
    log_probability: `[Q, C]` nats of each continuation, -inf where a question has fewer than C.
    tokens_read: by the model, without padding, shared beginnings counted once for each row that holds them.
    """

    accuracy: float
    accuracy_standard_error: float
    accuracy_per_character: float
    accuracy_per_character_standard_error: float
    gold_nll: float
    gold_nll_standard_error: float
    correct: Bool[np.ndarray, " Q"]
    correct_per_character: Bool[np.ndarray, " Q"]
    question_gold_nll: Float[np.ndarray, " Q"]
    log_probability: Float[np.ndarray, "Q C"]
    tokens_read: int


def ranked_choice(
    model: Decoder,
    tokenizer: Encoder,
    questions: Sequence[Question],
    *,
    length: int = 128,
    rows_at_once: int = 16,
    progress: Tick | None = None,
) -> RankedChoice:
    """Accuracy of choosing argmax_c log p(continuation_c | context_c).

    What questions and choices have in common at their beginning is read once in a row; see `continuation_scores`.

    Args:
      model: used through `embed`, `layers` and `readout` alone.
      tokenizer: its `encode` adds no special tokens; its `begin` stands before each context.
      questions: at least one.
      length: tokens in the shortest rows.
      rows_at_once: rows of `length` in memory at a time; fewer of longer ones.
      progress: told `(done, all)` rows after each microbatch.

    Raises:
      ValueError: if there is no question; if one cannot be encoded (`encode_choices`); if a log-probability is not
        finite.

    Source: the border between context and continuation follows EleutherAI's lm-evaluation-harness.
    """
    pairs = encode_choices(model, tokenizer, questions)
    found = continuation_scores(model, pairs, length=length, rows_at_once=rows_at_once, progress=progress)
    scores = np.full((len(questions), max(len(q.continuations) for q in questions)), -np.inf)
    scores[
        [row for row, q in enumerate(questions) for _ in q.continuations],
        [column for q in questions for column in range(len(q.continuations))],
    ] = found.log_probability
    return _choice(scores, questions, found.tokens_read)


def encode_choices(model: Decoder, tokenizer: Encoder, questions: Sequence[Question]) -> list[EncodedPair]:
    """What `ranked_choice` reads and predicts: a pair for each choice of each question, in their order.

    A context is what the tokenizer's `begin` and the question make; its `end` follows whole texts, not choices.

    Raises:
      ValueError: if there is no question; if a continuation is empty, or a context and `begin` both are; if a question
        is longer than the model was made for, or cannot be encoded.
    """
    if not questions:
        msg = "no questions to rank: give at least one."
        raise ValueError(msg)
    pairs = []
    for question in questions:
        for choice, texts in enumerate(zip(question.contexts, question.continuations, strict=True)):
            try:
                ids, given = encode_pair(tokenizer, *texts)
            except ValueError as error:
                msg = f"question {question.id!r}, choice {choice}: {error}"
                raise ValueError(msg) from error
            pair = EncodedPair(tuple(ids[:given]), tuple(ids[given:]))
            if not pair.context or not texts[1]:
                msg = (
                    f"question {question.id!r}: choice {choice} needs a token to predict and one before it; where "
                    "contexts are empty, load the tokenizer with begin_of_text='always'."
                )
                raise ValueError(msg)
            what = f"question {question.id!r}, with all that stands before it,"
            require_positions(model.config, len(ids) - 1, what=what)
            pairs.append(pair)
    return pairs


def _choice(log_probability: np.ndarray, questions: Sequence[Question], tokens_read: int) -> RankedChoice:
    labels = np.asarray([question.label for question in questions])
    characters = np.ones(log_probability.shape)
    for row, question in enumerate(questions):
        for column, continuation in enumerate(question.continuations):
            characters[row, column] = max(len(continuation.lstrip()), 1)
    gold = -log_probability[np.arange(len(labels)), labels]
    correct = log_probability.argmax(axis=1) == labels
    per_character = (log_probability / characters).argmax(axis=1) == labels
    means = [number for values in (correct, per_character, gold) for number in _mean(values)]
    return RankedChoice(*means, correct, per_character, gold, log_probability, tokens_read)


def _mean(values: np.ndarray) -> tuple[float, float]:
    if len(values) == 1:
        return float(values[0]), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
