"""The one convex core: a sum of one curve per unit, bounds for each, one budget for all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from curvjax.allocation.bisect import power_midway, spend
from curvjax.allocation.curves import Curve, traceable
from curvjax.allocation.inputs import BOUND, END, FINITE, POSITIVE, in_float64, per_unit, single, unit_count
from curvjax.allocation.result import Solution, delivered, judged, stationarity

_LARGEST = 1e300  # what is more is beyond everybody's reach all the same
_BELOW = 1e-300  # where a unit neither costs nor buys anything, only a price below 0 makes it take what must be spent


class SeparableProblem(NamedTuple):
    """Float64 numbers of a program, `[K]` each but for the budget's ends, which are `[]`; least: -inf for no end."""

    weight: Float[Array, " K"]
    cost: Float[Array, " K"]
    price: Float[Array, " K"]
    lower: Float[Array, " K"]
    upper: Float[Array, " K"]
    least: Float[Array, ""]
    budget: Float[Array, ""]


@in_float64
def allocate_separable(
    curve: Curve,
    *,
    weight: Num[ArrayLike, " K"],
    cost: ArrayLike,
    budget: ArrayLike,
    least: ArrayLike | None = None,
    price: ArrayLike = 0.0,
    lower: ArrayLike = 0.0,
    upper: ArrayLike | None = None,
    ties: Int[ArrayLike, " K"] | None = None,
) -> Solution:
    """Amounts that minimise a separable convex objective under one budget: the core of [M11] and [M15].

        argmin_{lower <= x <= upper}  sum_k price_k x_k + weight_k f(x_k)
        subject to                    least <= sum_k cost_k x_k <= budget

    At a given dual price lambda every amount is known, x_k(lambda) = clip(f'^-1(-(price_k + lambda cost_k) / weight_k),
    lower_k, upper_k), and falls with lambda: 0 where what the units want of themselves costs between the two ends of
    the budget, else the root at the end that they miss (above 0 at `budget`, below 0 at `least`), found by bisection.

    A frozen unit has lower = upper. Tied units receive the same amount: they act as one unit with the sums of their
    weights, costs and prices, and the tightest of their bounds.

    Args:
      curve: f, convex; `-u` for a concave utility u. Parameters of its own are `[]` or `[K]`, alike in tied units.
      weight: `[K]` non-negative.
      cost: `[K]` or `[]` positive, what one unit of amount takes from the budget.
      budget: `[]` most that may be spent, in units of `cost`.
      least: `[]` least that must be spent, None for nothing; the same as `budget` for an equality.
      price: `[K]` or `[]` linear term, in the objective's unit, non-negative.
      lower: `[K]` or `[]` least amounts, non-negative.
      upper: `[K]` or `[]` most of each, `inf` or None where there is no bound.
      ties: `[K]` whole group numbers from 0 to K - 1; units of one number receive the same.

    Returns:
      An `Solution`. Its dual is the fall of the objective per unit of further budget. Worked out in float64.

    Raises:
      ValueError: outside a trace, for an empty weight, a wrong shape, a value that is not finite or out of the ranges
        above, bounds that cross, or a budget that the bounds cannot meet. In a trace the status says so.

    Source: ours; for log utilities and quadratic penalties Amaefuna et al., arXiv 2603.00910, Theorems 2 and 3.
    """
    count = unit_count("weight", weight)
    numbers: dict[str, Any] = {
        "weight": per_unit("weight", weight, count),
        "cost": per_unit("cost", cost, count, POSITIVE),
        "price": per_unit("price", price, count),
        "lower": per_unit("lower", lower, count),
        "upper": per_unit("upper", np.inf if upper is None else upper, count, BOUND),
        "least": single("least", -np.inf if least is None else least, END),
        "budget": single("budget", budget, FINITE),
    }
    result = solved(curve, SeparableProblem(**numbers), ties)
    return delivered(result)


def solved(curve: Curve, problem: SeparableProblem, ties: Int[ArrayLike, " K"] | None = None) -> Solution:
    """The solution of a checked problem, failures told by status; to be called with 64 bits on.

    Raises:
      ValueError: as `allocate_separable` does for bounds, the budget's ends and ties.
    """
    count = jnp.shape(problem.weight)[0]
    require_ordered_bounds(problem.lower, problem.upper, count)
    _require_interval(problem.least, problem.budget)
    return solution(traceable(curve), tied_problem(problem, group_numbers(ties, count)))


