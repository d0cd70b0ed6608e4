"""DLP's map: OWL's, with a wider spread."""

from jax.typing import ArrayLike
from jaxtyping import Float, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.rules.owl import SPREADS, owl
from curvjax.allocation.rules.registry import rule


@rule("dlp", "sparsity", tuned=SPREADS)
def dlp(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, spread: ArrayLike = 0.15) -> Float[ArrayLike, " K"]:
    """Sparsities whose densities differ by at most twice the spread, in proportion to the scores, as `owl`.

    Args:
      q: `[K]` finite scores, larger keeps more; published with 1 minus the share of the mean metric.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.
      spread: `[]` the published alpha, half the range of the densities, in [0, 1].

    Returns:
      `[K]` sparsities.

    Raises:
      ValueError: outside a trace, as `meet_budget` does.

    Source: Chen et al. (2025), "DLP", arXiv 2505.23807; what differs is what differs in `owl`.
    """
    return owl(q, budget, spread=spread)
