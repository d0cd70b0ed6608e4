"""LAMP: magnitudes over the rest of their matrix, compared across the model."""

import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import shares_below
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan


@plan(
    "lamp",
    needs=("kernels",),
    target="sparsity",
    total="share of all weights to remove",
    amount="share of the unit's weights to remove",
    source="Lee et al. 2021, arXiv 2010.07611",
)
def lamp(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Sparsity of each unit where the weights of least LAMP score in the whole model go.

        score_u = w_u^2 / sum_{v >= u} w_v^2,   the weights of one matrix in rising order

    The largest weight of a matrix has score 1, so no matrix is emptied before all others are down to one weight.

    Args:
      evidence: with `kernels`.
      total: share of all weights of the units to remove.

    Returns:
      `[K]` share of each unit's weights to remove; in all the nearest whole number to `total` times their count.
      Weights that are zero already go first.

    Raises:
      ValueError: if `total` is no share, or the evidence does not do.

    Source: Lee et al. (2021), "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv 2010.07611.
    """
    require_evidence("lamp", evidence, "kernels")
    found = (matrices("lamp", evidence, unit, "kernels") for unit in evidence.units)
    scores = [np.concatenate([_lamp_scores(np.asarray(kernel)) for (kernel,) in unit]) for unit in found]
    return shares_below("lamp", scores, total=total)


def _lamp_scores(kernel: Float[np.ndarray, "I O"]) -> Float[np.ndarray, " n"]:
    squares = np.sort(np.square(kernel.reshape(-1), dtype=np.float64))
    rest = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
