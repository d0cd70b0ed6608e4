"""A menu whose units may mix their entries: lower convex hulls, walked by falling gain per cost."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from curvjax.allocation.curves import on_lower_hull
from curvjax.allocation.whole_numbers import WholeMenu, float_quotients


class HullSteps(NamedTuple):
    """Steps down the hulls, the best buy first; those of one unit in their order.

    start: `[G]` each unit's first corner, the best of its cheapest entries. unit, before, after: `[S]`. extra: `[S]`
    whole cost. fall: `[S]` whole value, exact.
    """

    start: Int[np.ndarray, " G"]
    unit: Int[np.ndarray, " S"]
    before: Int[np.ndarray, " S"]
    after: Int[np.ndarray, " S"]
    extra: Float[np.ndarray, " S"]
    fall: Shaped[np.ndarray, " S"]

    def of(self, units: Bool[np.ndarray, " G"]) -> "HullSteps":
        """Those of some units only."""
        kept = units[self.unit]
        return HullSteps(self.start, *(column[kept] for column in self[1:]))


def hull_steps(menu: WholeMenu, one: int) -> HullSteps:
    """Steps of a menu's open entries; `one` is the value that counts as 1 in floating point."""
    start, steps = np.empty(len(menu.open), np.int64), []
    for unit, opened in enumerate(menu.open):
        columns = np.flatnonzero(opened)
        columns = columns[np.lexsort((menu.value[unit, columns], menu.cost[unit, columns]))]
        value = menu.value[unit, columns]
        falls = np.r_[True, value[1:] < np.minimum.accumulate(value)[:-1]]
        columns = columns[falls]
        # each unit by its own largest, so that no other's scale reaches into its hull
        height = float_quotients(menu.value[unit, columns], max(int(menu.value[unit, columns].max()), 1))
        hull = columns[on_lower_hull(menu.cost[unit, columns], height)]
        start[unit] = hull[0]
        steps += [(unit, int(a), int(b)) for a, b in pairwise(hull)]
    unit, before, after = np.asarray(steps, np.int64).reshape(-1, 3).T
    extra = menu.cost[unit, after] - menu.cost[unit, before]
    fall = menu.value[unit, before] - menu.value[unit, after]
    line = _best_buys(unit, float_quotients(fall, one) / extra)
    return HullSteps(start, unit[line], before[line], after[line], extra[line], fall[line])


def _best_buys(unit: Int[np.ndarray, " S"], rate: Float[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    for i in np.flatnonzero(unit[1:] == unit[:-1]):  # rounding must not put a unit's second step before its first
        rate[i + 1] = min(rate[i + 1], rate[i])
    return np.argsort(-rate, kind="stable")


class Completion(NamedTuple):
    """What units not yet decided cost at least, for every budget left to them.

    cheapest: `[]` whole cost of their first corners. steps: of these units. spent: `[S + 1]` whole cost after the first
    s steps. value: `[S + 1]` exact value then. relaxed: `[S + 1]` the same in floating point. margin: `[]` how far
    rounding may have moved that.
    """

    cheapest: float
    steps: HullSteps
    spent: Float[np.ndarray, " S1"]
    value: Shaped[np.ndarray, " S1"]
    relaxed: Float[np.ndarray, " S1"]
    margin: float

    def bound(self, left: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """No completion within `left`, beyond `cheapest`, has less value: the relaxation, less its rounding."""
        return np.interp(left, self.spent, self.relaxed) - self.margin

    def whole(self, left: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """How many steps fit whole."""
        return np.searchsorted(self.spent, left, side="right") - 1


def completion(menu: WholeMenu, steps: HullSteps, units: Bool[np.ndarray, " G"], one: int) -> Completion:
    """The relaxation over some units."""
    rows = np.flatnonzero(units)
    first, steps = menu.value[rows, steps.start[rows]], steps.of(units)
    value = first.sum() - np.concatenate([np.zeros(1, steps.fall.dtype), np.cumsum(steps.fall)])
    relaxed = float_quotients(value, one)
    # each corner is rounded once, its place on the line between two of them a few times; subnormals end at 1e-323
    margin = 8 * np.finfo(np.float64).eps * float(relaxed.max()) + 1e-320
    spent = np.concatenate([np.zeros(1), np.cumsum(steps.extra)])
    return Completion(float(menu.cost[rows, steps.start[rows]].sum()), steps, spent, value, relaxed, margin)
