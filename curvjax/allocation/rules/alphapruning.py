"""AlphaPruning: layers with heavier spectral tails keep more weights."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE, SHARE
from curvjax.allocation.rules.minmax import minmax
from curvjax.allocation.rules.registry import rule
from curvjax.allocation.tuned import Tuned


@rule("alphapruning", "sparsity", tuned=Tuned("spread", (0.1, 0.2, 0.3, 0.5, 0.8)))
def alphapruning(
    q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, spread: ArrayLike = 0.3
) -> Float[ArrayLike, " K"]:
    """Sparsities that fall linearly with the score, from 1 + spread to 1 - spread times a common level.

        x_k = min(c (1 + spread - 2 spread minmax(q)_k), maximum_k),   c such that weight @ x = total

    Args:
      q: `[K]` finite scores, larger keeps more: *minus* the published power-law exponent of the block. FARMS keeps
        this map and changes the exponent.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.
      spread: `[]` the published epsilon, in [0, 1].

    Returns:
      `[K]` sparsities.

    Raises:
      ValueError: outside a trace, as `meet_budget` does.

    Source: Lu et al. (2024), "AlphaPruning", arXiv 2410.10912, its linear map and its rescaling by the sizes. The
    published program does not clamp, and returns sparsities above 1 (LLaMA-7B at 0.8); ours gives what is cut off to
    the other blocks.
    """
    settings = (Setting("spread", spread, SHARE),)
    return meet_budget(_line, q, budget, *settings, allowed=FINITE, sparsity=True)


def _line(q: Float[Array, " K"], limits: Limits, spread: Float[Array, ""]) -> Line:
    del limits
    return Line(0.0 * q, 1 + spread - 2 * spread * minmax(q))
