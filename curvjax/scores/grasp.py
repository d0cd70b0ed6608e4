"""GraSP without gradients: what a unit's weights do for the flow of gradients, from differences of losses alone."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector, standard_errors
from curvjax.scores.registry import score


def grasp_errors(evidence: Evidence) -> Float[Array, " K"]:
    """Standard errors of `grasp_zeroth` over its directions, nats^2."""
    slopes, curved = require_evidence("grasp-zeroth", evidence, "slopes", "hessian_slopes")
    return standard_errors(slopes * curved)


@score(
    "grasp-zeroth",
    needs=("slopes", "hessian_slopes"),
    source="GraSP: Wang et al. 2020, arXiv 2002.07376; DeepZero: Chen et al. 2024, arXiv 2310.02025",
    sign=-1,
    errors=grasp_errors,
)
def grasp_zeroth(evidence: Evidence) -> Float[Array, " K"]:
    """Minus GraSP's score of all weights of a unit, w'Hg, w its kernels, with g and H in the unit, nats^2.

        |g(theta - s w)|^2 = |g|^2 - 2 s w'Hg + O(s^2)          w'Hg ~ mean over s of (z_s'g) (w'H z_s)

    The published score -w'Hg points the other way: where it is large, gradients flow better without the weights, which
    then go. So this score is its negative. For standard normal z the mean is unbiased, and its standard error about
    |g| |Hw| / sqrt(S): many directions (`--directions`) are needed before small differences of layers mean anything.

    Args:
      evidence: with `slopes` z'g and `hessian_slopes` w'Hz of the same directions.

    Returns:
      `[K]` of either sign, larger: keep more.

    Raises:
      ValueError: if the two fields have other numbers of directions, or the evidence does not do.

    Source: Wang, Zhang & Grosse (2020), "GraSP", arXiv 2002.07376, eq. 7 with the whole unit for delta; Chen et al.
    (2024), "DeepZero", arXiv 2310.02025, which sums finite differences along drawn directions to g, and once more at
    theta + mu g to Hg, in all layers at once, and takes shares of layers from one threshold over all weights. Ours is
    the unit's own block, one central difference for each factor of the product, and one number a unit; both papers
    score at initialisation, and this is the trained model.
    """
    slopes, curved = require_evidence("grasp-zeroth", evidence, "slopes", "hessian_slopes")
    if slopes.shape != curved.shape:
        msg = f"score 'grasp-zeroth' needs slopes and hessian_slopes alike, got {slopes.shape} and {curved.shape}."
        raise ValueError(msg)
    return score_vector("grasp-zeroth", evidence.units, jnp.mean(slopes * curved, axis=1))
