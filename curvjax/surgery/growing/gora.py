"""GoRA's start: adapters that begin after a step along the gradient.

Source: He et al., "GoRA: Gradient-driven Adaptive Low Rank Adaptation", 2025, arXiv 2502.12171, section 3.3, with
gamma 0.05 and the scaling by it of the published program (`gora_scale_by_lr`). Its ranks are the score `gora`. Ours
solves the least squares by orthogonal decomposition where the program inverts A'A + 1e-8 I.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.surgery.growing.lora import Birth, uniform_start


def gora_start(
    gradient: Float[Array, "I O"],
    kernel: Float[Array, "I O"],
    rank: int,
    scale: float,
    key: jax.Array,
    *,
    gamma: float = 0.05,
) -> Birth:
    """A at random, scale B = -gamma sqrt(in / r) (A'A)^-1 A'G: A B is the step -gamma G as far as A can follow it.

    The root makes up for what is lost: r random directions of `in` hold the share r / in of |G|^2. The kernel stays as
    it is, so that unlike with every other start logits are those after the step.

    Args:
      gradient: `[in, out]` of the mean loss, nats per unit of weight.
      kernel: `[in, out]`.
      rank: of the adapter.
      scale: of the adapter, not zero.
      key: of A, which is that of `uniform_start`.
      gamma: length of the step.

    Returns:
      The kernel and both matrices, at least float32.

    Raises:
      ValueError: if `scale` is zero, or the gradient is not finite.
    """
    if scale == 0 or not jnp.all(jnp.isfinite(gradient)):
        msg = f"gora divides a finite gradient by the adapter's scale, which must not be zero; the scale is {scale:g}."
        raise ValueError(msg)
    lora_a = uniform_start(kernel, rank, scale, key).lora_a
    solution = jnp.linalg.lstsq(lora_a, gradient.astype(lora_a.dtype))[0]
    return Birth(kernel, lora_a, -gamma * (kernel.shape[0] / rank) ** 0.5 / scale * solution)
