"""Where a search may go under one budget, in whole steps: shares of weights, or entries of a menu."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from curvjax.allocation.descent import Free
from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.menu import Menu, summed_by_part

Place = tuple[int, ...]


@runtime_checkable
class Space(Protocol):
    """Places, each a whole number for each of so many parts, whose amounts all meet the budget."""

    @property
    def start(self) -> Place:
        """Where a search begins."""
        ...

    def amounts(self, place: Place) -> Float[np.ndarray, " K"]:
        """Of the K units."""
        ...

    def moved(self, place: Place, giver: int, taker: int) -> Place | None:
        """The place after one step from one part to another; None where there is none."""
        ...

    def switched(self, place: Place, draw: np.random.Generator) -> Place | None:
        """The place after a step between parts that are drawn; None where there is none."""
        ...


@dataclass(frozen=True)
class Shares:
    """Amounts x_k + step level_k / size_k, with whole levels of sum zero: the total holds whatever the sizes.

    x: `[K]` shares to begin with, uniform ones say. free: sizes, bounds and the total that x meets. step: weights moved
    at a time.
    """

    x: Float[np.ndarray, " K"]
    free: Free
    step: float

    def __post_init__(self) -> None:
        """Refuse a start that does not fit, and a step that means nothing."""
        x, free = self.x, self.free
        if not x.shape == free.size.shape == free.lower.shape == free.upper.shape or x.ndim != 1 or not x.size:
            msg = f"need one entry per unit in all: x {x.shape}, size {free.size.shape}, bounds {free.lower.shape}."
            raise ValueError(msg)
        if not (self.step > 0 and np.isfinite(self.step)):
            msg = f"the step is a number of weights above 0, got {self.step!r}."
            raise ValueError(msg)
        outside = np.flatnonzero(~((x >= free.lower - 1e-12) & (x <= free.upper + 1e-12)))
        total = float(free.size @ x)
        if outside.size or not abs(total - free.total) <= 1e-9 * max(abs(free.total), 1.0):
            msg = (
                f"a search starts from amounts that fit: {outside.size} units are out of their bounds, and the total "
                f"is {total:,.6g} for {free.total:,.6g}; take `projected` ones."
            )
            raise ValueError(msg)

    @property
    def start(self) -> Place:
        """No step taken."""
        return (0,) * len(self.x)

    def amounts(self, place: Place) -> Float[np.ndarray, " K"]:
        """Shares."""
        return self.x + self.step * np.asarray(place) / self.free.size

    def moved(self, place: Place, giver: int, taker: int) -> Place | None:
        """A step of weights from one unit to another; None where a bound is in the way."""
        changed = list(place)
        changed[giver] -= 1
        changed[taker] += 1
        x = self.amounts(tuple(changed))
        least, most = self.free.lower[giver], self.free.upper[taker]
        return tuple(changed) if x[giver] >= least - 1e-12 and x[taker] <= most + 1e-12 else None

    def switched(self, place: Place, draw: np.random.Generator) -> Place | None:
        """A step between two units."""
        if len(place) < 2:
            return None
        giver, taker = draw.choice(len(place), 2, replace=False)
        return self.moved(place, int(giver), int(taker))


@dataclass(frozen=True)
class Entries:
    """Entries of a menu, one up for one or more down: the total never exceeds the budget, and is it where sizes allow.

    Parts are units, or groups of tied ones. x: `[K]` amounts to begin with. menu: what units choose from; held ones
    stay. budget: of the menu's cost.
    """

    x: Float[np.ndarray, " K"]
    menu: Menu
    budget: float

    def __post_init__(self) -> None:
        """Refuse a start that is not of the menu, or beyond the budget."""
        x, menu = self.x, self.menu
        if x.shape != menu.size.shape:
            msg = f"need one amount for each of the {menu.size.size} units of the menu; got {x.shape}."
            raise ValueError(msg)
        apart = bool((menu.amounts[np.asarray(self.start)][self._part] != x).any())
        if apart or (x[menu.held] != menu.amounts.max()).any() or menu.spent(x) > with_rounding(self.budget):
            msg = (
                f"a search starts from entries of the menu {menu.amounts.tolist()}, tied units alike, frozen ones at "
                f"the largest, of {self.budget:,.6g} together; got {x.tolist()}, {menu.spent(x):,.6g} together."
            )
            raise ValueError(msg)

    @cached_property
    def _part(self) -> Int[np.ndarray, " K"]:
        """Which part each unit is of."""
        groups = self.menu.groups
        return np.arange(self.x.size) if groups is None else np.unique(groups, return_inverse=True)[1]

    @cached_property
    def _cost(self) -> Float[np.ndarray, "G J"]:
        return summed_by_part(self.menu.cost, self._part)

    @cached_property
    def _held(self) -> Bool[np.ndarray, " G"]:
        return np.bincount(self._part, self.menu.held) > 0

    @cached_property
    def start(self) -> Place:
        """Entries of the parts' first units."""
        first = np.unique(self._part, return_index=True)[1]
        places = np.minimum(np.searchsorted(self.menu.amounts, self.x[first]), self.menu.amounts.size - 1)
        return tuple(places.tolist())

    def amounts(self, place: Place) -> Float[np.ndarray, " K"]:
        """Entries of the menu."""
        return self.menu.amounts[np.asarray(place)][self._part].astype(np.float64)

    def moved(self, place: Place, giver: int, taker: int) -> Place | None:
        """One entry up, and as many down of the giver as pay for it; none where the budget has room."""
        return self._up(place, taker, [giver] * self.menu.amounts.size)

    def switched(self, place: Place, draw: np.random.Generator) -> Place | None:
        """One entry up, and one down of each of the others in turn until it is paid for."""
        taker, *givers = draw.permutation(len(place)).tolist()
        return self._up(place, taker, givers)

    def _up(self, place: Place, taker: int, givers: list[int]) -> Place | None:
        changed = list(place)
        changed[taker] += 1
        if changed[taker] == self.menu.amounts.size:  # held ones are there
            return None
        for giver in givers:
            if self._fits(changed):
                break
            if changed[giver] and not self._held[giver]:
                changed[giver] -= 1
        return tuple(changed) if self._fits(changed) else None

    def _fits(self, place: list[int]) -> bool:
        return float(self._cost[np.arange(len(place)), place].sum()) <= with_rounding(self.budget)
