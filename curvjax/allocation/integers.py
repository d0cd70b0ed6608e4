"""Whole units of capacity: the exact integer optimum where it can be had, and how far from it where not."""

import heapq
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from curvjax.allocation.bisect import adjacent_prices, power_midway
from curvjax.allocation.capacity import allocate_capacity
from curvjax.allocation.inputs import (
    BOUND,
    POSITIVE,
    in_float64,
    per_unit,
    raised,
    single,
    unit_count,
    with_rounding,
)
from curvjax.allocation.knapsack import best_choice
from curvjax.allocation.result import SolutionStatus

_LARGEST_AMOUNT = 2.0**53  # above it float64 does not tell whole numbers apart


class IntegerAllocation(NamedTuple):
    """Whole units, on the host.

    amount: `[K]` int64. spent: total cost. unspent: budget left; `status` says why: `OPTIMAL` no further unit that
    pays also fits, `SLACK` no further unit pays, `AT_CAPACITY` all units are at their maxima. objective: of the
    program, at the integers. gap: objective less that of the continuous optimum, at least 0: the most that a better
    rounding could still gain. exact: whether the integers are proven optimal.
    """

    amount: Int[np.ndarray, " K"]
    spent: float
    unspent: float
    objective: float
    gap: float
    exact: bool
    status: SolutionStatus


