"""EVA: ranks by the variance of its input that each direction explains, sorted across the model."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import counts_below
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan
from curvjax.scores.totals import whole_total


@plan(
    "eva",
    needs=("kernels", "moments"),
    target="rank",
    total="rank of adapters, summed over all matrices",
    amount="rank of adapters, summed over the unit's matrices",
    source="Paischer et al. 2024, arXiv 2410.07170",
)
def eva(evidence: Evidence, *, total: float, spread: float = 2.0) -> Float[Array, " K"]:
    """Rank that each unit gets, summed over its matrices, where the directions that explain most are adapted.

        r_ij = lambda_j / sum_i lambda_i,   lambda the eigenvalues of the second moment of a matrix's input, falling;

    the `total` largest of all matrices count one rank each. Concentrated inputs get most.

    Args:
      evidence: with `kernels`, of which the shapes are read, and `moments`.
      total: whole rank, summed over all matrices of all units; each matrix has at most min(in, out). Ranks count alike,
        whatever in + out they cost.
      spread: most rank of one matrix over the mean rank, at least 1; the published rho. Directions beyond it come last,
        where all others together do not make the total.

    Returns:
      `[K]` whole ranks with the sum `total`; of equal shares the last units' count.

    Raises:
      ValueError: if `total` is not a number of ranks, `spread` is below 1, or the evidence does not do.

    Source: Paischer et al. (2024), "Parameter Efficient Fine-tuning via Explained Variance Adaptation", arXiv
    2410.07170. Its program takes an incremental decomposition until the directions are stable; ours takes that of all
    tokens' second moment, about zero.
    """
    if not spread >= 1:
        msg = f"the most of one matrix is at least the mean rank: need a spread of at least 1, got {spread!r}."
        raise ValueError(msg)
    require_evidence("eva", evidence, "kernels", "moments")
    units = [matrices("eva", evidence, unit, "kernels", "moments") for unit in evidence.units]
    ranks = np.array([sum(min(kernel.shape) for kernel, _ in unit) for unit in units])
    given = whole_total("eva", total, most=int(ranks.sum()))
    first = max(1, round(spread * given / sum(len(unit) for unit in units)))
    shares = [
        np.concatenate([_explained(np.asarray(moment), min(kernel.shape), first) for kernel, moment in unit])
        for unit in units
    ]
    return jnp.asarray(ranks - counts_below(shares, count=int(ranks.sum()) - given), dtype=float)


def _explained(moment: Float[np.ndarray, "I I"], rank: int, first: int) -> Float[np.ndarray, " r"]:
    """The `rank` largest shares, those after the `first` below all others."""
    values = np.maximum(np.linalg.eigvalsh(moment.astype(np.float64))[::-1], 0.0)
    return values[:rank] / (values.sum() or 1.0) - (np.arange(rank) >= first)
