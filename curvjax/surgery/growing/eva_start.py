"""EVA's start: adapters that begin with the directions of their inputs.

Source: Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", 2024, arXiv 2410.07170,
algorithm 1. Its ranks are the plan `eva`. Its program takes incremental principal components about the mean until they
are stable, ours those of all tokens at once, about zero, as x A is. It looks at the inputs and not at their second
moment, where one massive activation leaves float32 nothing of the other directions (SmolLM2's layer 11).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.surgery.growing.directions import first_directions
from curvjax.surgery.growing.lora import Birth


def eva_start(
    inputs: Float[Array, "N I"], kernel: Float[Array, "I O"], rank: int, scale: float, key: jax.Array
) -> Birth:
    """A the inputs' first right singular vectors, B zero: the kernel stays as it is.

    Args:
      inputs: `[N, in]` one row a token.
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
    _, right = first_directions(inputs, rank)
    lora_a = right.T
    return Birth(kernel, lora_a, jnp.zeros((rank, kernel.shape[1]), lora_a.dtype))
