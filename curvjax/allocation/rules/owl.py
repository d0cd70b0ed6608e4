"""OWL: layers with more outliers keep more weights."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE, SHARE
from curvjax.allocation.rules.minmax import minmax
from curvjax.allocation.rules.registry import rule
from curvjax.allocation.tuned import Tuned

SPREADS = Tuned("spread", (0.04, 0.08, 0.15, 0.25, 0.4))


@rule("owl", "sparsity", tuned=SPREADS)
def owl(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, spread: ArrayLike = 0.08) -> Float[ArrayLike, " K"]:
    """Sparsities whose densities differ by at most twice the spread, in proportion to the scores.

        1 - x_k = 2 spread minmax(q)_k + c,   c such that weight @ x = total,   0 <= x_k <= maximum_k

    Args:
      q: `[K]` finite scores, larger keeps more; published with the share of outliers D_k, in percent.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.
      spread: `[]` the published lambda, half the range of the densities, in [0, 1].

    Returns:
      `[K]` sparsities. Centred, so that |x_k - S| <= spread need not hold for the mean sparsity S.

    Raises:
      ValueError: outside a trace, as `meet_budget` does.

    Source: Yin et al. (2023), "Outlier Weighed Layerwise Sparsity", arXiv 2310.05175. The published
    program centres on the plain mean over layers, and so misses the total where sizes differ, returns densities
    above 1 at low sparsity, and divides 0 by 0 where all scores are equal; ours weights by size, clamps, and is
    uniform. For equal sizes and no bound in the way the two agree.
    """
    settings = (Setting("spread", spread, SHARE),)
    return meet_budget(spread_line, q, budget, *settings, allowed=FINITE, sparsity=True)


def spread_line(q: Float[Array, " K"], limits: Limits, spread: Float[Array, ""]) -> Line:
    """Densities that rise with the score by 2 spread from the least to the greatest."""
    del limits
    return Line(-2 * spread * minmax(q), jnp.ones_like(q))
