"""MoLA: a fixed number of experts for each quarter of the layers."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.inputs import unit_count
from curvjax.allocation.rules.proportional import largest_remainder
from curvjax.allocation.rules.registry import rule


@rule("mola", "rank", "experts", reads_scores=False)
def mola(
    q: Num[ArrayLike, " K"],
    budget: BudgetConstraint,
    *,
    quarters: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0),
) -> Int[np.ndarray, " K"]:
    """Whole experts by position alone: quarter j of the layers in proportion to `quarters[j]`.

        x_k ~ quarters[floor(4 k / K)],  k = 0..K-1,  scaled to the total and rounded by largest remainder

    Args:
      q: `[K]` not used but for their number.
      budget: equal costs, total and largest amounts.
      quarters: experts from the first quarter to the last. Published: 2-4-6-8 (inverted triangle, the best), 8-6-4-2
        (triangle), 8-2-2-8 (hourglass), 5-5-5-5 (rectangle); all give 160 experts on 32 layers.

    Returns:
      `[K]` whole amounts, on the host; the published numbers where the total is theirs.

    Raises:
      ValueError: if there are not four non-negative quarters, or as `largest_remainder` does.

    Source: Gao et al. (2024), "Higher Layers Need More LoRA Experts", arXiv 2402.08562. Ours: other totals.
    """
    if len(quarters) != 4 or min(quarters) < 0:
        msg = f"need four numbers, none negative, one for each quarter of the layers; got {quarters}."
        raise ValueError(msg)
    count = unit_count("q", q)
    pattern = np.asarray(quarters, dtype=np.float64)[4 * np.arange(count) // count]
    return largest_remainder(pattern, budget)
