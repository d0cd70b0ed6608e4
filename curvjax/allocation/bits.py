"""`Bits`: widths from a menu, by exact choice."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from curvjax.allocation.budget import Budget
from curvjax.allocation.menu import Menu
from curvjax.allocation.program import Posed, Whole, frozen_units, program, tied_units
from curvjax.allocation.result import Solution
from curvjax.allocation.tuned import Tuned
from curvjax.layers import UnitShape


@program
@dataclass(frozen=True)
class Bits:
    """The bit width of each unit: its quality times 4^-b is its harm, so that a bit less costs four times as much.

        argmin  sum_k h_k 4^-b_k   s.t.  sum_k n_k b_k <= budget sum_k n_k,  b_k in allowed

    Rounding to b bits moves weights by noise of energy ~ |theta|^2 4^-b. h_k = q_k^kappa, or with `energy`
    q_k^kappa |theta_k|^2 / (2 p_k), which for the score `trace` is the expected half quadratic form, as in HAWQ-V2.

    Example:
      >>> import curvjax as cj
      >>> cj.Bits(3).allowed
      (2, 3, 4, 8)
    """

    target: ClassVar[str] = "bits"
    tuned: ClassVar[Tuned] = Tuned("kappa", (0.25, 0.5, 1.0, 2.0, 4.0))

    budget: float = 4.0
    """Mean bits, weighted by weights; scales and zeros are not counted."""
    _: KW_ONLY
    allowed: tuple[int, ...] = (2, 3, 4, 8)
    """Widths to choose from."""
    kappa: float = 1.0
    """Exponent of the quality."""
    energy: bool = False
    """Multiply scores by the mean square of the unit's weights: for `trace`."""
    frozen: tuple[str, ...] = ()
    """Units that keep the largest width, by name."""
    tie: Literal["none", "layer", "projection"] = "none"
    """Units of one layer, or of one kind of projection, receive the same."""
    floor: float = 0.0
    """Added to every quality score, in medians."""
    sweep: tuple[float, ...] = ()
    """Not of this program: a choice has no curve; must be empty."""

    def __post_init__(self) -> None:
        """Refuse an empty menu, and a mean below its least width."""
        if not self.allowed or min(self.allowed) < 1 or self.budget < min(self.allowed):
            msg = (
                f"need widths of at least 1 bit, and a mean of at least the least; got {self.allowed}, {self.budget:g}."
            )
            raise ValueError(msg)
        if not self.kappa >= 0:
            msg = f"kappa must be at least 0, got {self.kappa!r}."
            raise ValueError(msg)
        if self.sweep:
            msg = f"bits have no sweep; allocate for each of the means {self.sweep}."
            raise ValueError(msg)

    def pose(self, units: Sequence[UnitShape]) -> Posed:
        """The program over these units; see `Program.pose`."""
        size, widths = np.asarray([unit.weights for unit in units], np.float64), np.asarray(sorted(self.allowed))
        menu = Menu(widths, size, frozen_units(units, self.frozen), tied_units(units, self.tie))
        total = self.budget * float(size.sum())
        energy = np.asarray([unit.norm**2 / (2 * unit.parameters) if self.energy else 1.0 for unit in units])

        def choice(value: np.ndarray) -> tuple[Whole, Any]:
            found = menu.choice(value, budget=total)
            return Whole(widths[found.choice], found.unspent, found.gap, found.exact, "chosen"), found

        def harm(q: Any) -> np.ndarray:
            return (np.maximum(np.asarray(q, np.float64), 0.0) ** self.kappa * energy)[:, None] * 4.0**-widths

        return Posed(
            cost=size,
            maximum=np.full(size.shape, float(widths.max())),
            budget=Budget(size, total, np.full(size.shape, float(widths.max()))),
            requested=total,
            unit="bits",
            meaning="fall of the relaxed objective per further bit",
            solve=lambda q: _relaxed(*choice(harm(q)), total),
            whole=lambda q: choice(harm(q))[0],
            rounded=lambda bits: choice(size[:, None] * (widths - np.asarray(bits, np.float64)[:, None]) ** 2)[0],
            monotone=None,
            menu=menu,
        )


def _relaxed(whole: Whole, found: Any, total: float) -> Solution:
    """A choice's evidence in the form of the continuous programs'."""
    none = jnp.zeros(whole.amount.shape, jnp.int32)
    numbers = (found.price, found.spent, total, 0.0, np.inf, found.objective, found.gap, 0.0)
    return Solution(jnp.asarray(whole.amount), *map(jnp.asarray, numbers), none, jnp.int32(0))
