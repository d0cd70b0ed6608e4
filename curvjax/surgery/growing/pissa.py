"""Adapters that begin as the principal part of the weights.

Source: Meng, Wang, Zhang, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
2024, eqs. 2 to 4. Theirs fixes the scale at 1; ours divides the adapter by whatever scale it will be multiplied by.
"""

import jax
import jax.numpy as jnp

from curvjax.surgery.growing.lora import Birth, moved_base


def principal_start(kernel: jax.Array, rank: int, scale: float, key: jax.Array) -> Birth:
    """A = U sqrt(S / scale), B = sqrt(S / scale) V' of the kernel's first `rank` singular values.

    The base keeps the rest, W - scale A B, in the kernel's dtype: the function is unchanged up to that rounding.

    Args:
      kernel: `[in, out]`.
      rank: of the adapter.
      scale: of the adapter, positive.
      key: not used; the start is the weights' own.

    Returns:
      The residual kernel and both matrices, at least float32.

    Raises:
      ValueError: if `scale` is not positive.
    """
    del key
    if not scale > 0:
        msg = f"a principal start divides by the adapter's scale, which must be positive; got {scale:g}."
        raise ValueError(msg)
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    left, values, right = jnp.linalg.svd(wide, full_matrices=False)
    root = jnp.sqrt(values[:rank] / scale)
    lora_a, lora_b = left[:, :rank] * root[None, :], root[:, None] * right[:rank]
    return Birth(moved_base(kernel, lora_a, lora_b, scale), lora_a, lora_b)
