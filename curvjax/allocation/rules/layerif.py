"""LayerIF: one expert for every layer, and the others by how far its score lies above the lowest."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE, unit_count
from curvjax.allocation.rounding import whole_budget, whole_units
from curvjax.allocation.rules.proportional import power_line
from curvjax.allocation.rules.registry import rule


@rule("layerif", "rank", "experts")
def layerif(
    q: Num[ArrayLike, " K"],
    budget: BudgetConstraint,
    *,
    beta: ArrayLike = 1.0,
    first: int = 1,
) -> Int[np.ndarray, " K"]:
    """Whole experts: `first` for every unit, and the rest by a power of the score's height above the lowest.

        x_k = first + floor((T - first K) u_k^beta / sum_j u_j^beta),   u_k = q_k - min_j q_j,

    and what is left to the largest fractions.

    Args:
      q: `[K]` finite scores, larger gets more. In the paper's sign of influence S, where lower is more, q = -S.
      budget: equal costs, total (the first units included) and largest amounts.
      beta: non-negative exponent.
      first: units that everyone has; 0 where the budget counts further units only.

    Returns:
      `[K]` whole amounts, on the host.

    Raises:
      ValueError: for a score that is not finite, a negative exponent or `first`, unequal costs, a total below the
        first units, or one beyond the whole maxima.

    Source: Askari et al. (2025), "LayerIF", arXiv 2505.23811, section on expert allocation. Where all scores are equal
    the formula is 0/0; ours is uniform.
    """
    count = unit_count("q", q)
    total, most = whole_budget(budget, count)
    if first < 0 or total < first * count or (most < first).any():
        msg = (
            f"{count} units with {first} each to begin with need a total of {first * count}, and a maximum of at least "
            f"{first} everywhere; got {total} and {most.min()}. Change `first` or the budget."
        )
        raise ValueError(msg)
    rest = BudgetConstraint(np.ones(count), float(total - first * count), (most - first).astype(np.float64))
    return first + whole_units(meet_budget(_line, q, rest, Setting("beta", beta), allowed=FINITE), rest)


def _line(q: Float[Array, " K"], limits: Limits, beta: Float[Array, ""]) -> Line:
    return power_line(q - jnp.min(q), limits, beta)
