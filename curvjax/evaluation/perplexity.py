"""Perplexity, with the uncertainty that comes from the text being a sample."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.data import Batch
from curvjax.evaluation.intervals import Interval, student_interval
from curvjax.evaluation.scoring import Targets, target_log_probabilities
from curvjax.models import Decoder
from curvjax.tick import Tick


class Perplexity(NamedTuple):
    """nll: mean negative log-likelihood of the counted tokens, nats. perplexity: its exponential.

    standard_error: of `nll`, rows with counted tokens as clusters; nan for a single one. tokens: how many count.
    row_nll: `[B]` summed nats of each row. row_tokens: `[B]` counted tokens of each row. tokens_read: by the model,
    without padding.
    """

    nll: float
    perplexity: float
    standard_error: float
    tokens: int
    row_nll: Float[np.ndarray, " B"]
    row_tokens: Float[np.ndarray, " B"]
    tokens_read: int

    @property
    def interval(self) -> Interval:
        """Of `nll`."""
        return student_interval(self.nll, self.standard_error, clusters=int(np.count_nonzero(self.row_tokens)))


def perplexity(model: Decoder, batch: Batch, *, rows_at_once: int = 8, progress: Tick | None = None) -> Perplexity:
    """exp of the mean of -log p(target | tokens before it in its document) over positions of weight 1.

    Args:
      model: used through `embed`, `layers` and `readout` alone.
      batch: `[B, T]` rows; rows are what the standard error takes for independent.
      rows_at_once: rows in memory at a time.
      progress: told `(done, all)` rows after each microbatch.

    Raises:
      ValueError: if no position counts.

    Source: the ratio estimator's standard error is Cochran, Sampling Techniques (1977), eq. 6.9, without the finite
    population correction.
    """
    weights = np.asarray(batch.weights)
    row, column = np.nonzero(weights)
    if not len(row):
        msg = f"no position of the {weights.shape} batch has a weight: nothing to predict."
        raise ValueError(msg)
    targets = Targets(row, column, np.asarray(batch.targets)[row, column])
    scores = target_log_probabilities(model, batch, targets, rows_at_once=rows_at_once, progress=progress)
    row_nll = np.bincount(row, -scores.log_probability, minlength=len(weights))
    row_tokens = np.bincount(row, minlength=len(weights)).astype(float)
    nll, error = clustered_mean(row_nll, row_tokens)
    read = int(np.sum(np.asarray(batch.segments) > 0))
    return Perplexity(nll, float(np.exp(nll)), error, len(row), row_nll, row_tokens, read)


def clustered_mean(sums: Float[np.ndarray, " B"], counts: Float[np.ndarray, " B"]) -> tuple[float, float]:
    """Mean sum(sums) / sum(counts) over the members of B clusters, and its standard error (nan for one cluster).

    A cluster without members says nothing, and is none: rows of prompts or padding change neither number.
    """
    mean, clusters = sums.sum() / counts.sum(), np.count_nonzero(counts)
    if clusters == 1:
        return float(mean), float("nan")
    scatter = np.sum((sums - mean * counts) ** 2) * clusters / (clusters - 1)
    return float(mean), float(np.sqrt(scatter) / counts.sum())
