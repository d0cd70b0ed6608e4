"""The same for every unit: what any score must beat."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, meet_budget
from curvjax.allocation.inputs import unit_count
from curvjax.allocation.rules.registry import rule


@rule("uniform", "rank", "experts", "sparsity", "bits", reads_scores=False)
def uniform(q: Num[ArrayLike, " K"], budget: BudgetConstraint) -> Float[ArrayLike, " K"]:
    """The same amount for every unit, x_k = min(t, maximum_k), whatever the scores, with weight @ x = total.

    Args:
      q: `[K]` not used but for their number.
      budget: costs, total and largest amounts.

    Returns:
      `[K]` amounts.

    Raises:
      ValueError: outside a trace, if the total is more than the maxima hold; in a trace the amounts are then NaN.
    """
    return meet_budget(_equal, np.ones(unit_count("q", q)), budget)


def _equal(q: Float[Array, " K"], limits: Limits) -> Line:
    del limits
    return Line(jnp.zeros_like(q), q)