class _Program(NamedTuple):
    """The program in float64: benefit w, price alpha, cost, most whole units, budget with its rounding; on the host."""

    w: Float[np.ndarray, " K"]
    alpha: Float[np.ndarray, " K"]
    cost: Float[np.ndarray, " K"]
    top: Float[np.ndarray, " K"]
    budget: Float[np.ndarray, ""]

    def objective(self, amount: Num[np.ndarray, " K"]) -> float:
        return math.fsum(self.alpha * amount - self.w * np.log1p(amount))

    def gain(self, unit: Int[np.ndarray, " N"], held: Num[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Fall of the objective from one more unit beside `held` extra ones."""
        return self.w[unit] * np.log1p(1 / (1 + held)) - self.alpha[unit]

    def rise(
        self, amount: Num[np.ndarray, " K"], base: Num[np.ndarray, " K"], price: float
    ) -> Float[np.ndarray, "2 K"]:
        """Its two parts, linear and logarithmic, from `base` to `amount`, the budget counted at a price."""
        further = amount - base
        return np.stack([(self.alpha + price * self.cost) * further, -self.w * np.log1p(further / (1 + base))])


def round_capacity(
    q: Num[ArrayLike, " K"],
    *,
    cost: ArrayLike,
    budget: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    maximum: ArrayLike | None = None,
    states: int = 20_000,
) -> IntegerAllocation:
    """Whole extra units of each layer that minimise the program of `allocate_capacity` [M14].

        argmin_{e in {0..maximum}^K}  sum_k alpha_k e_k - gamma sum_k q_k^beta log(1 + e_k)
        subject to                    sum_k cost_k e_k <= budget

    Equal costs: taking one unit at a time where [gamma q^beta log((2 + e) / (1 + e)) - alpha] / cost is largest is the
    exact optimum, since these gains fall with e (Fox). All units whose gain exceeds a price are counted at once,

        e_k(lambda) = floor(1 / expm1((alpha_k + lambda cost_k) / (gamma q_k^beta))),

    with lambda from the same bisection as the continuous program; of units that lie at that price the first get theirs
    first. Unequal costs: the same greedy choice gives a lower and lambda an upper bound of the optimum. A unit whose
    gain lies further from the price than these bounds lie apart is settled; the rest is a menu of amounts,
    searched as in `allocate_bits`. Where that is too large the greedy choice stands and `exact` is False.

    To spend all that fits, give `alpha=0`: with a binding budget and equal costs alpha changes nothing else [M13].

    Args:
      q: `[K]` quality scores, as for `allocate_capacity`.
      cost: `[K]` or `[]` positive.
      budget: non-negative, in units of `cost`; met to 1e-12 relative.
      alpha: `[K]` or `[]` non-negative price of a unit, nats.
      gamma: positive weight of the benefit, nats.
      beta: non-negative exponent of the quality.
      maximum: `[K]` or `[]` most extra units; None for no bound.
      states: most entries that the search may have open, and most partial choices that it keeps at a time.

    Returns:
      An `IntegerAllocation`.

    Raises:
      ValueError: as `allocate_capacity` does, or if the budget and the maxima allow a unit more than 2^53.

    Source: Fox (1966), Management Science 13(3), for greedy; reduced-cost fixing is textbook knapsack practice
    (Martello & Toth 1990, section 2.2.3).
    """
    # refuses what is malformed, and bounds what integers can reach
    continuous = allocate_capacity(q, cost=cost, budget=budget, alpha=alpha, gamma=gamma, beta=beta, maximum=maximum)
    host = _program(q, cost=cost, budget=budget, alpha=alpha, gamma=gamma, beta=beta, maximum=maximum)
    _require_countable(host)
    exact = bool(np.all(host.cost == host.cost[0]))
    scaled = in_float64(_in_scale)(host if exact else _in_common_units(host))
    price, (most, least, amount) = in_float64(_priced)(scaled)
    if not exact:
        amount, exact = _searched(scaled, _filled(scaled, least), most, float(price), states)
    spent = math.fsum(np.asarray(cost, dtype=np.float64) * amount)
    objective = host.objective(amount)
    return IntegerAllocation(
        amount=amount.astype(np.int64),
        spent=spent,
        unspent=max(float(continuous.requested) - spent, 0.0),
        objective=objective,
        gap=max(objective - host.objective(np.asarray(continuous.amount)), 0.0),
        exact=exact,
        status=_reason(host, amount),
    )


@in_float64
def whole_capacity(
    q: Num[ArrayLike, " K"],
    *,
    cost: ArrayLike,
    budget: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    maximum: ArrayLike | None = None,
) -> Int[ArrayLike, " K"]:
    """The amounts of `round_capacity` where every unit costs the same, as a function that `jit` and `vmap` take.

    Args:
      q: `[K]` quality scores.
      cost: `[]` positive.
      budget: as for `round_capacity`.
      alpha: as for `round_capacity`.
      gamma: as for `round_capacity`.
      beta: as for `round_capacity`.
      maximum: as for `round_capacity`.

    Returns:
      `[K]` whole amounts; -1 each where an input is not in its range, seen only in a trace.

    Raises:
      ValueError: outside a trace, for a value out of its range or a cost that is not one number.
    """
    host = _program(
        q, cost=single("cost", cost, POSITIVE), budget=budget, alpha=alpha, gamma=gamma, beta=beta, maximum=maximum
    )
    _require_countable(host)
    return _priced(_in_scale(host))[1][2].astype(jnp.int64)


def _program(
    q: Num[ArrayLike, " K"],
    *,
    cost: ArrayLike,
    budget: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    maximum: ArrayLike | None,
) -> _Program:
    count = unit_count("q", q)
    w: Any = raised(q, count, exponent=beta, name="beta", scale=single("gamma", gamma, POSITIVE))
    price: Any = per_unit("cost", cost, count, POSITIVE)
    most: Any = per_unit("maximum", np.inf if maximum is None else maximum, count, BOUND)
    room: Any = with_rounding(single("budget", budget))
    traced = any(isinstance(number, Tracer) for number in (w, price, most, room))
    xp: Any = jnp if traced else np
    with np.errstate(over="ignore"):
        # one above what the budget buys: finite, and reached only where `maximum` itself binds
        top = xp.where(w > 0, xp.minimum(xp.floor(most), xp.floor(room / price) + 1), 0.0)
    fixed: Any = per_unit("alpha", alpha, count)
    return _Program(w, fixed, price, top, room)


def _require_countable(program: _Program) -> None:
    if isinstance(program.top, Tracer):
        return
    largest = int(np.argmax(program.top))
    if program.top[largest] > _LARGEST_AMOUNT:
        msg = (
            f"unit {largest} could be given {program.top[largest]:g} whole units, too many to count exactly; "
            "give a maximum, or count in larger units."
        )
        raise ValueError(msg)


def _in_common_units(program: _Program) -> _Program:
    """Whole costs by their common divisor: what is left below it buys nothing, and bounds lie closer without it."""
    if not (np.all(program.cost == np.floor(program.cost)) and np.all(program.cost < 2**53)):
        return program
    unit = np.gcd.reduce(program.cost.astype(np.int64))
    return program._replace(cost=program.cost / unit, budget=np.floor(program.budget / unit))


@jax.jit
def _in_scale(program: _Program) -> _Program:
    """The same choice in units in which prices keep within the range of float64."""
    w, alpha, cost, _, budget = map(jnp.asarray, program)
    value, unit = power_midway(jnp.concatenate([w, alpha])), power_midway(cost)
    scaled: dict[str, Any] = {"w": w / value, "alpha": alpha / value, "cost": cost / unit, "budget": budget / unit}
    return jax.lax.optimization_barrier(program._replace(**scaled))


@jax.jit
def _priced(program: _Program) -> tuple[Float[Array, ""], Float[Array, "3 K"]]:
    """The price, and whole units at it (they reach the budget or are all that pay) and just above it (within budget).

    Last come, for equal costs, those just above it with what is left given to the units at it, the first unit first.
    """
    w, alpha, cost, top, budget = map(jnp.asarray, program)

    def units(price: Float[Array, ""]) -> Float[Array, " K"]:
        return _worthwhile(w, alpha + price * cost, top, jnp)

    high = jnp.maximum(jnp.max(w / cost) * jnp.log(2.0), 0.0) * 2
    # where the budget does not bind this ends at price 0, with all that pay
    low, high = adjacent_prices(lambda price: jnp.sum(cost * units(price)), budget, jnp.zeros_like(high), high)
    most, least = units(low), units(high)
    left = jnp.floor(budget / jnp.max(cost)) - jnp.sum(least)
    before = jnp.cumsum(most - least) - (most - least)
    filled = least + jnp.clip(left - before, 0.0, most - least)
    valid = jnp.isfinite(w) & (w >= 0) & (cost > 0) & jnp.isfinite(cost) & (alpha >= 0) & (top >= 0)
    valid = jnp.all(valid & (top <= _LARGEST_AMOUNT)) & jnp.isfinite(budget) & (budget >= 0)
    return low, jnp.stack([most, least, jnp.where(valid, filled, -1.0)])


def _worthwhile(w: Any, price: Any, top: Any, xp: Any) -> Any:
    """How many units gain at least their price: w log((2 + e) / (1 + e)) >= price for all e below the answer."""
    each = xp.where(w > 0, price / xp.where(w > 0, w, 1.0), xp.inf)
    return xp.where(each > 0, xp.clip(xp.floor(1 / xp.expm1(xp.where(each > 0, each, 1.0))), 0.0, top), top)


def _filled(host: _Program, amount: Num[np.ndarray, " K"]) -> Num[np.ndarray, " K"]:
    """Greedy: the unit of largest gain per cost that still fits, until none that pays does."""
    amount = amount.copy()
    room = host.budget - float(host.cost @ amount)
    able = np.flatnonzero((host.cost <= room) & (amount < host.top))
    rate = host.gain(able, amount[able]) / host.cost[able]
    heap = [(-gain, int(unit)) for gain, unit in zip(rate, able, strict=True) if gain > 0]
    heapq.heapify(heap)
    cheapest = host.cost[able].min(initial=np.inf)
    while heap and room >= cheapest:  # every turn spends budget or drops a unit for good
        _, unit = heapq.heappop(heap)
        if host.cost[unit] > room:
            continue
        amount[unit] += 1
        room -= host.cost[unit]
        gain = float(host.gain(np.array([unit]), amount[[unit]])[0])
        if amount[unit] < host.top[unit] and gain > 0:
            heapq.heappush(heap, (-gain / host.cost[unit], unit))
    return amount


def _searched(
    host: _Program, greedy: Num[np.ndarray, " K"], most: Num[np.ndarray, " K"], price: float, states: int
) -> tuple[Num[np.ndarray, " K"], bool]:
    """The best whole amounts, and whether that is proven; only choices within reach of the price are open."""
    # Lagrange: nothing within the budget beats the choice at the price, credited with the budget it overspends. What
    # greedy lies above it is added up by unit, each with its rounding, so that no large unit hides a small one.
    parts = host.rise(greedy, most, price)
    apart = math.fsum(np.maximum(parts.sum(0), 0.0) + 1e-15 * np.abs(parts).sum(0))
    apart += price * max(host.budget - math.fsum(host.cost * greedy), 0.0)
    net = host.alpha + price * host.cost
    margin = apart * (1 + 1e-6) + 1e-12 * net
    with np.errstate(over="ignore", divide="ignore"):
        sure, possible = (_worthwhile(host.w, net + side, host.top, np) for side in (margin, -margin))
    further = np.arange((possible - sure).max() + 1)
    if further.size * sure.size > states:
        return greedy, False
    value = host.alpha[:, None] * further - host.w[:, None] * np.log1p(further / (1 + sure[:, None]))
    value = np.where(further <= (possible - sure)[:, None], value, np.inf)
    room = float(host.budget) - math.fsum(host.cost * sure)
    found = best_choice(value, host.cost[:, None] * further, room, groups=np.arange(sure.size), states=states)
    amount = sure + found.choice
    worse = math.fsum(host.rise(amount, greedy, 0.0).sum(0)) > 0  # a search cut short may end behind greedy
    return (greedy, False) if worse and not found.exact else (amount, found.exact)


def _reason(host: _Program, amount: Num[np.ndarray, " K"]) -> SolutionStatus:
    below = np.flatnonzero(amount < host.top)
    if below.size == 0:
        return SolutionStatus.AT_CAPACITY
    return SolutionStatus.OPTIMAL if (host.gain(below, amount[below]) > 0).any() else SolutionStatus.SLACK
