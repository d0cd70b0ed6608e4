"""Gains made comparable: one share per unit."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from curvjax.allocation.inputs import in_float64, single, unit_count


@in_float64
def quality(zeta2: Num[ArrayLike, " K"], *, floor: ArrayLike = 0.0) -> Float[ArrayLike, " K"]:
    """Quality score of each unit, its share of the total gain [M10].

        q_k = max(zeta2_k, 0) / sum_j max(zeta2_j, 0)  (+ floor * median(q))

    Args:
      zeta2: `[K]` gains g' H^-1 g in nats, in layer order. Negative entries (an indefinite block) count as 0.
      floor: share of the median added to every unit, for programs that need q > 0; the paper uses 0.05. The
        scores then sum to `1 + K floor median(q)`.

    Returns:
      `[K]` float64 (in a trace: the caller's precision), dimensionless. In a trace degenerate input gives NaN.

    Raises:
      ValueError: if `zeta2` is not a vector, or has an entry that is not finite, or none that is positive, or if
        `floor` is negative, or is asked of scores whose median is 0.

    Source: Amaefuna et al., arXiv 2603.00910, section on quality scores.
    """
    unit_count("zeta2", zeta2)
    if not isinstance(zeta2, Tracer):
        _refuse_degenerate(np.asarray(zeta2, dtype=np.float64), floor)
    floor = single("floor", floor)
    gain = jnp.maximum(jnp.asarray(zeta2, dtype=jnp.float64), 0.0)  # max keeps NaN
    # dividing by the largest first keeps the sum of very large or very small gains in range
    share = gain / jnp.max(gain)
    share = share / jnp.sum(share)
    return share + floor * jnp.median(share)


def _refuse_degenerate(gain: np.ndarray, floor: ArrayLike) -> None:
    lost = np.flatnonzero(~np.isfinite(gain))
    if lost.size:
        msg = f"zeta2 must be finite; units {lost[:8].tolist()} ({lost.size} of {gain.size}) are not."
        raise ValueError(msg)
    if gain.max() <= 0:
        msg = f"zeta2 must be positive somewhere; all {gain.size} units are at most 0, the largest {gain.max():g}."
        raise ValueError(msg)
    if not isinstance(floor, Tracer) and np.any(np.asarray(floor)) and np.median(np.maximum(gain, 0.0)) == 0:
        zero = np.flatnonzero(gain <= 0)
        msg = f"a floor of {floor} times the median lifts nothing: the median is 0, as in units {zero[:8].tolist()}."
        raise ValueError(msg)


def positive_scores(scores: Num[ArrayLike, " K"]) -> Float[np.ndarray, " K"]:
    """Scores for a program of powers: those that are all negative, minus a measure that points down, become 1/measure.

    The program sees ratios, q^kappa, and a measure m that calls for removal enters it as m^-kappa. Scores of both signs
    stay: their negative part counts as 0 [M10].
    """
    scores = np.asarray(scores, np.float64)
    return -1 / scores if (scores < 0).all() else scores
