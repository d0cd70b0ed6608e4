"""ScaleBITS' kind of search: widths raised in batches, each by first-order changes at the model as quantised so far."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.menu import Menu, summed_by_part


class Raised(NamedTuple):
    """amounts: `[K]` entries of the menu. references: `[R, K]` amounts at which changes were asked for."""

    amounts: Float[np.ndarray, " K"]
    references: Float[np.ndarray, "R K"]


def raise_in_batches(
    changes: Callable[[Float[np.ndarray, " K"]], Float[np.ndarray, "K J"]], menu: Menu, *, budget: float, rounds: int
) -> Raised:
    """Amounts raised from the least, always where one more unit of budget promises to lower the loss most.

        next = argmax_k  (D_kj - D_kj') / (c_kj' - c_kj),   j the entry of unit k now at a cost c_kj, j' the next

    with D asked for anew after every 1 / rounds of the budget above the least, at the amounts then reached: many units
    are raised by one table, where the greedy algorithm asks after each. A next entry beyond the budget is passed over;
    one that promises to raise the loss is taken after all others.

    Args:
      changes: amounts `[K]` -> D `[K, J]`, change of the loss where one unit alone has another amount: to first order
        at these amounts, say.
      menu: what units choose from; tied units are raised together, frozen ones are at the largest.
      budget: of the menu's cost.
      rounds: tables at most.

    Returns:
      A `Raised`, with which no further entry fits the budget.

    Raises:
      ValueError: if there is no round, a change is not finite, or the least amounts exceed the budget.

    Source: Li et al. (2026), "ScaleBITS", arXiv 2602.17698: a greedy allocation by sensitivities at the quantised
    model, approximated so that it scales. Its parts are blocks within matrices, whose channels it reorders; here they
    are the caller's units, and the batches are ours.
    """
    if rounds < 1:
        msg = f"need at least 1 round, got {rounds}."
        raise ValueError(msg)
    part = np.arange(menu.size.size) if menu.groups is None else np.unique(menu.groups, return_inverse=True)[1]
    costs, last = summed_by_part(menu.cost, part), menu.amounts.size - 1
    place = np.where(np.bincount(part, menu.held) > 0, last, 0)
    spent = float(costs[np.arange(place.size), place].sum())
    share = (budget - spent) / rounds
    if spent > with_rounding(budget):
        msg = f"a budget of {budget:,.12g} is out of reach: the least amounts take {spent:,.12g}."
        raise ValueError(msg)
    references: list[Float[np.ndarray, " K"]] = []
    for batch in range(1, rounds + 1):
        end = budget - (rounds - batch) * share
        cost, fits = _next(costs, place, budget - spent)
        if not fits.any() or spent >= end * (1 - 1e-12):  # a large unit may have taken the next round's share too
            continue
        references.append(menu.amounts[place][part].astype(np.float64))
        table = _finite(changes(references[-1]), part)
        while fits.any() and spent < end * (1 - 1e-12):
            rows = np.arange(place.size)
            fall = table[rows, place] - table[rows, np.minimum(place + 1, last)]
            best = int(np.argmax(np.where(fits, fall / cost, -np.inf)))
            place[best] += 1
            spent += cost[best]
            cost, fits = _next(costs, place, budget - spent)
    return Raised(menu.amounts[place][part].astype(np.float64), np.array(references).reshape(-1, part.size))


def _next(costs: Float[np.ndarray, "G J"], place: np.ndarray, left: float) -> tuple[np.ndarray, np.ndarray]:
    """What each part's next entry takes, and whether there is one within the budget left; 1 where there is none."""
    rows, last = np.arange(place.size), costs.shape[1] - 1
    step = costs[rows, np.minimum(place + 1, last)] - costs[rows, place]
    return np.where(place < last, step, 1.0), (place < last) & (step <= left + 1e-12 * costs[:, -1].sum())


def _finite(table: Float[np.ndarray, "K J"], part: np.ndarray) -> Float[np.ndarray, "G J"]:
    lost = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if lost.size:
        msg = f"changes of {lost.size} units are not finite, e.g. of units {lost[:3].tolist()}."
        raise ValueError(msg)
    return summed_by_part(table, part)
