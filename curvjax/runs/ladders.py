"""What each unit may have where amounts are chosen and not shared out: widths, N of M, ranks of factors."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

from curvjax.allocation import Bits, Ranks, Sparsity
from curvjax.allocation.descent import Free, projected
from curvjax.allocation.exchange import Ladder
from curvjax.allocation.program import Posed, frozen_units
from curvjax.layers import UnitShape


def ladder(
    program: Sparsity | Bits | Ranks,
    posed: Posed,
    shapes: Sequence[UnitShape],
    start: Float[np.ndarray, " K"],
    *,
    rung: float,
) -> Ladder:
    """The entries of a program over units, each with its cost.

    Widths are those allowed. N of M are shares n / M, from the most that may go to none: what an entry costs is the
    weights that stay. Ranks are those allowed, or those at the start and in steps of `rung` of the rank at which two
    factors are as large as their kernel; at that rank, the last entry, a projection stays as it is.

    Args:
      program: of bits, N:M or ranks.
      posed: the program over the units.
      shapes: K units; for ranks single projections.
      start: `[K]` where moves begin: widths, shares or ranks.
      rung: between two ranks, as a share.
    """
    size, held = np.asarray([shape.weights for shape in shapes], np.float64), frozen_units(shapes, program.frozen)
    if isinstance(program, Sparsity):
        share = np.arange(program.pattern)[::-1] / program.pattern
        share = np.where(held[:, None], 0.0, share[share <= program.max_sparsity + 1e-12])
        return Ladder(share, size[:, None] * (1 - share), float(size.sum()) - posed.requested)
    if isinstance(program, Bits):
        menu = posed.menu
        assert menu is not None
        place = np.where(held[:, None], menu.amounts.size - 1, np.arange(menu.amounts.size))
        widths = menu.amounts.astype(np.float64)
        return Ladder(widths[place], np.take_along_axis(menu.cost, place, 1), posed.requested)
    least, whole = rank_bounds(posed, shapes)
    amount = _padded([
        _ranks(program, int(x), int(a), int(b), rung) for x, a, b in zip(start, least, whole, strict=True)
    ])
    return Ladder(amount, posed.cost[:, None] * amount, posed.requested)


def uniform_ranks(program: Ranks, posed: Posed, shapes: Sequence[UnitShape]) -> Float[np.ndarray, " K"]:
    """`[K]` whole ranks of factors that hold one share of every projection's parameters, within bounds and budget.

    Raises:
      ValueError: if the budget keeps everything, or less than the least ranks.
    """
    (least, whole), even = rank_bounds(posed, shapes), _even(shapes)
    free = Free(posed.cost * even, posed.requested, least / even, whole / even)
    ranks = np.clip(np.floor(projected(np.zeros(even.size), free) * even + 1e-9), least, whole)
    return posed.rounded(ranks).amount.astype(np.float64) if program.allowed else ranks


def rank_bounds(posed: Posed, shapes: Sequence[UnitShape]) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """`[K]` the least ranks of factors, and the most: the first at which a projection stays as it is."""
    least = np.minimum(max(posed.least, 1), posed.maximum)
    return least, np.minimum(posed.maximum, np.ceil(_even(shapes) - 1e-9))


def _even(shapes: Sequence[UnitShape]) -> Float[np.ndarray, " K"]:
    """The rank, not whole, at which two factors are as large as their kernel: in out / (in + out)."""
    sides = [side for shape in shapes for side in shape.projections.values()]
    return np.asarray([math.prod(side) / sum(side) for side in sides])


def _ranks(program: Ranks, start: int, least: int, whole: int, rung: float) -> list[int]:
    """Of one unit, rising."""
    if program.allowed:
        return sorted({min(rank, whole) for rank in program.allowed if rank >= least})
    by = max(1, round(rung * whole))
    return sorted({*range(start, least - 1, -by), *range(start, whole, by), whole})


def _padded(ladders: Sequence[Sequence[int]]) -> Num[np.ndarray, "K J"]:
    """Menus of one length: the last entry of a shorter one repeated."""
    length = max(map(len, ladders))
    return np.asarray([[*ladder, *[ladder[-1]] * (length - len(ladder))] for ladder in ladders], np.float64)
