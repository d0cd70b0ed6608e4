"""DataInf's upper bound of the gain under an empirical Fisher [M9]."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from curvjax.curvature import datainf_gain
from curvjax.scores.evidence import Evidence
from curvjax.scores.layerif import SHARE
from curvjax.scores.reading import require_evidence, score_vector
from curvjax.scores.registry import score


@score("datainf", needs=("grams",), source="Kwon et al. 2024, arXiv 2310.00902")
def datainf(evidence: Evidence) -> Float[Array, " K"]:
    """g' D g with D the mean of inverses in place of the inverse of the mean, nats [M9]; g the mean of the s_i.

    What the authors' large-model route computes in place of the gain. Never below the gain of the same Fisher matrix at
    the same damping, a tenth of its mean eigenvalue.

    Args:
      evidence: with `grams`.

    Returns:
      `[K]`, larger: more capacity.

    Source: Kwon, Wu, Wu & Zou (2024), "DataInf", arXiv 2310.00902, equation 5.
    """
    (grams,) = require_evidence("datainf", evidence, "grams")
    return score_vector("datainf", evidence.units, [_gain(unit.gram, unit.parameters) for unit in grams])


@jax.jit
def _gain(gram: Float[Array, "m m"], parameters: ArrayLike) -> Float[Array, ""]:
    damping = SHARE * jnp.trace(gram) / gram.shape[0] / parameters
    damping = jnp.where(damping > 0, damping, 1.0)  # no gradient at all: no gain, at any damping
    return datainf_gain(gram, jnp.mean(gram, axis=1), jnp.mean(gram), damping=damping)
