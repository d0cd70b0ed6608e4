"""WeLore: ranks by one threshold on the singular values of all matrices."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.global_threshold import counts_below
from curvjax.scores.hill import singular_values
from curvjax.scores.reading import matrices, require_evidence
from curvjax.scores.registry import plan
from curvjax.scores.totals import whole_total


@plan(
    "welore",
    needs=("kernels",),
    target="rank",
    total="rank kept, summed over all matrices",
    amount="rank kept, summed over the unit's matrices",
    source="Jaiswal et al. 2024, arXiv 2407.11239",
)
def welore(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Rank that each unit keeps, summed over its matrices, under one threshold on normalised singular values.

    Singular values of each matrix are scaled to (s - min) / (max - min); those below the threshold go. Heavy-tailed
    spectra lose most.

    Args:
      evidence: with `kernels`.
      total: whole rank kept, summed over all matrices of all units; each matrix has min(in, out). Ranks count alike,
        whatever in + out they cost.

    Returns:
      `[K]` whole ranks with the sum `total`; equal values at the threshold go from the first units. A matrix of equal
      singular values counts as all large, a zero matrix as all small.

    Raises:
      ValueError: if `total` is not a number of ranks, or the evidence does not do.

    Source: Jaiswal et al. (2024), "From GaLore to WeLore", arXiv 2407.11239; the program has tables of thresholds for
    two models and divides by zero for equal singular values.
    """
    require_evidence("welore", evidence, "kernels")
    found = (matrices("welore", evidence, unit, "kernels") for unit in evidence.units)
    values = [np.concatenate([_normalised(np.asarray(singular_values(k))) for (k,) in unit]) for unit in found]
    ranks = np.array([len(unit) for unit in values])
    kept = whole_total("welore", total, most=int(ranks.sum()))
    return jnp.asarray(ranks - counts_below(values, count=int(ranks.sum()) - kept), dtype=float)


def _normalised(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    least, most = values.min(), values.max()
    if most > least:
        return (values - least) / (most - least)
    return np.full_like(values, float(most > 0))
