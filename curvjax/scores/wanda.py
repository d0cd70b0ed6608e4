"""Wanda's metric compared across the model, standardised in each projection as FLAP does."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import shares_below
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan

Metric = Float[np.ndarray, "I O"]


def standardised(metric: Metric) -> Metric:
    """Deviations from the mean of the projection over their standard deviation; zeros where all are equal."""
    apart = metric - metric.mean()
    return apart / (apart.std() or 1.0)


@plan(
    "wanda-global",
    needs=("kernels", "moments"),
    target="sparsity",
    total="share of all weights to remove",
    amount="share of the unit's weights to remove",
    source="Sun et al. 2023, arXiv 2306.11695; An et al. 2023, arXiv 2312.11983",
)
def wanda_global(
    evidence: Evidence, *, total: float, scale: Callable[[Metric], Metric] = standardised
) -> Float[Array, " K"]:
    """Sparsity of each unit where the weights of least standardised |W_ij| |x_i|_2 in the whole model go.

        z_ij = (m_ij - mean m) / std m,   m_ij = |W_ij| |x_i|_2,   means over one projection

    |x_i|_2 is the root of the mean square of an input feature.

    Args:
      evidence: with `kernels` and `moments`, of which the diagonal is read.
      total: share of all weights of the units to remove.
      scale: makes the metrics `[in, out]` of one projection comparable with those of others; the identity
        compares them as they are, so that the scale of each input decides.

    Returns:
      `[K]` share of each unit's weights to remove; in all the nearest whole number to `total` times their count.

    Raises:
      ValueError: if `total` is no share, or the evidence does not do.

    Source: the metric of Sun et al. (2023), "Wanda", arXiv 2306.11695, who compare it within each output only. One
    threshold after standardising in each projection is An et al. (2023), "FLAP", arXiv 2312.11983, who do it for
    channels.
    """
    require_evidence("wanda-global", evidence, "kernels", "moments")
    found = (matrices("wanda-global", evidence, unit, "kernels", "moments") for unit in evidence.units)
    metrics = [np.concatenate([scale(_metric(*pair)).reshape(-1) for pair in unit]) for unit in found]
    return shares_below("wanda-global", metrics, total=total)


def _metric(kernel: Array, moment: Array) -> Metric:
    norms = np.sqrt(np.maximum(np.diagonal(np.asarray(moment)), 0.0))
    return np.abs(np.asarray(kernel)) * norms[:, None]
