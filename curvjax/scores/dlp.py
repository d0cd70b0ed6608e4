"""DLP: layers whose weights meet less are pruned less."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score


@score("dlp", needs=("kernels", "moments"), source="Chen et al. 2025, arXiv 2505.23807")
def dlp(evidence: Evidence) -> Float[Array, " K"]:
    """1 - m_k / sum_j m_j, with m_k the mean of |W_ij| |x_i|_2 over all matrices of the unit together.

    The paper's reading is that a large typical metric means many weights of like importance, hence redundancy. |x_i|_2
    is the root of the mean square of an input feature: a common factor of all layers cancels in the shares.

    Args:
      evidence: with `kernels` and `moments`, of which the diagonal is read.

    Returns:
      `[K]` from 0 to 1, larger: keep more. 1 everywhere where all weights are zero.

    Source: Chen et al. (2025), "DLP: Dynamic Layerwise Pruning in Large Language Models", arXiv 2505.23807, as its
    program has it for unstructured pruning (`get_dlp_ratios`); the paper's text takes the median (`dlp-median`). Both
    read the dense model.
    """
    return _importance("dlp", evidence, jnp.mean)


@score("dlp-median", needs=("kernels", "moments"), source="Chen et al. 2025, arXiv 2505.23807")
def dlp_median(evidence: Evidence) -> Float[Array, " K"]:
    """1 - m_k / sum_j m_j as `dlp`, with the median in place of the mean: what the paper's text describes.

    Args:
      evidence: as for `dlp`.

    Returns:
      `[K]` from 0 to 1, larger: keep more.

    Source: Chen et al. (2025), arXiv 2505.23807. Of an even number of weights ours is the mean of the middle two, its
    program's (for structured pruning) the lower of them.
    """
    # numpy selects where jax sorts: 78 s against 2 s for SmolLM2 on two cores
    return _importance("dlp-median", evidence, lambda metrics: jnp.asarray(np.median(metrics)))


def _importance(name: str, evidence: Evidence, centre: Callable[[Array], Array]) -> Float[Array, " K"]:
    require_evidence(name, evidence, "kernels", "moments")
    found = (matrices(name, evidence, unit, "kernels", "moments") for unit in evidence.units)
    return score_vector(name, evidence.units, one_minus_share([centre(_metrics(unit)) for unit in found]))


@jax.jit
def one_minus_share(values: list[Array]) -> Float[Array, " K"]:
    """1 - v_k / sum_j v_j, the importance of DLP and of LSA; 1 where all are zero."""
    stacked = jnp.stack(values)
    total = jnp.sum(stacked)
    return 1 - stacked / jnp.where(total > 0, total, 1.0)


@jax.jit
def _metrics(pairs: list[list[Array]]) -> Float[Array, " n"]:
    norms = [jnp.sqrt(jnp.maximum(jnp.diagonal(moment), 0.0)) for _, moment in pairs]
    metrics = [jnp.abs(kernel) * norm[:, None] for (kernel, _), norm in zip(pairs, norms, strict=True)]
    return jnp.concatenate([metric.reshape(-1) for metric in metrics])
