"""ECoFLaP: kept weights in proportion to importance, on top of a floor for every block."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, meet_budget
from curvjax.allocation.rules.registry import rule


@rule("ecoflap", "sparsity")
def ecoflap(q: Num[ArrayLike, " K"], budget: BudgetConstraint) -> Float[ArrayLike, " K"]:
    """Sparsities that leave each block its floor of weights, and share out the others by importance.

        weight_k (1 - x_k) = min(weight_k (1 - maximum_k) + c q_k, weight_k),   c such that weight @ x = total

    Args:
      q: `[K]` non-negative importance of each block, larger keeps more: published with its weights' mean (`obd_avg`, as
        the score `ecoflap-first`) or sum; with the sum larger blocks keep more.
      budget: sizes of the blocks, weights to remove, and the largest share of each block (published with S + 0.1).

    Returns:
      `[K]` sparsities. Equal scores give equal sparsities for blocks of equal size and maximum only.

    Raises:
      ValueError: outside a trace, for a negative score, or as `meet_budget` does.

    Source: Sung et al. (2024), "ECoFLaP", arXiv 2310.02998, first stage. The published program fills in rounds of
    whole weights, each rounded up, and can keep a few weights more than asked; ours solves for their limit exactly.
    """
    return meet_budget(_line, q, budget, sparsity=True)


def _line(q: Float[Array, " K"], limits: Limits) -> Line:
    return Line(limits.maximum, q / limits.weight)
