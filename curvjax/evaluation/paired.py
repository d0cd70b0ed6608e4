"""Differences between two models on the same rows or questions: far less noisy than either number alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from curvjax.evaluation.intervals import Interval, student_interval
from curvjax.evaluation.perplexity import Perplexity, clustered_mean


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


def paired_difference(first: Perplexity, second: Perplexity) -> Difference:
    """Difference in mean negative log-likelihood on the same batch; positive where the second model is better.

    Raises:
      ValueError: if the two were not measured on equally many tokens in every row.
    """
    if not np.array_equal(first.row_tokens, second.row_tokens):
        msg = (
            f"paired differences need the same rows: {len(first.row_tokens)} rows with {first.tokens} tokens, "
            f"{len(second.row_tokens)} with {second.tokens}."
        )
        raise ValueError(msg)
    clusters = int(np.count_nonzero(first.row_tokens))
    return Difference(*clustered_mean(first.row_nll - second.row_nll, first.row_tokens), clusters)


def paired_choice(first: Bool[np.ndarray, " Q"], second: Bool[np.ndarray, " Q"]) -> ChoiceDifference:
    """Difference in accuracy on the same questions, from two models' `Choice.correct` (or `correct_per_character`).

    Raises:
      ValueError: if the two were not asked equally many questions.

    Source: McNemar, Psychometrika 12 (1947), in its exact binomial form.
    """
    if first.shape != second.shape:
        msg = f"paired differences need the same questions: {first.shape} and {second.shape}."
        raise ValueError(msg)
    mean, error = clustered_mean(first.astype(float) - second, np.ones(len(first)))
    only = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p_value = float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return ChoiceDifference(mean, error, *only, p_value)
