"""GoRA: ranks by how sensitive the loss is to the weights, entry by entry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("gora", needs=("kernels", "gradients"), source="He et al. 2025, arXiv 2502.12171")
def gora(evidence: Evidence) -> Float[Array, " K"]:
    """Mean of |w g| over all weights of the unit, nats: the importance whose shares are the shares of rank.

    Its ranks are those of the rule `proportional`, between a least and a largest rank.

    Args:
      evidence: with `kernels` and `gradients`.

    Returns:
      `[K]`, larger: more rank. A mean, so that the size of a unit does not decide.

    Source: He et al. (2025), "GoRA: Gradient-driven Adaptive Low Rank Adaptation", arXiv 2502.12171, which has one
    importance a matrix; a unit of several is one here. Ours reads the gradient of the mean loss, the program one that
    is accumulated over steps, which differs by a factor that the shares lose.
    """
    require_evidence("gora", evidence, "kernels", "gradients")
    found = (matrices("gora", evidence, unit, "kernels", "gradients") for unit in evidence.units)
    return score_vector("gora", evidence.units, [_mean_change(unit) for unit in found])


@jax.jit
def _mean_change(pairs: list[list[Array]]) -> Float[Array, ""]:
    total = jnp.sum(jnp.stack([jnp.sum(jnp.abs(kernel * gradient)) for kernel, gradient in pairs]))
    return total / sum(kernel.size for kernel, _ in pairs)
