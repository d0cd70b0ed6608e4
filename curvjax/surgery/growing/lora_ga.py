"""LoRA-GA: adapters whose first step is nearest to that of the whole kernel.

Source: Wang, Yu, Li, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", 2024, arXiv 2407.05000, theorem 3.1
and algorithm 1, with the published program's settings: direction ArB2r, scale "stable", gamma 16. The
decomposition is randomised in both, ours with more passes. PEFT's own `lora_ga` multiplies B by the gradient's singular
values and leaves A at unit length, which neither paper nor the authors' program does.
"""

import jax
from jaxtyping import Array, Float

from curvjax.surgery.growing.directions import first_directions
from curvjax.surgery.growing.lora import Birth, moved_base


def lora_ga_start(
    gradient: Float[Array, "I O"],
    kernel: Float[Array, "I O"],
    rank: int,
    scale: float,
    key: jax.Array,
    *,
    gamma: float = 16.0,
) -> Birth:
    """A = c U_1..r, B = c V'_r+1..2r of the gradient U S V', c = out^(1/4) / sqrt(gamma); the base W - scale A B.

    Args:
      gradient: `[in, out]` of the mean loss; its scale does not matter.
      kernel: `[in, out]`.
      rank: of the adapter, at most half the smaller side.
      scale: of the adapter.
      key: not used.
      gamma: the published one.

    Returns:
      The offset kernel in its dtype, and both matrices, at least float32.

    Raises:
      ValueError: if the gradient has fewer than 2 r directions.
    """
    del key
    left, right = first_directions(gradient, 2 * rank)
    length = kernel.shape[1] ** 0.25 / gamma**0.5
    lora_a, lora_b = length * left[:, :rank], length * right[rank:]
    return Birth(moved_base(kernel, lora_a, lora_b, scale), lora_a, lora_b)
