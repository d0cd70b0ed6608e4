"""The curvature-adjusted gain as a score [M4]."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("gain", needs=("gains",), source="Amaefuna et al. 2026, arXiv 2603.00910")
def gain(evidence: Evidence) -> Float[Array, " K"]:
    """zeta_k^2 = g_k' H_k^-1 g_k, nats [M4]; as published.

    Args:
      evidence: with `gains`.

    Returns:
      `[K]`, larger: moving this unit alone lowers the loss more.

    Source: Amaefuna et al., arXiv 2603.00910, Lemma 1.
    """
    (gains,) = require_evidence("gain", evidence, "gains")
    return score_vector("gain", evidence.units, gains)
