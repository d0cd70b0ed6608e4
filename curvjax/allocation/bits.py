"""`Bits`: widths from a menu, by exact choice."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.inputs import with_rounding
from curvjax.allocation.menu import Menu
from curvjax.allocation.program import Posed, Whole, frozen_units, program, tied_units
from curvjax.allocation.result import Solution
from curvjax.allocation.tuned import Tuned
from curvjax.layers import UnitShape
from curvjax.storage import UNTOUCHED, WIDTHS, Format, stored_bytes


@program
@dataclass(frozen=True)
class Bits:
    """The bit width of each unit: its quality times 4^-b is its harm, so that a bit less costs four times as much.

        argmin  sum_k h_k 4^-b_k   s.t.  sum_k c_k(b_k) <= budget sum_k n_k,  b_k in allowed

    Rounding to b bits moves weights by noise of energy ~ |theta|^2 4^-b. h_k = q_k^kappa, or with `energy`
    q_k^kappa |theta_k|^2 / (2 p_k), which for the score `trace` is the expected half quadratic form, as in HAWQ-V2.
    c_k(b) = n_k b, or with `budget_of` stored or file all that codes of b bits take: with group 64 and 16-bit scales
    each weight a quarter of a bit more, and 1/8 for zeros.

    Example:
      >>> import curvjax as cj
      >>> cj.Bits(3).allowed, cj.Bits(4.5, budget_of="stored", stored_group=32).form
      ((2, 3, 4, 8), Format(group=32, symmetric=False, scales='float16'))
    """

    target: ClassVar[str] = "bits"
    tuned: ClassVar[Tuned] = Tuned("kappa", (0.25, 0.5, 1.0, 2.0, 4.0))

    budget: float = 4.0
    """Mean bits of a weight; bytes where `budget_of` is file."""
    _: KW_ONLY
    budget_of: Literal["weights", "stored", "file"] = "weights"
    """What is counted: bits of codes (weights); scales and zeros too (stored); bytes of the whole model (file)."""
    stored_group: int = 64
    """Of stored and file: inputs that share a scale, as the method that quantises has it; -1: all."""
    stored_symmetric: bool = False
    """Of stored and file: no zeros are stored."""
    stored_scales: Literal["float16", "float32"] = "float16"
    """Of stored and file: the type of the scales."""
    stored_whole: Literal[16, 32] = 32
    """Of stored and file: bits of a number that is no code, of width 16 and outside: 32 in checkpoints, 16 in MLX's,
    compressed-tensors' and most GGUF files."""
    beside: int | None = None
    """Of file: bytes of all that has no width; counted from the model if left out."""
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
        """Refuse an empty menu, a mean below its least width, and widths that cannot be stored."""
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

        other = sorted(set(self.allowed) - {*WIDTHS, UNTOUCHED})
        if self.budget_of != "weights" and (other or self.stored_scales not in ("float16", "float32")):
            msg = (
                f"stored are widths of {WIDTHS[0]} to {WIDTHS[-1]} bits, or {UNTOUCHED}, with float16 or float32 "
                f"scales; got {self.allowed} and {self.stored_scales!r}."
            )
            raise ValueError(msg)

    @property
    def form(self) -> Format:
        """Groups and grid by which stored bits are counted."""
        return Format(self.stored_group, self.stored_symmetric, self.stored_scales)

    def pose(self, units: Sequence[UnitShape]) -> Posed:
        """The program over these units; see `Program.pose`."""
        menu, beside = self._menu(units), self._beside()
        widths, size = menu.amounts, menu.size
        total = self.budget - beside if self.budget_of == "file" else self.budget * float(size.sum())
        least = 0.0 if menu.extra is None else float(menu.extra[:, 0].sum())
        if self.budget_of != "weights":
            self._require_reach(menu, total, beside)
        most = np.full(size.shape, float(widths.max()))
        energy = np.asarray([unit.norm**2 / (2 * unit.parameters) if self.energy else 1.0 for unit in units])

        def choice(value: np.ndarray) -> tuple[Whole, Any]:
            found = menu.choice(value, budget=total)
            return Whole(widths[found.choice], found.unspent, found.gap, found.exact, "chosen"), found

        def harm(q: Any) -> np.ndarray:
            return (np.maximum(np.asarray(q, np.float64), 0.0) ** self.kappa * energy)[:, None] * 4.0**-widths

        return Posed(
            cost=size,
            maximum=most,
            budget=BudgetConstraint(size, min(total - least, float(size @ most)), most),
            requested=total,
            unit={"weights": "bits", "stored": "bits with scales and zeros", "file": "bytes"}[self.budget_of],
            meaning="fall of the relaxed objective per further bit",
            solve=lambda q: _relaxed(*choice(harm(q)), total),
            whole=lambda q: choice(harm(q))[0],
            rounded=lambda bits: choice(size[:, None] * (widths - np.asarray(bits, np.float64)[:, None]) ** 2)[0],
            monotone=None,
            menu=menu,
            beside=beside,
        )

    def _menu(self, units: Sequence[UnitShape]) -> Menu:
        """What units choose from, at its cost in bits, or of a file in bytes."""
        size, widths = np.asarray([unit.weights for unit in units], np.float64), np.asarray(sorted(self.allowed))
        menu = Menu(widths, size, frozen_units(units, self.frozen), tied_units(units, self.tie))
        if self.budget_of == "weights":
            return menu
        stored = np.asarray([[self._stored(unit, width) for width in widths.tolist()] for unit in units], np.float64)
        falls = np.argwhere(np.diff(stored, axis=1) <= 0)
        if falls.size:
            k, j = falls[0].tolist()
            msg = (
                f"{units[k].name} takes {stored[k, j]:,.0f} bits at width {widths[j]} and {stored[k, j + 1]:,.0f} at "
                f"{widths[j + 1]}: allow only widths that take more than narrower ones, or larger groups."
            )
            raise ValueError(msg)
        scale = 1 / 8 if self.budget_of == "file" else 1.0
        return menu._replace(size=scale * size, extra=scale * (stored - size[:, None] * widths))

    def _stored(self, unit: UnitShape, width: int) -> int:
        """Bits of all that a unit's weights take."""
        group = self.stored_group
        apart = [name for name, (inputs, _) in unit.projections.items() if group > 0 and inputs % group]
        if group == 0 or group < -1 or apart:
            msg = f"a group must divide the inputs of {apart[:1] or [unit.name]}, or be -1 for all; got {group}."
            raise ValueError(msg)
        if width == UNTOUCHED:
            return self.stored_whole * unit.weights
        return 8 * sum(sum(stored_bytes(shape, width, self.form)) for shape in unit.projections.values())

    def _beside(self) -> int:
        """Bytes that are taken whatever the widths."""
        if self.budget_of == "file" and self.beside is None:
            msg = "bytes of a file need those of all that has no width: give `beside`, or allocate or descend by verb."
            raise ValueError(msg)
        return self.beside or 0 if self.budget_of == "file" else 0

    def _require_reach(self, menu: Menu, total: float, beside: int) -> None:
        least = float(np.where(menu.held, menu.cost[:, -1], menu.cost[:, 0]).sum())
        if least <= with_rounding(total):
            return
        msg = (
            f"a file of {self.budget:,.0f} bytes is out of reach: {beside:,} are taken whatever the widths, and the "
            f"least widths take {least:,.0f}, so that {beside + least:,.0f} are the least."
            if self.budget_of == "file"
            else f"{self.budget:g} bits a weight are out of reach: with scales and zeros the least widths take "
            f"{least / float(menu.size.sum()):g}."
        )
        raise ValueError(msg)


def _relaxed(whole: Whole, found: Any, total: float) -> Solution:
    """A choice's evidence in the form of the continuous programs'."""
    none = jnp.zeros(whole.amount.shape, jnp.int32)
    numbers = (found.price, found.spent, total, 0.0, np.inf, found.objective, found.gap, 0.0)
    return Solution(jnp.asarray(whole.amount), *map(jnp.asarray, numbers), none, jnp.int32(0))
