"""OWL: layers with more outlying weights are pruned less."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("owl", needs=("kernels", "moments"), source="Yin et al. 2024, arXiv 2310.05175")
def owl(evidence: Evidence, *, multiple: float = 5.0) -> Float[Array, " K"]:
    """D_k, the share of outlying weights: |W_ij| |x_i|_2 > M x mean, over all matrices of the unit together.

    |x_i|_2 is the norm of an input feature over the tokens. The root of its mean square does as well: both sides scale
    alike. As in the published program the mean is that of the whole unit, not of each matrix.

    Args:
      evidence: with `kernels` and `moments`, of which the diagonal is read.
      multiple: M, 5 or 7 in the paper; positive.

    Returns:
      `[K]` shares from 0 to 1 (the program's are percentages), larger: keep more. 0 for a unit of zeros.

    Raises:
      ValueError: if `multiple` is not positive, or the evidence does not do.

    Source: Yin et al. (2024), "Outlier Weighed Layerwise Sparsity", arXiv 2310.05175.
    """
    if not multiple > 0:
        msg = f"the multiple of the mean must be positive, got {multiple!r}."
        raise ValueError(msg)
    require_evidence("owl", evidence, "kernels", "moments")
    found = (matrices("owl", evidence, unit, "kernels", "moments") for unit in evidence.units)
    return score_vector("owl", evidence.units, [_outlier_share(unit, multiple) for unit in found])


@jax.jit
def _outlier_share(pairs: list[list[Array]], multiple: ArrayLike) -> Float[Array, ""]:
    norms = [jnp.sqrt(jnp.maximum(jnp.diagonal(moment), 0.0)) for _, moment in pairs]
    metrics = [jnp.abs(kernel) * norm[:, None] for (kernel, _), norm in zip(pairs, norms, strict=True)]
    size = sum(metric.size for metric in metrics)
    limit = multiple * jnp.sum(jnp.stack([jnp.sum(metric) for metric in metrics])) / size
    return jnp.sum(jnp.stack([jnp.sum(metric > limit) for metric in metrics])) / size
