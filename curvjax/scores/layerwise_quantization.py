"""Layer-wise quantization: which layers keep more bits, by LIM and by ZD."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices, require_evidence, score_vector
from curvjax.scores.registry import score
from curvjax.scores.shortgpt import mean_cosine


@score("lim", needs=("stream",), source="Dumitru et al. 2024, arXiv 2406.17415")
def layer_input_modification(evidence: Evidence) -> Float[Array, " K"]:
    """LIM, -E cos(x_in, x_out), the mean over tokens of what goes into and out of the unit's layer; as published.

    Block influence less one, so its order of the layers is that of ShortGPT.

    Args:
      evidence: with `stream`. Units that are parts of a layer all get the layer's value.

    Returns:
      `[K]` from -1 to 1, larger: the layer changes the stream more, keep more bits.

    Source: Dumitru et al. (2024), "Layer-Wise Quantization", arXiv 2406.17415, section 3.1.
    """
    (stream,) = require_evidence("lim", evidence, "stream")
    found = [-mean_cosine(stream[unit.index], stream[unit.index + 1]) for unit in evidence.units]
    return score_vector("lim", evidence.units, found)


@score("zd", needs=("kernels",), source="Dumitru et al. 2024, arXiv 2406.17415", sign=-1)
def z_score_distribution(evidence: Evidence) -> Float[Array, " K"]:
    """Minus ZD, the share of weights with a z-score above 1, (w - mean) / deviation > 1 over all weights of the unit.

    The published measure points the other way (fewer weights far above the mean: more important), so this score is its
    negative.

    Args:
      evidence: with `kernels`; no data are needed.

    Returns:
      `[K]` from -1 to 0, larger: keep more bits. 0 for a unit of equal weights.

    Source: Dumitru et al. (2024), "Layer-Wise Quantization", arXiv 2406.17415.
    """
    require_evidence("zd", evidence, "kernels")
    found = (matrices("zd", evidence, unit, "kernels") for unit in evidence.units)
    return score_vector("zd", evidence.units, [-_share_above([kernel for (kernel,) in unit]) for unit in found])


@jax.jit
def _share_above(kernels: list[Array]) -> Float[Array, ""]:
    weights = jnp.concatenate([kernel.reshape(-1) for kernel in kernels])
    excess = weights - jnp.mean(weights)
    return jnp.sum(excess > jnp.sqrt(jnp.mean(excess**2))) / weights.size
