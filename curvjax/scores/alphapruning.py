"""AlphaPruning: layers whose spectra have lighter tails are pruned more."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.layers import Unit
from curvjax.scores.evidence import Evidence
from curvjax.scores.hill import hill_exponent, resolution, singular_values
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


def mean_exponent(score: str, evidence: Evidence, unit: Unit) -> Float[Array, ""]:
    """PL_Alpha_Hill of a unit: the mean of the exponents of its matrices.

    Args:
      score: who asks, for the message.
      evidence: with `kernels`, as `require_evidence` leaves it.
      unit: whose matrices are read.

    Returns:
      The mean exponent; not finite where a matrix has none.
    """
    kernels = [kernel for (kernel,) in matrices(score, evidence, unit, "kernels")]
    return jnp.mean(jnp.stack([hill_exponent(singular_values(kernel), resolution(kernel)) for kernel in kernels]))


@score("alphapruning", needs=("kernels",), source="Lu et al. 2024, arXiv 2410.10912", sign=-1)
def alphapruning(evidence: Evidence) -> Float[Array, " K"]:
    """Minus PL_Alpha_Hill, the power-law exponent of the spectrum of W'W, mean over the unit's matrices.

    The published measure points the other way: a large exponent is an undertrained layer, which is pruned more. So
    this score is its negative.

    Args:
      evidence: with `kernels`.

    Returns:
      `[K]` negative numbers, larger: heavier tail, better trained, keep more. Two units of equal exponents are alike
      whatever their sizes.

    Raises:
      ValueError: if a matrix has no exponent (it is zero, or its eigenvalues above the median are all equal), or the
        evidence does not do.

    Source: Lu et al. (2024), "AlphaPruning", arXiv 2410.10912: the exponent from the median eigenvalue up (the
    program's `alpha_mid`; its default `alpha_peak` searches the cut near the peak of a histogram).
    """
    require_evidence("alphapruning", evidence, "kernels")
    found = [-mean_exponent("alphapruning", evidence, unit) for unit in evidence.units]
    return score_vector("alphapruning", evidence.units, found)