def require_ordered_bounds(lower: ArrayLike, upper: ArrayLike, count: int) -> None:
    """Refuse bounds that cross, naming the units and by how much."""
    if isinstance(lower, Tracer) or isinstance(upper, Tracer):
        return
    low, high = (np.broadcast_to(np.asarray(x, dtype=np.float64), (count,)) for x in (lower, upper))
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        worst = crossed[np.argmax((low - high)[crossed])]
        msg = (
            f"bounds cross in {crossed.size} of {count} units, {crossed[:8].tolist()}: in unit {worst} the least "
            f"amount is {low[worst]:g} and the most {high[worst]:g}, short by {low[worst] - high[worst]:g}."
        )
        raise ValueError(msg)


def _require_interval(least: ArrayLike, budget: ArrayLike) -> None:
    if isinstance(least, Tracer) or isinstance(budget, Tracer):
        return
    if np.isfinite(least) and np.any(np.asarray(least) > np.asarray(budget)):
        msg = f"the least that must be spent, {least:g}, is more than the budget, {budget:g}."
        raise ValueError(msg)


def group_numbers(ties: Int[ArrayLike, " K"] | None, count: int) -> Int[ArrayLike, " K"] | None:
    """Checked group numbers of tied units.

    Raises:
      ValueError: if they are not whole numbers from 0 to K - 1, one for each unit.
    """
    if ties is None or isinstance(ties, Tracer):
        return ties
    numbers = np.asarray(ties)
    whole = np.issubdtype(numbers.dtype, np.integer)
    if numbers.shape != (count,) or not whole or numbers.min() < 0 or numbers.max() >= count:
        msg = f"ties need one whole group number from 0 to {count - 1} for each of {count} units; got {numbers}."
        raise ValueError(msg)
    return numbers.astype(np.int32)


def tied_problem(problem: SeparableProblem, groups: Int[ArrayLike, " K"] | None) -> SeparableProblem:
    """The problem under which tied units want the same: their means, and the tightest of their bounds."""
    if groups is None:
        return problem
    count = jnp.shape(problem.weight)[0]
    members = jax.ops.segment_sum(jnp.ones(count), groups, count)

    def mean(values: Float[ArrayLike, " K"]) -> Float[Array, " K"]:
        return (jax.ops.segment_sum(jnp.asarray(values), groups, count) / jnp.maximum(members, 1))[groups]

    lower = jax.ops.segment_max(jnp.asarray(problem.lower), groups, count)[groups]
    upper = jax.ops.segment_min(jnp.asarray(problem.upper), groups, count)[groups]
    weight, cost, price = (mean(x) for x in (problem.weight, problem.cost, problem.price))
    return SeparableProblem(weight, cost, price, lower, upper, problem.least, problem.budget)


@jax.jit
def solution(curve: Curve, problem: SeparableProblem) -> Solution:
    """The program's solution, failures told by status; see `allocate_separable`."""
    value, cost = power_midway(jnp.concatenate([problem.weight, problem.price])), power_midway(problem.cost)
    scaled = problem._replace(
        weight=problem.weight / value,
        price=problem.price / value,
        cost=problem.cost / cost,
        least=jnp.clip(problem.least / cost, -jnp.inf, _LARGEST),
        budget=jnp.where(jnp.isfinite(problem.budget), jnp.minimum(problem.budget / cost, _LARGEST), problem.budget),
    )
    # the barrier: XLA turns a / (b / c) into a * c / b, which leaves the range again
    found = _in_scale(curve, jax.lax.optimization_barrier(scaled))
    counts = {name: getattr(found, name) * cost for name in ("spent", "requested", "floor", "reach")}
    # dual: in two steps, as value / cost may leave the range where their product with it does not
    return found._replace(
        **counts, dual=found.dual * value / cost, objective=found.objective * value, gap=found.gap * value
    )


