"""Uniform+: uniform sparsity that spares both ends of the network."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.inputs import SHARE, in_float64, per_unit, single, unit_count
from curvjax.allocation.rules.registry import rule
from curvjax.allocation.rules.uniform import uniform


@rule("uniform_plus", "sparsity", reads_scores=False)
@in_float64
def uniform_plus(
    q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, last_density: ArrayLike = 0.2
) -> Float[ArrayLike, " K"]:
    """The same sparsity for all blocks but the first, which stays dense, and the last, which keeps a least density.

        x_1 = 0,   x_K = min(t, maximum_K, 1 - last_density),   x_k = min(t, maximum_k),   weight @ x = total

    Args:
      q: `[K]` not used but for their number.
      budget: sizes of the blocks, weights to remove, and the largest share of each block.
      last_density: `[]` share of the last block that stays at least, in [0, 1].

    Returns:
      `[K]` sparsities, by position.

    Raises:
      ValueError: outside a trace, as `meet_budget` does; with one block every total but 0 is out of reach.

    Source: Gale, Elsen & Hooker (2019), "The State of Sparsity in Deep Neural Networks", arXiv 1902.09574: there
    the first convolution and the last linear layer.
    """
    count = unit_count("q", q)
    most = jnp.asarray(per_unit("maximum", budget.maximum, count, SHARE))
    last = jnp.minimum(most[-1], 1 - single("last_density", last_density, SHARE))
    spared = most.at[-1].set(last).at[0].set(0.0)
    return uniform(q, budget._replace(maximum=spared))
