"""Floating-point tables as whole numbers, in which sums and comparisons are exact."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

_GRID_BITS = 51  # costs within the budget and their sums stay whole numbers of float64


class WholeMenu(NamedTuple):
    """A menu in whole numbers, each unit counted from its own least.

    value: `[G, J]` int64 where that holds their sum, else Python's; 0 where not open. cost: `[G, J]` whole float64; inf
    where not open. open: `[G, J]` which entries a unit may take. left: `[]` whole, the budget beyond the cheapest
    entries. value_unit, cost_unit: what 1 of each is worth in the numbers that were given.
    """

    value: Shaped[np.ndarray, "G J"]
    cost: Float[np.ndarray, "G J"]
    open: Bool[np.ndarray, "G J"]
    left: float
    value_unit: Fraction
    cost_unit: Fraction


def whole_menu(
    value: Float[np.ndarray, "K J"], cost: Float[np.ndarray, "K J"], room: float, groups: Int[np.ndarray, " K"]
) -> WholeMenu:
    """A menu's numbers as whole ones, tied units added up.

    Values are taken as they are, to the last bit and over any range: a unit's offset or scale hides no other. Costs are
    exact where they are whole; else they are read on a grid of 2^-51 of the budget that the cheapest entries leave.

    Args:
      value: `[K, J]`, `inf` for an entry that a unit lacks.
      cost: `[K, J]` finite, non-negative.
      room: the budget, at least what the cheapest entries cost.
      groups: `[K]` numbers from 0 to G - 1, one of each at least; units of one number choose the same column.

    Returns:
      A `WholeMenu`.
    """
    count = int(groups.max()) + 1
    opened = np.ones((count, value.shape[1]), bool)
    np.logical_and.at(opened, groups, np.isfinite(value))
    price = np.zeros(opened.shape)
    np.add.at(price, groups, cost)
    price = np.where(opened, price, np.inf)
    whole, cost_unit, left = _whole_costs(price, room)
    opened &= whole <= left
    exact, value_unit = _whole_values(np.where(np.isfinite(value), value, 0.0))
    total = np.zeros(opened.shape, object)
    np.add.at(total, groups, exact)
    least = np.where(opened, total, total.max()).min(1)
    total, value_unit = _reduced(np.where(opened, total - least[:, None], 0), value_unit)
    return WholeMenu(total, np.where(opened, whole, np.inf), opened, left, value_unit, cost_unit)


def _whole_costs(cost: Float[np.ndarray, "G J"], room: float) -> tuple[Float[np.ndarray, "G J"], Fraction, float]:
    """Costs beyond each unit's cheapest entry, their unit, and the budget beyond the cheapest entries."""
    cheapest = cost.min(1)
    left = max(math.fsum([room, *-cheapest]), 0.0)
    further = cost - cheapest[:, None]
    known = further[further <= left]
    if left < 2.0**_GRID_BITS and (known == np.floor(known)).all():
        # what is left below the common divisor buys nothing, and without it the bounds lie closer together
        unit = max(int(np.gcd.reduce(known.astype(np.int64))), 1)
        return further / unit, Fraction(unit), float(left // unit)
    bits = _GRID_BITS - math.frexp(left)[1] if left > 0 else 0
    with np.errstate(over="ignore"):  # of entries beyond the budget
        grid = np.rint(np.ldexp(further, bits))
    return grid, Fraction(2) ** -bits, float(math.floor(math.ldexp(left, bits)))


def _whole_values(value: Float[np.ndarray, "K J"]) -> tuple[Shaped[np.ndarray, "K J"], Fraction]:
    fraction, exponent = np.frexp(value)
    digits = np.ldexp(fraction, 53).astype(np.int64)
    exponent = np.where(digits == 0, exponent.max(), exponent)
    lowest = int(exponent.min())
    shift = (exponent - lowest).astype(object)
    return digits.astype(object) << shift, Fraction(2) ** (lowest - 53)


def _reduced(whole: Shaped[np.ndarray, "G J"], unit: Fraction) -> tuple[Shaped[np.ndarray, "G J"], Fraction]:
    """Divided by what divides all; in int64 where a sum of one entry per unit, and its differences, fit."""
    divisor = max(math.gcd(*whole.ravel()), 1)
    whole = whole // divisor
    fits = sum(whole.max(1)) < 2**62
    return whole.astype(np.int64) if fits else whole, unit * divisor


def float_quotients(whole: Shaped[np.ndarray, "*N"], one: int) -> Float[np.ndarray, "*N"]:
    """`whole / one` in float64, each rounded on its own however many digits both have."""
    return (whole / one).astype(np.float64)


def number(ratio: Fraction) -> float:
    """The nearest float64, `inf` beyond the largest."""
    try:
        return float(ratio)
    except OverflowError:
        return math.inf
