"""SNIP: one threshold on what the loss loses, to first order, with each weight."""

import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import shares_below
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan


@plan(
    "gradient-global",
    needs=("kernels", "gradients"),
    target="sparsity",
    total="share of all weights to remove",
    amount="share of the unit's weights to remove",
    source="SNIP: Lee et al. 2019, arXiv 1810.02340",
)
def gradient_global(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Sparsity of each unit where the weights of least |g w| in the whole model go.

    |g w| is the first-order change of the loss when w becomes 0, in nats, so that all weights compare as they are.

    Args:
      evidence: with `kernels` and `gradients`.
      total: share of all weights of the units to remove.

    Returns:
      `[K]` share of each unit's weights to remove; in all the nearest whole number to `total` times their count.

    Raises:
      ValueError: if `total` is no share, or the evidence does not do.

    Source: Lee, Ajanthan & Torr (2019), "SNIP", arXiv 1810.02340, eq. 5, at initialisation on one batch; ours is at
    the trained model on the calibration text, as Molchanov et al. (2017), arXiv 1611.06440, have it. SNIP's division by
    the sum over the model changes no order.
    """
    require_evidence("gradient-global", evidence, "kernels", "gradients")
    found = (matrices("gradient-global", evidence, unit, "kernels", "gradients") for unit in evidence.units)
    changes = [
        np.concatenate([np.abs(np.asarray(kernel) * np.asarray(gradient)).reshape(-1) for kernel, gradient in unit])
        for unit in found
    ]
    return shares_below("gradient-global", changes, total=total)
