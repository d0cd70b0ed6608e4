"""Equal prices over a ladder: entries exchanged between the units cheapest to lower and those dearest to hold [M24]."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Ladder(NamedTuple):
    """What each of K units may have.

    amount: `[K, J]` entries by rising cost; a short ladder repeats its last one. cost: `[K, J]` budget that each takes.
    budget: most that all may take.
    """

    amount: Float[np.ndarray, "K J"]
    cost: Float[np.ndarray, "K J"]
    budget: float

    def places(self, amounts: Float[np.ndarray, " K"]) -> Int[np.ndarray, " K"]:
        """The entries that are nearest to these amounts, the first of equal ones."""
        return np.abs(self.amount - amounts[:, None]).argmin(axis=1)

    def amounts(self, place: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """What these entries stand for."""
        return np.take_along_axis(self.amount, place[:, None], 1)[:, 0]

    def costs(self, place: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """What these entries take of the budget."""
        return np.take_along_axis(self.cost, place[:, None], 1)[:, 0]


class Moves(NamedTuple):
    """What one entry up and one entry down the ladder do, each unit moved alone from where all are now.

    up, down: `[K]` measured change of the loss, nats; inf where there is no such entry. up_cost: `[K]` budget that one
    entry up takes. down_cost: `[K]` budget that one entry down gives back.
    """

    up: Float[np.ndarray, " K"]
    down: Float[np.ndarray, " K"]
    up_cost: Float[np.ndarray, " K"]
    down_cost: Float[np.ndarray, " K"]


class Exchange(NamedTuple):
    """step: `[K]` entries up (1) or down (-1) the ladder, else 0. promised: sum of the moves' own changes of the loss.

    spent: budget taken, less what was given back; at most the slack.
    """

    step: Int[np.ndarray, " K"]
    promised: float
    spent: float


def exchange(
    moves: Moves,
    size: Float[np.ndarray, " K"],
    *,
    slack: float,
    most: float,
    groups: Int[np.ndarray, " K"] | None = None,
) -> Exchange:
    """The moves that pay for each other at the best prices, until a limit on what may move at once.

    Ups are taken in the order of what they lower the loss by per unit of budget; each is paid by slack, then by the
    downs that raise it least per unit. It ends where an up lowers the loss by less than what pays for it raises it, or
    where the units moved hold more than `most` weights: harms measured one at a time do not add up.

    Args:
      moves: measured.
      size: `[K]` weights of each unit.
      slack: budget that is left.
      most: weights that may move at once.
      groups: `[K]` numbers of units that move together, or None.

    Returns:
      An `Exchange` that meets the budget; all zeros where nothing promises to lower the loss.

    Raises:
      ValueError: if a change is NaN, or a cost not positive where the move exists.

    Source: ours.
    """
    _require(moves)
    owner = np.arange(size.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    up, down, up_cost, down_cost, weight = (_summed(x, owner) for x in (*moves, size))
    gain = np.divide(-up, up_cost, out=np.full(up.size, -np.inf), where=np.isfinite(up))
    harm = np.divide(down, down_cost, out=np.full(up.size, np.inf), where=np.isfinite(down))
    step, credit, promised, moved = np.zeros(up.size, np.int64), slack, 0.0, 0.0
    payers = list(np.argsort(harm, kind="stable"))
    for k in np.argsort(-gain, kind="stable"):
        if step[k] or not gain[k] > 0:
            continue
        paid, held = [], credit
        for j in payers:
            if held >= up_cost[k] * (1 - 1e-12) or not np.isfinite(harm[j]):
                break
            if j != k and not step[j]:
                paid.append(j)
                held += down_cost[j]
        change = up[k] + sum(down[j] for j in paid)
        bulk = moved + weight[k] + sum(weight[j] for j in paid)
        if held < up_cost[k] * (1 - 1e-12) or change >= 0:
            continue
        if bulk > most and moved > 0:
            break
        step[k], step[paid] = 1, -1
        credit, promised, moved = held - up_cost[k], promised + change, bulk
    return Exchange(step[owner], float(promised), float(slack - credit))


def marginal(moves: Moves) -> Float[np.ndarray, " K"]:
    """`[K]` the price of a unit of budget: the mean of what both moves say of it, or the one that there is; nats."""
    both = np.stack([-moves.up / moves.up_cost, moves.down / moves.down_cost])
    there: Bool[np.ndarray, "2 K"] = np.isfinite([moves.up, moves.down])
    return np.where(there, both, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)


def _summed(x: Float[np.ndarray, " K"], owner: Int[np.ndarray, " K"]) -> Float[np.ndarray, " G"]:
    return np.bincount(owner, x)


def _require(moves: Moves) -> None:
    for name, change, cost in (("up", moves.up, moves.up_cost), ("down", moves.down, moves.down_cost)):
        lost = np.flatnonzero(np.isnan(change) | (np.isfinite(change) & ~(cost > 0)))
        if lost.size:
            found = ", ".join(f"{k}: {change[k]:g} nats at a cost of {cost[k]:g}" for k in lost[:3])
            msg = f"{name} moves of {lost.size} units need a number of nats and a cost above 0; got {found}."
            raise ValueError(msg)
