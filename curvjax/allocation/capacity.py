"""Capacity beyond the first unit: experts, LoRA rank steps. The paper's Theorem 2 and Algorithm 1."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, Num

from curvjax.allocation.curves import Curve, log_utility
from curvjax.allocation.inputs import BOUND, END, FINITE, POSITIVE, in_float64, per_unit, raised, single, unit_count
from curvjax.allocation.result import Solution, delivered
from curvjax.allocation.separable import SeparableProblem, solved


@in_float64
def allocate_capacity(
    q: Num[ArrayLike, " K"],
    *,
    cost: ArrayLike,
    budget: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    minimum: ArrayLike = 0.0,
    maximum: ArrayLike | None = None,
    equality: bool = False,
    least: ArrayLike | None = None,
    ties: Int[ArrayLike, " K"] | None = None,
    utility: Curve = log_utility,
) -> Solution:
    """Extra capacity of each unit at the least cost in description length [M11].

        argmin_{minimum <= e <= maximum}  sum_k alpha_k e_k - gamma sum_k q_k^beta log(1 + e_k)
        subject to                        least <= sum_k cost_k e_k <= budget     (least = budget with `equality`)

    Convex with one multiplier, so each e_k is known at a given dual price lambda [M12],

        e_k(lambda) = clip(gamma q_k^beta / (alpha_k + lambda cost_k) - 1, minimum_k, maximum_k),

    and the price at which the budget is spent is found by bisection, O(K) a step. A budget that must be spent lets
    lambda be negative; a unit whose net price alpha_k + lambda cost_k is then not positive takes its maximum.

    Where alpha is proportional to cost (alpha zero included) and the budget binds, alpha and gamma cancel [M13]: only
    q, beta, cost and the bounds matter. A unit with q_k = 0 (or whose q_k^beta underflows) takes nothing unless what
    must be spent is more than all others can take, or would cost them more.

    Args:
      q: `[K]` quality scores, non-negative, in layer order.
      cost: `[K]` or `[]` positive; what one extra unit of capacity takes from the budget, e.g. parameters.
      budget: `[]` non-negative, in units of `cost`: what is there beyond the first unit of every layer.
      alpha: `[K]` or `[]` non-negative price of one extra unit, in the objective's unit (nats).
      gamma: `[]` positive weight of the benefit, nats.
      beta: `[]` non-negative exponent of the quality; 0 treats all q > 0 alike.
      minimum: `[K]` or `[]` least extra units; equal to the maximum it freezes a unit.
      maximum: `[K]` or `[]` most extra units, `inf` or None where there is no bound.
      equality: whether the budget must be spent in full even where that costs more than it buys.
      least: `[]` what must be spent at least, None for nothing.
      ties: `[K]` whole group numbers from 0 to K - 1; units of one number receive the same.
      utility: the curve -u in place of -log(1 + e): `power_utility`, `saturating_utility`, `measured_curve`.

    Returns:
      An `Solution` in extra units e. Its dual is the fall of the objective per unit of further budget. Worked out in
      float64.

    Raises:
      ValueError: outside a trace, for an empty q, a wrong shape, a value that is not finite or out of the ranges
        above, bounds that cross, or a budget that the bounds cannot meet. In a trace the status says so.

    Source: Amaefuna et al., arXiv 2603.00910, Theorem 2 and Algorithm 1. Ours: signed prices with bounds, ties, other
    utilities, and a bracket in closed form in place of its growth.
    """
    count = unit_count("q", q)
    ends = budget if equality else least
    numbers: dict[str, Any] = {
        "weight": raised(q, count, exponent=beta, name="beta", scale=single("gamma", gamma, POSITIVE)),
        "cost": per_unit("cost", cost, count, POSITIVE),
        "price": per_unit("alpha", alpha, count),
        "lower": per_unit("minimum", minimum, count),
        "upper": per_unit("maximum", np.inf if maximum is None else maximum, count, BOUND),
        "least": single("least", -np.inf if ends is None else ends, END),
        "budget": single("budget", budget, FINITE),
    }
    result = solved(utility, SeparableProblem(**numbers), ties)
    return delivered(result)
