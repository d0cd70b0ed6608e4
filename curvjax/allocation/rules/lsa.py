"""LSA's map: OWL's, with a spread for each tenth of the total sparsity."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, meet_budget
from curvjax.allocation.inputs import FINITE, with_rounding
from curvjax.allocation.rules.owl import spread_line
from curvjax.allocation.rules.registry import rule

SPREADS = (0.06, 0.06, 0.02, 0.04, 0.02, 0.04, 0.1, 0.15, 0.12, 0.12)


@rule("lsa", "sparsity")
def lsa(q: Num[ArrayLike, " K"], budget: BudgetConstraint) -> Float[ArrayLike, " K"]:
    """Sparsities as those of `owl`, whose spread is the published one at floor(10 S), S the mean sparsity.

    Args:
      q: `[K]` finite scores, larger keeps more; published with 1 minus the share of the reconstruction error.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.

    Returns:
      `[K]` sparsities.

    Raises:
      ValueError: outside a trace, as `meet_budget` does.

    Source: Yang et al. (2026), "LSA", ICLR 2026, and the table `alpha` of its program, which was tuned and holds
    S from 0.1 to below 0.9; ours takes the nearest entry beyond. What else differs is what differs in `owl`.
    """
    return meet_budget(_line, q, budget, allowed=FINITE, sparsity=True)


def _line(q: Float[Array, " K"], limits: Limits) -> Line:
    tenth = jnp.floor(with_rounding(10 * limits.total / jnp.sum(limits.weight))).astype(int)
    return spread_line(q, limits, jnp.asarray(SPREADS)[jnp.clip(tenth, 0, len(SPREADS) - 1)])
