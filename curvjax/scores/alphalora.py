"""AlphaLoRA: layers whose spectra have lighter tails get more experts."""

from jaxtyping import Array, Float

from curvjax.scores.alphapruning import mean_exponent
from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("alphalora", needs=("kernels",), source="Qing et al. 2024, arXiv 2410.10054")
def alphalora(evidence: Evidence) -> Float[Array, " K"]:
    """PL_Alpha_Hill, the power-law exponent of the spectrum of W'W, mean over the unit's matrices.

    As published: a large exponent is an undertrained layer, and it gets more experts. The sign is the reverse of that
    of `alphapruning`, where the same layer loses more weights.

    Args:
      evidence: with `kernels`.

    Returns:
      `[K]` exponents above 1, larger: more experts.

    Raises:
      ValueError: if a matrix has no exponent, as for `alphapruning`, or the evidence does not do.

    Source: Qing et al. (2024), "AlphaLoRA", arXiv 2410.10054. Its program searches the cut of the tail near the peak of
    a histogram ("fix-finger"); ours is the median, as in AlphaPruning, which no number of bins decides.
    """
    require_evidence("alphalora", evidence, "kernels")
    return score_vector(
        "alphalora", evidence.units, [mean_exponent("alphalora", evidence, unit) for unit in evidence.units]
    )
