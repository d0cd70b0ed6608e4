"""Global magnitude pruning: one threshold on |w| for the whole model."""

import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import shares_below
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan


@plan(
    "magnitude-global",
    needs=("kernels",),
    target="sparsity",
    total="share of all weights to remove",
    amount="share of the unit's weights to remove",
    source="Han et al. 2015, arXiv 1506.02626",
)
def magnitude_global(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Sparsity of each unit where the smallest |w| in the whole model go.

    Args:
      evidence: with `kernels`.
      total: share of all weights of the units to remove.

    Returns:
      `[K]` share of each unit's weights to remove; in all the nearest whole number to `total` times their count.

    Raises:
      ValueError: if `total` is no share, or the evidence does not do.

    Source: Han et al. (2015), arXiv 1506.02626; with one threshold for all layers, Blalock et al. (2020), arXiv
    2003.03033.
    """
    require_evidence("magnitude-global", evidence, "kernels")
    found = (matrices("magnitude-global", evidence, unit, "kernels") for unit in evidence.units)
    weights = [np.concatenate([np.abs(np.asarray(kernel)).reshape(-1) for (kernel,) in unit]) for unit in found]
    return shares_below("magnitude-global", weights, total=total)
