"""One choice per unit from a menu: bit widths, allowed ranks, N:M patterns; exact, with its gap."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Num

from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.knapsack import best_choice


class MenuChoice(NamedTuple):
    """One menu entry per unit, on the host.

    choice: `[K]` columns of the menu. spent: total cost. unspent: budget left. objective: total sensitivity. bound:
    what no choice within the budget can fall below; of the relaxation in which units may mix entries. gap: objective
    less bound. exact: whether no choice is better, proven. price: fall of the relaxed objective per unit of further
    budget.
    """

    choice: Int[np.ndarray, " K"]
    spent: float
    unspent: float
    objective: float
    bound: float
    gap: float
    exact: bool
    price: float


class Menu(NamedTuple):
    """What each of K units may choose, and what it costs.

    amounts: `[J]` rising, the same for all, such as widths. size: `[K]` cost of a unit of amount, such as weights.
    held: `[K]` units that keep the largest. groups: `[K]` numbers of units that choose the same, or None. extra:
    `[K, J]` cost of each entry beside size times amount, such as scales, so that the sum rises along a row; None: none.
    """

    amounts: Int[np.ndarray, " J"]
    size: Float[np.ndarray, " K"]
    held: Bool[np.ndarray, " K"]
    groups: Int[np.ndarray, " K"] | None = None
    extra: Float[np.ndarray, "K J"] | None = None

    @property
    def cost(self) -> Float[np.ndarray, "K J"]:
        """What each entry takes from the budget."""
        return self.size[:, None] * self.amounts + (0.0 if self.extra is None else self.extra)

    def spent(self, amounts: Num[np.ndarray, " K"]) -> float:
        """What these entries take together; between two entries as much as lies between."""
        rows = zip(amounts, self.cost, strict=True)
        return math.fsum(float(np.interp(amount, self.amounts, cost)) for amount, cost in rows)

    def choice(self, harm: Num[ArrayLike, "K J"], *, budget: float) -> MenuChoice:
        """The amounts of least total harm, by `allocate_bits`; budget: of `spent`.

        Example:
          >>> import numpy as np
          >>> from curvjax.allocation import Menu
          >>> menu = Menu(np.array([2, 4]), np.array([10.0, 10.0]), np.array([False, False]))
          >>> menu.amounts[menu.choice([[5.0, 1.0], [2.0, 1.0]], budget=60).choice].tolist()
          [4, 2]
        """
        held = self.held[:, None] & (self.amounts != self.amounts.max())
        value = np.where(held, np.inf, np.asarray(harm, np.float64))
        return allocate_bits(value, self.cost, budget=budget, ties=group_members(self.groups))


def group_members(groups: Int[np.ndarray, " K"] | None) -> list[list[int]]:
    """The units of each group; none for None."""
    return [] if groups is None else [np.flatnonzero(groups == group).tolist() for group in np.unique(groups)]


def summed_by_part(table: Float[np.ndarray, "K J"], part: Int[np.ndarray, " K"]) -> Float[np.ndarray, "G J"]:
    """Rows of a table, those of each part together; part: `[K]` numbers from 0."""
    found = np.zeros((part.max() + 1, table.shape[1]))
    np.add.at(found, part, table)
    return found


def allocate_bits(
    sensitivity: Num[ArrayLike, "K J"],
    cost: Num[ArrayLike, "K J"],
    *,
    budget: float,
    ties: Sequence[Sequence[int]] = (),
    states: int = 20_000,
) -> MenuChoice:
    """The choice of one entry per unit that is least harmful within a budget.

        argmin_{j in {0..J-1}^K}  sum_k sensitivity[k, j_k]   subject to   sum_k cost[k, j_k] <= budget

    Written for bit widths (sensitivity: loss or error at each width; cost: bits times weights), it serves any menu:
    ranks from an allowed set, N of M patterns, methods. Only differences within a unit count, each to the last bit: no
    unit's offset or scale hides another's. `best_choice` of `curvjax.allocation.knapsack` says how it is proved.

    Args:
      sensitivity: `[K, J]` what each entry costs the model, in any one unit; `inf` for an entry that a unit lacks.
      cost: `[K, J]` non-negative, what each entry takes from the budget.
      budget: in units of `cost`; met to 1e-12 relative.
      ties: groups of units that must choose the same column.
      states: most partial choices that the search keeps at a time; where it needs more, the best choice found stands
        and `exact` is False.

    Returns:
      A `MenuChoice`.

    Raises:
      ValueError: if the shapes differ or are empty, a number is NaN, a cost is negative or not finite, a unit has no
        finite entry, a tie names a unit that is not there or twice, or the cheapest choice exceeds the budget (by how
        much, and which unit is dearest).

    Source: Hubara et al. (2020), arXiv 2006.10518, and HAWQ-V3 for bit widths by integer programming; Sinha & Zoltners
    (1979), Operations Research 27(3), for the multiple-choice knapsack's relaxation.
    """
    value, price = _checked(sensitivity, cost)
    groups = _groups(ties, len(value))
    room = with_rounding(budget)
    _require_room(value, price, groups, budget)
    found = best_choice(value, price, room, groups=groups, states=states)
    rows = np.arange(len(value))
    spent, objective = (math.fsum(table[rows, found.choice]) for table in (price, value))
    return MenuChoice(
        choice=found.choice,
        spent=spent,
        unspent=max(budget - spent, 0.0),
        objective=objective,
        bound=objective - found.gap,
        gap=found.gap,
        exact=found.exact,
        price=found.price,
    )


def _checked(sensitivity: ArrayLike, cost: ArrayLike) -> tuple[Float[np.ndarray, "K J"], Float[np.ndarray, "K J"]]:
    value, price = (np.asarray(x, dtype=np.float64) for x in (sensitivity, cost))
    if value.ndim != 2 or value.shape != price.shape or value.size == 0:
        msg = f"need one row of entries per unit in both: sensitivity {value.shape}, cost {price.shape}."
        raise ValueError(msg)
    bad = np.isnan(value).any(1) | (value == -np.inf).any(1) | ~(np.isfinite(price) & (price >= 0)).all(1)
    bad |= ~np.isfinite(value).any(1)
    if bad.any():
        unit = int(np.argmax(bad))
        msg = (
            f"costs must be finite and at least 0, and sensitivities numbers, one of them finite in each unit; "
            f"unit {unit} has sensitivities {value[unit]} at costs {price[unit]}."
        )
        raise ValueError(msg)
    return value, price


def _groups(ties: Sequence[Sequence[int]], count: int) -> Int[np.ndarray, " K"]:
    """`[K]` numbers from 0 up, the tied units' first."""
    named = [int(unit) for group in ties for unit in group]
    if len(set(named)) != len(named) or any(not 0 <= unit < count for unit in named):
        msg = f"ties must name units from 0 to {count - 1}, each at most once; got {[list(group) for group in ties]}."
        raise ValueError(msg)
    groups = np.full(count, -1)
    for number, group in enumerate(group for group in ties if len(group)):
        groups[list(group)] = number
    alone = groups < 0
    groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    return groups


def _require_room(
    value: Float[np.ndarray, "K J"], cost: Float[np.ndarray, "K J"], groups: Int[np.ndarray, " K"], budget: float
) -> None:
    total, price = (np.zeros((groups.max() + 1, cost.shape[1])) for _ in range(2))
    np.add.at(total, groups, np.where(np.isfinite(value), 0.0, np.inf))
    np.add.at(price, groups, cost)
    cheapest = (price + total).min(1)
    if np.isinf(cheapest).any():
        tied = np.flatnonzero(groups == np.argmax(np.isinf(cheapest)))
        msg = f"tied units {tied.tolist()} have no entry that all of them can take."
        raise ValueError(msg)
    least = math.fsum(cheapest)
    if not np.isfinite(budget) or least > with_rounding(budget):
        dearest = np.flatnonzero(groups == np.argmax(cheapest))
        msg = (
            f"a budget of {budget:.12g} is out of reach: the cheapest choices cost {least:.12g} together, "
            f"{least - budget:.6g} more; units {dearest.tolist()} are the dearest, at {cheapest.max():.12g}."
        )
        raise ValueError(msg)
