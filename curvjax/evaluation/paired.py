"""Differences between two models on the same rows or questions: far less noisy than either number alone."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from curvjax.evaluation.intervals import Interval, student_interval
from curvjax.evaluation.perplexity import clustered_mean


class Difference(NamedTuple):
    """difference: first less second, nats per token. standard_error: of it, rows as clusters; nan for one row.

    clusters: rows that count.
    """

    difference: float
    standard_error: float
    clusters: int

    @property
    def interval(self) -> Interval:
        """Of `difference`."""
        return student_interval(self.difference, self.standard_error, clusters=self.clusters)


class ChoiceDifference(NamedTuple):
    """difference: accuracy of the first less that of the second, with its standard_error over questions.

    first_only, second_only: questions that only one of them gets right. p_value: two-sided exact McNemar test of
    their being equally likely.
    """

    difference: float
    standard_error: float
    first_only: int
    second_only: int
    p_value: float


class Rows(Protocol):
    """What a `Perplexity` and its record have in common: `[B]` summed nats and counted tokens of every row."""

    @property
    def tokens(self) -> int: ...

    @property
    def row_nll(self) -> ArrayLike: ...

    @property
    def row_tokens(self) -> ArrayLike: ...


def paired_difference(first: Rows, second: Rows) -> Difference:
    """Difference in mean negative log-likelihood on the same batch; positive where the second model is better.

    Raises:
      ValueError: if the two were not measured on equally many tokens in every row.
    """
    counts, others = np.asarray(first.row_tokens), np.asarray(second.row_tokens)
    if not np.array_equal(counts, others):
        msg = (
            f"paired differences need the same rows: {len(counts)} rows with {first.tokens} tokens, "
            f"{len(others)} with {second.tokens}."
        )
        raise ValueError(msg)
    apart = np.asarray(first.row_nll) - np.asarray(second.row_nll)
    return Difference(*clustered_mean(apart, counts), int(np.count_nonzero(counts)))


def paired_choice(first: Bool[np.ndarray, " Q"], second: Bool[np.ndarray, " Q"]) -> ChoiceDifference:
    """Difference in accuracy on equal questions, from two models' `RankedChoice.correct` (or `correct_per_character`).

    Raises:
      ValueError: if the two were not asked equally many questions.

    Source: McNemar, Psychometrika 12 (1947), in its exact binomial form.
    """
    if first.shape != second.shape:
        msg = f"paired differences need the same questions: {first.shape} and {second.shape}."
        raise ValueError(msg)
    mean, error = clustered_mean(first.astype(float) - second, np.ones(len(first)))
    only = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    from scipy.stats import binomtest  # here: it takes as long to load as JAX

    p_value = float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return ChoiceDifference(mean, error, *only, p_value)
