"""`Sparsity`: the pruning program over shares of weights."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.program import Posed, Whole, chosen, frozen_units, program, tied_units
from curvjax.allocation.programs import SparsityProgram
from curvjax.allocation.pruning import allocate_sparsity
from curvjax.allocation.result import Solution
from curvjax.allocation.rounding import round_sparsity
from curvjax.allocation.rules.proportional import proportional
from curvjax.allocation.tuned import Tuned
from curvjax.layers import UnitShape


@program
@dataclass(frozen=True)
class Sparsity:
    """How many weights of each unit go [M15], [M17].

        argmin  sum_k n_k q_k^kappa rho_k^2   s.t.  sum_k n_k rho_k = budget sum_k n_k,  0 <= rho_k <= max_sparsity

    with n_k the weights of the unit's projections. Amounts are whole weights.

    Example:
      >>> import curvjax as cj
      >>> cj.Sparsity(0.5).kappa
      0.5
    """

    target: ClassVar[str] = "sparsity"
    tuned: ClassVar[Tuned] = Tuned("kappa", (0.25, 0.5, 1.0, 1.5, 2.0))

    budget: float = 0.5
    """Share of all weights to remove."""
    _: KW_ONLY
    kappa: float = 0.5
    """Exponent of the quality."""
    max_sparsity: float = 0.95
    """Most that is removed from one unit."""
    pattern: int = 0
    """Shares n / PATTERN only, as N:M hardware wants them: 4 for 2:4, 8 for 4:8."""
    frozen: tuple[str, ...] = ()
    """Units that lose nothing, by name."""
    tie: Literal["none", "layer", "projection"] = "none"
    """Units of one layer, or of one kind of projection, lose the same share."""
    floor: float = 0.0
    """Added to every quality score, in medians."""
    sweep: tuple[float, ...] = ()
    """Further budgets, for the curve of what a larger share costs."""

    def __post_init__(self) -> None:
        """Refuse shares and patterns that mean nothing."""
        if not 0 <= self.budget <= 1 or not 0 <= self.max_sparsity <= 1 or self.pattern < 0:
            msg = (
                "budget and max_sparsity are shares from 0 to 1, and pattern is at least 0; got "
                f"{self.budget:g}, {self.max_sparsity:g} and {self.pattern}."
            )
            raise ValueError(msg)

    def pose(self, units: Sequence[UnitShape]) -> Posed:
        """The program over these units; see `Program.pose`."""
        size, groups = np.asarray([unit.weights for unit in units], np.int64), tied_units(units, self.tie)
        most = np.where(frozen_units(units, self.frozen), 0.0, self.max_sparsity)
        total = self.budget * float(size.sum())

        def at(q: Any, sparsity: Any) -> Solution:
            return allocate_sparsity(
                q, size=size, sparsity=sparsity, kappa=self.kappa, max_sparsity=most, size_neutral=True, ties=groups
            )

        def counted(rho: Any) -> Whole:
            counts = round_sparsity(rho, size=size, sparsity=self.budget, max_sparsity=most)
            return Whole(counts, total - float(counts.sum()))

        def rounded(rho: Any) -> Whole:
            if self.pattern:
                return self._patterns(size, most, groups, lambda share: (share - np.asarray(rho)[:, None]) ** 2)
            return counted(_within(np.asarray(rho, np.float64), size, most, groups, total))

        def whole(q: Any) -> Whole:
            if self.pattern:
                weight = np.asarray(q, np.float64)[:, None] ** self.kappa
                return self._patterns(size, most, groups, lambda share: weight * share**2)
            return counted(at(q, self.budget).amount)

        at(np.ones(len(units)), self.budget)  # refuses a share beyond max_sparsity
        reach = int(np.floor(with_rounding(most * size)).sum())
        if not self.pattern and round(total) > reach:
            msg = (
                f"a budget of {self.budget:g} is {round(total):,} weights, of which whole ones within max_sparsity are "
                f"{reach:,}; take at most {math.floor(1e6 * reach / float(size.sum())) / 1e6:g}."
            )
            raise ValueError(msg)
        return Posed(
            cost=np.ones(len(units)),
            maximum=most * size,
            budget=BudgetConstraint(size, total, most),
            requested=total,
            unit="weights removed",
            meaning="rise of the program's objective for one more weight removed",
            solve=lambda q: at(q, self.budget),
            whole=whole,
            rounded=rounded,
            monotone=None if self.pattern else lambda q: size * at(q, self.budget).amount,
            ties=groups,
            at=at,
            paper=None
            if self.pattern or groups is not None or self.frozen
            else SparsityProgram(
                size=size, sparsity=self.budget, kappa=self.kappa, max_sparsity=self.max_sparsity, size_neutral=True
            ),
            remark="The total is fixed, so that storage price and penalty weight cancel: only scores, kappa and bounds "
            "count.",
            scale=size,
            positive=True,
        )

    def _patterns(self, size: np.ndarray, most: np.ndarray, groups: np.ndarray | None, harm: Any) -> Whole:
        """n of M for each unit: at least the weights asked for go, and no more than a pattern's step beyond."""
        share = np.arange(self.pattern) / self.pattern
        value = np.where(share <= most[:, None] + 1e-12, size[:, None] * harm(share), np.inf)
        kept = (1 - self.budget) * float(size.sum())
        found, _ = chosen(value, 1 - share, size.astype(np.float64), budget=kept, groups=groups)
        counts = np.rint((1 - found.amount) * size).astype(np.int64)
        return found._replace(amount=counts, unspent=self.budget * float(size.sum()) - float(counts.sum()))


def _within(rho: np.ndarray, size: np.ndarray, most: np.ndarray, groups: np.ndarray | None, total: float) -> np.ndarray:
    """A rule's or a plan's shares, which know no bounds and no ties, in proportion where they keep neither.

    Tied units take their mean share, and no more than the least of their bounds.
    """
    place = np.arange(size.size) if groups is None else groups
    weight = np.bincount(place, size)
    mean = np.bincount(place, size * rho) / weight
    bound = np.full(weight.size, np.inf)
    np.minimum.at(bound, place, most)
    if np.array_equal(mean[place], rho) and (mean <= bound).all():
        return rho
    return np.asarray(proportional(mean, BudgetConstraint(weight, total, bound)))[place]
