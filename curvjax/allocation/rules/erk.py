"""ERK: density in proportion to a score of each block's shape."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, meet_budget
from curvjax.allocation.rules.registry import rule


@rule("erk", "sparsity")
def erk(q: Num[ArrayLike, " K"], budget: BudgetConstraint) -> Float[ArrayLike, " K"]:
    """Sparsities with densities in proportion to the scores, dense at most.

        1 - x_k = min(c q_k, 1),   x_k <= maximum_k,   c such that weight @ x = total

    Args:
      q: `[K]` non-negative scores, larger keeps more; published with (inputs + outputs) / (inputs * outputs) of a
        matrix, so that small matrices stay denser.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.

    Returns:
      `[K]` sparsities.

    Raises:
      ValueError: outside a trace, for a negative score, or as `meet_budget` does.

    Source: Evci et al. (2020), "Rigging the Lottery", arXiv 1911.11134, section 3(1); Mocanu et al. (2018). As there,
    blocks that would be more than dense are kept dense and the others share the rest; the maxima are ours.
    """
    return meet_budget(_line, q, budget, sparsity=True)


def _line(q: Float[Array, " K"], limits: Limits) -> Line:
    del limits
    return Line(jnp.ones_like(q), q)
