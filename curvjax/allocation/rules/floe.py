"""FLoE: adapters on the layers of largest Fisher information, none on the others."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from curvjax.allocation.budget import BudgetConstraint, Limits, Line, Setting, meet_budget
from curvjax.allocation.inputs import FINITE, Range
from curvjax.allocation.rules.registry import rule


@rule("floe", "rank", "experts")
def floe(q: Num[ArrayLike, " K"], budget: BudgetConstraint, *, share: ArrayLike = 0.25) -> Float[ArrayLike, " K"]:
    """The same amount for a share of the units, those of largest score, and nothing for the others.

        x_k = min(c, maximum_k) where fewer than share K units have a larger score, else 0;   weight @ x = total

    Args:
      q: `[K]` finite scores, larger is chosen first; published with the trace of the layer's Fisher information.
      budget: costs, total and largest amounts.
      share: `[]` share of the units to choose, above 0 and at most 1; 0.25 is the paper's main setting, 0.5 the upper
        half.

    Returns:
      `[K]` amounts. Units tied with the last one chosen are chosen too. Where the chosen are full, the others share
      the rest.

    Raises:
      ValueError: outside a trace, for a share out of its range, or as `meet_budget` does.

    Source: Wang et al. (2025), "FLoE", arXiv 2506.00495, section on layer selection; its search for the rank is not
    part of this rule: the rank is what the budget allows.
    """
    settings = (Setting("share", share, Range(above=True, most=1.0)),)
    return meet_budget(_line, q, budget, *settings, allowed=FINITE)


def _line(q: Float[Array, " K"], limits: Limits, share: Float[Array, ""]) -> Line:
    del limits
    larger = jnp.sum((q[None, :] > q[:, None]).astype(q.dtype), axis=1)
    # 1e-12: a share of K that is whole must not gain a unit by rounding
    return Line(jnp.zeros_like(q), (larger < share * q.size * (1 - 1e-12)).astype(q.dtype))
