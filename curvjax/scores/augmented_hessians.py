"""Augmented Hessians: what a unit's fix costs, alone and together with those of others."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import plan, score
from curvjax.scores.totals import whole_total


@score("hessian-sensitivity", needs=("interactions",), source="Schaefer et al. 2023, arXiv 2306.04879")
def hessian_sensitivity(evidence: Evidence) -> Float[Array, " K"]:
    """u_k' H u_k, nats: twice what the edit u_k (rounding, say) adds to the loss in unit k alone, to second order.

    Args:
      evidence: with `interactions`, of which the diagonal is read.

    Returns:
      `[K]`, larger: spare this unit. Negative where H is indefinite along the edit.

    Source: Schaefer et al. (2023), "Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training
    Quantization", arXiv 2306.04879.
    """
    (interactions,) = require_evidence("hessian-sensitivity", evidence, "interactions")
    return score_vector("hessian-sensitivity", evidence.units, jnp.diagonal(jnp.asarray(interactions)))


@plan(
    "augmented-hessians",
    needs=("interactions",),
    total="number of units to compress",
    amount="1 to compress, 0 not to",
    source="Schaefer et al. 2023, arXiv 2306.04879",
)
def augmented_hessians(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Which units to compress, the least costly first, each given those before it.

        next = argmin_k  E_kk + 2 sum_{j compressed} E_jk,   E_jk = u_j' H u_k

    The order is that of a greedy minimisation of u'Hu over sets of units; equal costs go to the first unit.

    Args:
      evidence: with `interactions`.
      total: how many units are compressed, whole.

    Returns:
      `[K]` 1 for a unit to compress, else 0.

    Raises:
      ValueError: if `total` is not a number of units, or the evidence does not do.

    Source: Schaefer et al. (2023), arXiv 2306.04879. They find the length of the ordered list by bisection on the
    measured accuracy; here it is the total. Their order adds each unit's interactions to its sensitivity at once; ours
    counts only those with units that are compressed before it.
    """
    (interactions,) = require_evidence("augmented-hessians", evidence, "interactions")
    count = whole_total("augmented-hessians", total, most=len(evidence.units))
    energy = np.asarray(interactions, np.float64)
    energy = (energy + energy.T) / 2
    cost, chosen = energy.diagonal().copy(), np.zeros(len(energy))
    for _ in range(count):
        k = int(np.argmin(np.where(chosen > 0, np.inf, cost)))
        chosen[k] = 1.0
        cost += 2 * energy[k]
    return jnp.asarray(chosen)
