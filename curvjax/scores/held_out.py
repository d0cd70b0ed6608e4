"""The held-out gain as a score [M21]: the step of some tokens, judged by the quadratic model of others."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("held-out-gain", needs=("held_out",), source="ours; the train x validation form of Kwon et al. 2024")
def held_out_gain(evidence: Evidence) -> Float[Array, " K"]:
    """2(-g_B'd_A - d_A'C_B d_A / 2), nats [M21]: twice what the Newton step of tokens A promises on tokens B.

    At A = B it is zeta^2 + tau |d|^2. Negative where the step overfits A: shorten it, by a larger damping.

    Args:
      evidence: with `held_out`.

    Returns:
      `[K]`, larger: moving this unit alone by what A says lowers the loss on B more.

    Source: ours; its linear part is the influence of Kwon, Wu, Wu & Zou (2024), arXiv 2310.00902, with the inverse
    itself for its approximation.
    """
    (values,) = require_evidence("held-out-gain", evidence, "held_out")
    return score_vector("held-out-gain", evidence.units, values)
