"""EVA's start: adapters that begin with the directions of their inputs.

Source: Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", 2024, arXiv 2410.07170,
algorithm 1. Its ranks are the plan `eva`. Its program takes incremental principal components about the mean until they
are stable, ours those of all tokens' second moment, about zero, as x A is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.surgery.directions import require_directions
from curvjax.surgery.lora import Birth


def eva_start(
    moment: Float[Array, "I I"], kernel: Float[Array, "I O"], rank: int, scale: float, key: jax.Array
) -> Birth:
    """A the eigenvectors of the inputs' second moment with the largest eigenvalues, B zero: the kernel stays as it is.

    Args:
      moment: `[in, in]` mean of x x'; its scale does not matter.
      kernel: `[in, out]`.
      rank: of the adapter.
      scale: not used.
      key: not used.

    Returns:
      The kernel and both matrices, A of unit columns as published, at least float32.

    Raises:
      ValueError: if the inputs have fewer directions than the rank.
    """
    del scale, key
    values, vectors = jnp.linalg.eigh(moment.astype(jnp.promote_types(moment.dtype, jnp.float32)))
    require_directions(values[::-1], rank, sides=len(values))
    lora_a = vectors[:, ::-1][:, :rank]
    return Birth(kernel, lora_a, jnp.zeros((rank, kernel.shape[1]), lora_a.dtype))