def _in_scale(curve: Curve, problem: SeparableProblem) -> Solution:
    weight, cost, price, lower, upper, least, budget = problem
    useful = (weight > 0) | (least > 0)
    reach = jnp.sum(cost * jnp.where(useful, upper, lower))
    floor = jnp.sum(cost * lower)
    room = jnp.maximum(budget - floor, 0.0)
    # above what any one unit can be paid for, and finite
    limit = jnp.minimum(upper, lower + 1 + jnp.minimum(2 * room / cost, _LARGEST))

    inverse = 1 / jnp.where(weight > 0, weight, 1.0)  # out of the loop: a division fewer for each unit and step

    def amounts(dual: Float[Array, ""]) -> Float[Array, " K"]:
        net = price + dual * cost
        wanted = curve.inverse_slope(-net * inverse)
        wanted = jnp.where(weight > 0, wanted, jnp.where(net < 0, limit, lower))
        return jnp.clip(wanted, lower, limit)

    low, high = _bracket(curve, problem, limit)
    free = amounts(jnp.zeros_like(low))
    wants = jnp.sum(cost * free)
    slack = (wants <= budget) & (wants >= least) & (least < budget)  # an equality always has its price
    total = jnp.clip(jnp.where(wants > budget, budget, least), floor, jnp.minimum(reach, jnp.sum(cost * limit)))
    dual, bound = spend(amounts, cost, total, low, high)
    amount = jnp.where(slack, free, bound)
    free_of_charge = jnp.abs(dual) <= 2 * _BELOW / jnp.min(cost)  # the bracket reaches that far past a slope of 0
    dual = jnp.where(slack | free_of_charge, 0.0, dual)

    spent = jnp.sum(cost * amount)
    objective = _objective(curve, problem, amount)
    best = amounts(dual)  # of the Lagrangian
    gap = objective - _objective(curve, problem, best) - dual * jnp.sum(cost * (best - amount))
    missed = jnp.maximum(spent - budget, least - spent) / jnp.where(budget > 0, budget, 1.0)
    # where the lower bounds take the whole budget nothing can move, however steep the curves are there
    still = jnp.where(floor >= budget, 0.0, _stationarity(curve, problem, amount, dual))
    residual = jnp.maximum(still, jnp.maximum(missed, 0.0))
    valid = _valid(problem) & jnp.isfinite(objective)
    held = jnp.where(amount <= lower, -1, jnp.where(amount >= upper * (1 - 1e-12), 1, 0)).astype(jnp.int32)
    result = Solution(
        amount=amount,
        dual=dual,
        spent=spent,
        requested=jnp.where(wants < least, least, budget),
        floor=floor,
        reach=reach,
        objective=objective,
        gap=jnp.maximum(gap, 0.0),
        residual=residual,
        held=held,
        status=jnp.int32(0),
    )
    return judged(result, valid=valid, least=least, budget=budget, slack=slack)


def _bracket(
    curve: Curve, problem: SeparableProblem, limit: Float[Array, " K"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Dual prices past the rounding of their own: every unit at its limit, and every unit at its lower bound."""

    def ends(at: Float[Array, " K"], side: float) -> Float[Array, " K"]:
        slope = jnp.where(problem.weight > 0, problem.weight * curve.slope(at), 0.0)
        past = 1e-15 * (jnp.abs(slope) + problem.price) + _BELOW
        return (-slope - problem.price + side * past) / problem.cost

    movable = problem.lower < limit
    low = jnp.where(movable, ends(limit, -1.0), jnp.inf)
    high = jnp.where(movable, ends(problem.lower, 1.0), -jnp.inf)
    some = jnp.any(movable)
    low = jnp.where(some, jnp.min(low), 0.0)
    return low, jnp.maximum(jnp.where(some, jnp.max(high), 0.0), low)


def _objective(curve: Curve, problem: SeparableProblem, amount: Float[Array, " K"]) -> Float[Array, ""]:
    return jnp.sum(problem.price * amount + jnp.where(problem.weight > 0, problem.weight * curve.value(amount), 0.0))


def _stationarity(
    curve: Curve, problem: SeparableProblem, amount: Float[Array, " K"], dual: Float[Array, ""]
) -> Float[Array, ""]:
    net = problem.price + dual * problem.cost
    sides = curve.slope if curve.left_slope is None else curve.left_slope, curve.slope
    left, right = (jnp.where(problem.weight > 0, problem.weight * side(amount), 0.0) for side in sides)
    scale = problem.price + jnp.abs(dual) * problem.cost + jnp.minimum(jnp.abs(left), jnp.abs(right))
    # moving down must not pay, nor moving up; on a smooth curve both are the one gradient
    gradient = jnp.where(net + left > 0, net + left, jnp.minimum(net + right, 0.0))
    return stationarity(gradient, scale, amount, problem.lower, problem.upper)


def _valid(problem: SeparableProblem) -> Bool[Array, ""]:
    weight, cost, price, lower, upper, least, budget = problem
    signs = (weight >= 0) & (cost > 0) & (price >= 0) & (lower >= 0) & (upper >= lower)
    finite = jnp.isfinite(weight) & jnp.isfinite(cost) & jnp.isfinite(price) & jnp.isfinite(lower)
    return jnp.all(signs & finite) & jnp.isfinite(budget) & ~jnp.isnan(least)
