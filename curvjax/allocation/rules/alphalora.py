"""AlphaLoRA: experts in proportion to a power of the spectral exponent."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.rounding import repaired, whole_budget
from curvjax.allocation.rules.proportional import proportional
from curvjax.allocation.rules.registry import rule


@rule("alphalora", "rank", "experts")
def alphalora(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, beta: float = 2.5) -> Int[np.ndarray, " K"]:
    """Whole experts: the proportional share to the nearest unit, repaired to the exact total.

        x_k = round(T q_k^beta / sum_j q_j^beta),   then one unit each is given (or taken) until sum_k x_k = T

    Args:
      q: `[K]` non-negative scores, larger gets more; published with the power-law exponent of each block. The repair
        depends on their scale.
      budget: equal costs, total and largest amounts.
      beta: non-negative exponent of the score.

    Returns:
      `[K]` whole amounts, on the host.

    Raises:
      ValueError: for a negative score or exponent, unequal costs, or a total beyond the whole maxima.

    Source: Qing et al. (2024), "AlphaLoRA", arXiv 2410.10054, and its program, which ranks for the repair
    by q^beta - x, not by the remainder of the share: where too many were given it takes from the largest of these,
    where too few it gives to the smallest. We keep that order but repair each unit once before any twice: the
    published loop puts a whole shortage on one unit (12 equal scores and 30 experts: 8 on the first).
    """
    share = np.asarray(proportional(q, budget, beta=beta))
    total, most = whole_budget(budget, share.size)
    with np.errstate(over="ignore"):  # an infinite power still ranks first
        power = np.asarray(q, dtype=np.float64) ** beta
    whole = np.minimum(np.rint(share).astype(np.int64), most)
    return repaired(whole, whole - power, total=total, maximum=most)
