"""`Experts`: the capacity program over numbers of experts."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from curvjax.allocation.program import program
from curvjax.allocation.ranks import Ranks
from curvjax.layers import UnitShape


@program
@dataclass(frozen=True)
class Experts(Ranks):
    """The number of experts of each unit, at least one: the program of `Ranks` at a cost of 1 for each expert [M11].

    Example:
      >>> import curvjax as cj
      >>> cj.Experts(4).cost
      'units'
    """

    target: ClassVar[str] = "experts"
    lowest: ClassVar[int] = 1

    budget: float = 4.0
    """Mean number of experts, weighted by cost."""
    _: KW_ONLY
    cost: str = "units"
    """As for ranks."""

    def _sides(self, units: Sequence[UnitShape]) -> list[float]:
        return [np.inf] * len(units)
