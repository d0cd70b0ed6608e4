"""BESA: a share of weights to remove as the mean of a learned distribution, and a mask that passes its gradient on.

For one matrix, or several of one unit, with logits over candidate shares p_d:

    beta = softmax(logits),   share = sum_d beta_d p_d,   P_i = 1 - sum_d beta_d [i < p_d length]

for the weight of place i in the order in which weights go: P is the chance that it stays. The mask keeps those of place
share x length and beyond; where it is differentiated, it is P.

Source: Xu et al. (2024), "BESA", arXiv 2402.16880, section 3.2, and its program.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

CANDIDATES = np.linspace(0.0, 1.0, 101)


def learned_share(logits: Float[Array, "*n D"]) -> Float[Array, "*n"]:
    """The mean of the candidates."""
    return jax.nn.softmax(logits, axis=-1) @ jnp.asarray(CANDIDATES, logits.dtype)


def learned_mask(logits: Float[Array, " D"], place: Int[Array, "I O"], length: int) -> Float[Array, "I O"]:
    """1 where a weight stays, else 0; with the gradient of the chance that it stays.

    Args:
      logits: of the candidates.
      place: of each weight in the order in which they go, from 0.
      length: number of places.

    Returns:
      Like `place`.
    """
    chance = jax.nn.softmax(logits)
    counts = jnp.asarray(np.floor(CANDIDATES * length), jnp.int32)
    gone = chance @ (jnp.arange(length)[None, :] < counts[:, None]).astype(chance.dtype)
    stays = (1 - gone)[place]
    hard = (place >= jnp.round(learned_share(logits) * length)).astype(stays.dtype)
    return jax.lax.stop_gradient(hard - stays) + stays


def logits_of(share: float) -> Float[np.ndarray, " D"]:
    """The flattest logits whose `learned_share` is a share: linear in the candidates.

    Raises:
      ValueError: if it is not strictly between 0 and 1.

    Example:
      >>> round(float(learned_share(jnp.asarray(logits_of(0.6), jnp.float32))), 4)
      0.6
    """
    if not 0 < share < 1:
        msg = f"a distribution over shares has its mean between 0 and 1, both excluded; got {share!r}."
        raise ValueError(msg)
    low, high = -1e4, 1e4
    for _ in range(100):  # past the resolution of float64
        slope = 0.5 * (low + high)
        weight = np.exp(slope * CANDIDATES - max(slope, 0.0))
        low, high = (low, slope) if weight @ CANDIDATES > share * weight.sum() else (slope, high)
    return 0.5 * (low + high) * CANDIDATES
