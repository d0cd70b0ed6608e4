"""Adapters that begin with the directions in which the loss falls (ours).

With B = 0 a first step of gradient descent is B = -rate scale A' G: A decides which part of the gradient G of the base
is followed at all, and among orthogonal A of one length |A' G| is largest for the first left singular vectors of G.
Those of G whitened by damped Kronecker factors K of the ggn [M2],

    (K_in + d mean(K_in) I)^-1/2  G  (K_out + d mean(K_out) I)^-1/2,      mean: of the eigenvalues,

do the same for a damped Newton step in the coordinates in which the curvature is the identity.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from curvjax.surgery.growing.directions import first_directions
from curvjax.surgery.growing.lora import Birth

UNIFORM_LENGTH = 3**-0.5
"""Root of the mean squared length of a column of `uniform_start`: in entries of variance 1 / (3 in)."""


def gradient_start(
    gradient: Float[Array, "I O"], kernel: Float[Array, "I O"], rank: int, scale: float, key: jax.Array
) -> Birth:
    """A the gradient's left singular vectors, as long as those of `uniform_start`; B zero: the kernel stays as it is.

    Args:
      gradient: `[in, out]` of the mean loss, whitened or not; its scale does not matter.
      kernel: `[in, out]`.
      rank: of the adapter.
      scale: not used.
      key: not used.

    Returns:
      The kernel and both matrices, at least float32.

    Raises:
      ValueError: if the gradient has fewer directions than the rank.
    """
    del scale, key
    left, _ = first_directions(gradient, rank)
    return Birth(kernel, UNIFORM_LENGTH * left, jnp.zeros((rank, kernel.shape[1]), left.dtype))
