"""FLoE: layers chosen by their Fisher information."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("fisher-trace", needs=("grams",), source="FLoE: Wang et al. 2025, arXiv 2506.00495")
def fisher_trace(evidence: Evidence) -> Float[Array, " K"]:
    """Trace of the unit's empirical Fisher matrix, (1/n) sum_i |g_i|^2 over n sequences.

    Args:
      evidence: with `grams`; the trace is that of the Gram matrix over n, and covers all parameters of the unit.

    Returns:
      `[K]`, larger: the loss of single sequences depends more on this unit.

    Source: Wang et al. (2025), "FLoE", arXiv 2506.00495. It takes the trace over adapters after a first short run of
    training; ours is over the unit's own weights, so that no training comes first.
    """
    (grams,) = require_evidence("fisher-trace", evidence, "grams")
    traces = [jnp.trace(unit.gram) / unit.gram.shape[0] for unit in grams]
    return score_vector("fisher-trace", evidence.units, traces)
