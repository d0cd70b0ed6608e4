"""One threshold for all units, such that exactly so many entries lie below it."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from curvjax.scores.totals import share_total


def shares_below(plan: str, scores: Sequence[Float[np.ndarray, " _"]], *, total: float) -> Float[Array, " K"]:
    """The share of each unit's weights that goes where those of least score in the whole model go.

    Args:
      plan: whose total, for the message.
      scores: for each of `K` units, one score a weight.
      total: share of all weights to remove.

    Returns:
      `[K]` shares; in all the nearest whole number to `total` times the count of weights.

    Raises:
      ValueError: if `total` is no share.
    """
    sizes = np.array([len(unit) for unit in scores])
    return jnp.asarray(counts_below(scores, count=share_total(plan, total, of=int(sizes.sum()))) / sizes)


def counts_below(scores: Sequence[Float[np.ndarray, " _"]], *, count: int) -> Int[np.ndarray, " K"]:
    """How many of the `count` smallest scores of all units each unit holds.

    Of scores equal to the threshold those of the first units are taken.

    Args:
      scores: for each of `K` units, the scores of its entries.
      count: from 0 to the number of entries.

    Returns:
      `[K]` with the sum `count`.
    """
    if count == 0:
        return np.zeros(len(scores), np.int64)
    threshold = np.partition(np.concatenate(scores), count - 1)[count - 1]
    below = np.array([np.sum(part < threshold) for part in scores])
    equal = np.array([np.sum(part == threshold) for part in scores])
    before = np.cumsum(equal) - equal
    return below + np.clip(count - below.sum() - before, 0, equal)
