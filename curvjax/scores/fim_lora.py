"""FIM-LoRA: ranks by the Fisher information of a single weight."""

from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("fim-lora", needs=("grams",), source="Sathyavageeswaran 2026, arXiv 2605.16800")
def fim_lora(evidence: Evidence) -> Float[Array, " K"]:
    """Mean squared gradient of one parameter, (1/(n p_k)) sum_i |g_i|^2 over n sequences.

    That is `fisher-trace` over the number of parameters. Its ranks are those of the rule `proportional`.

    Args:
      evidence: with `grams`.

    Returns:
      `[K]`, larger: more rank.

    Source: Sathyavageeswaran (2026), "FIM-LoRA", arXiv 2605.16800, which takes it over B of adapters at their birth, in
    eight batches. With W <- W + B A, the gradient of B is that of W seen through a random A, so that ours, over W
    itself, is what it estimates up to the scale of A and the size of B.
    """
    (grams,) = require_evidence("fim-lora", evidence, "grams")
    values = [unit.gram.trace() / (unit.gram.shape[0] * unit.parameters) for unit in grams]
    return score_vector("fim-lora", evidence.units, values)
