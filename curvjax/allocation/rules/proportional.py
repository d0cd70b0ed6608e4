"""Capacity in proportion to a power of the score, as it is or in whole units by the authors' two roundings."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.rounding import whole_units
from curvjax.allocation.rules.registry import rule


@rule("proportional", "rank", "experts")
def proportional(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, beta: ArrayLike = 1.0) -> Float[ArrayLike, " K"]:
    """Amounts in proportion to a power of the score: the plain share that any program must beat.

        x_k = min(c q_k^beta, maximum_k),   c such that weight @ x = total

    Args:
      q: `[K]` non-negative scores, larger gets more.
      budget: costs, total and largest amounts.
      beta: `[]` non-negative exponent; 0 is uniform.

    Returns:
      `[K]` amounts; a unit of score 0 gets what the others' maxima leave over.

    Raises:
      ValueError: outside a trace, for a negative score or exponent, or as `meet_budget` does.
    """
    return meet_budget(power_line, q, budget, Setting("beta", beta))


def power_line(q: Float[Array, " K"], limits: Limits, beta: Float[Array, ""]) -> Line:
    """Slopes q_k^beta relative to the largest, which is free of overflow; zeros where all scores are zero."""
    del limits
    largest = jnp.max(q)
    known = largest > 0
    return Line(jnp.zeros_like(q), jnp.where(known, (q / jnp.where(known, largest, 1.0)) ** beta, 0.0))


@rule("largest_remainder", "rank", "experts")
def largest_remainder(
    q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, beta: ArrayLike = 1.0
) -> Int[np.ndarray, " K"]:
    """Whole units by score: the floor of the proportional share, then one more each by falling remainder.

    Args:
      q: `[K]` non-negative scores, larger gets more.
      budget: equal costs, total and largest amounts; as many whole units as the total pays for are given.
      beta: non-negative exponent of the score.

    Returns:
      `[K]` whole amounts, on the host.

    Raises:
      ValueError: for a negative score or exponent, unequal costs, or a total beyond the whole maxima.

    Source: the program released with arXiv 2603.00910 (Amaefuna et al.), which has no maxima.
    """
    return whole_units(proportional(q, budget, beta=beta), budget)


@rule("floor", "rank", "experts")
def floored(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, beta: ArrayLike = 1.0) -> Int[np.ndarray, " K"]:
    """Whole units by score: the floor of the proportional share. Spends less than the total, by under one unit each.

    Args:
      q: `[K]` non-negative scores, larger gets more.
      budget: costs, total and largest amounts.
      beta: non-negative exponent of the score.

    Returns:
      `[K]` whole amounts, on the host.

    Raises:
      ValueError: for a negative score or exponent, or as `meet_budget` does.

    Source: the program released with arXiv 2603.00910 (Amaefuna et al.), which has no maxima.
    """
    share = np.asarray(proportional(q, budget, beta=beta))
    return np.floor(with_rounding(share)).astype(np.int64)
