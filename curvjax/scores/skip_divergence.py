"""KL-guided selection: layers without which the predictions change little are redundant."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("skip-divergence", needs=("skip_divergences",), source="Li et al. 2026, arXiv 2512.20569, for skipped layers")
def skip_divergence(evidence: Evidence) -> Float[Array, " K"]:
    """Mean KL divergence of the predictions where the unit's layer alone is skipped, nats.

        D_l = (1/N) sum_t KL( p_t(theta) | p_t(theta less layer l) )

    Args:
      evidence: with `skip_divergences`. Units that are parts of a layer all get the layer's value.

    Returns:
      `[K]` at least 0, larger: the predictions rest on the layer more, keep it.

    Source: Li et al. (2026), "Distilling to Hybrid Attention Models via KL-Guided Layer Selection", arXiv 2512.20569,
    of which abstract and summaries were read: there attention is put back into one layer of a distilled model without
    any, and the layer's importance is the KL divergence from the teacher that this saves. Ours has no student: the
    layer is skipped in the dense model, and the divergence is what this costs. Lu et al. (2025), arXiv 2510.23652,
    choose segments of layers by the same divergence.
    """
    (values,) = require_evidence("skip-divergence", evidence, "skip_divergences")
    return score_vector("skip-divergence", evidence.units, values)
