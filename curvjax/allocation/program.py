"""What a program is: a budget and its settings as one value, posed over the units of a model."""

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.menu import Menu, MenuChoice, allocate_bits, group_members
from curvjax.allocation.programs import TransferProgram
from curvjax.allocation.result import Amounts, Solution
from curvjax.layers import UnitShape, within_layer
from curvjax.registry import Registry


class Whole(NamedTuple):
    """Whole amounts `[K]`, on the host.

    unspent: budget left; status: why. gap: objective less that of the continuous optimum, None where they are not of
    it. exact: whether proved optimal.
    """

    amount: Int[np.ndarray, " K"]
    unspent: float
    gap: float | None = None
    exact: bool | None = None
    status: str | None = None


class Posed(NamedTuple):
    """A program over the units of one model. K of them, in layer order; q are quality scores `[K]`.

    cost: `[K]` of one more unit of amount, in units of the budget. maximum: `[K]` most of each. budget: what published
    rules share out, counted from nothing, in units of `scale`. requested: total. unit, meaning: of the total, and of
    the dual price, in words. solve: q -> continuous amounts, to be read as least + scale * amount. whole: q -> whole
    amounts. rounded: a rule's amounts -> whole ones of the same total. monotone: traceable, q -> amounts that move one
    way with a unit's own score and the other way with the others', so that bounds of scores bound amounts [M19]; None
    where none do. ties: `[K]` groups of units that receive the same, or None. at: the continuous program at another
    budget, traceable; None where there is none. paper: the program as Theorem 4 speaks of it [M18], or None. remark:
    what cancels [M13], [M17]. menu: what units choose from, for plans and searches, or None. beside: what the budget
    that was asked for holds beside all this, such as bytes of embeddings. positive: whether no q may be 0.
    """

    cost: Float[np.ndarray, " K"]
    maximum: Float[np.ndarray, " K"]
    budget: BudgetConstraint
    requested: float
    unit: str
    meaning: str
    solve: Callable[[Any], Solution]
    whole: Callable[[Any], Whole]
    rounded: Callable[[Any], Whole]
    monotone: Amounts | None
    ties: Int[np.ndarray, " K"] | None = None
    at: Callable[[Any, ArrayLike], Solution] | None = None
    paper: TransferProgram | None = None
    remark: str | None = None
    least: int = 0
    scale: float | Num[np.ndarray, " K"] = 1.0
    menu: Menu | None = None
    beside: float = 0.0
    positive: bool = False

    def spent(self, amount: Num[np.ndarray, " K"]) -> float:
        """What whole amounts take of the budget."""
        return float(self.cost @ amount) if self.menu is None else self.menu.spent(amount)


class Program(Protocol):
    """A frozen dataclass with a budget.

    target: what units receive, by which rules and surgeries take it. budget: mean or share, over all units. floor:
    added to every quality score, in medians. sweep: further budgets, for the curve of what more of it buys.

    Commands and records call it by its target, or by a `name: ClassVar[str]` where another program has that target. One
    with a `tuned: ClassVar[Tuned]` says which of its settings a comparison by outcome chooses by trial.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    target: ClassVar[str]

    @property
    def budget(self) -> float: ...

    @property
    def floor(self) -> float: ...

    @property
    def sweep(self) -> tuple[float, ...]: ...

    def pose(self, units: Sequence[UnitShape]) -> Posed:
        """The program over these units.

        Raises:
          ValueError: if the budget is out of reach, or a setting names what the units lack.
        """
        ...


PROGRAMS: Registry[type[Program]] = Registry("program")

Kind = TypeVar("Kind", bound=type[Program])


def program(kind: Kind) -> Kind:
    """Enter a program under its `program_name`, for commands, records and comparisons.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.allocation import PROGRAMS
      >>> PROGRAMS["rank"](8).budget
      8
    """
    PROGRAMS.enter(program_name(kind), kind, place=kind.__module__)
    return kind


def program_name(program: Program | type[Program]) -> str:
    """Its `name`, or its target where it has none."""
    return getattr(program, "name", program.target)


def frozen_units(units: Sequence[UnitShape], names: Sequence[str]) -> np.ndarray:
    """`[K]` which units stay at the least.

    Raises:
      ValueError: if a name is of no unit.
    """
    known = [unit.name for unit in units]
    unknown = sorted(set(names) - set(known))
    if unknown:
        msg = f"{len(unknown)} frozen units are not in the scores, e.g. {unknown[:3]}; units are {known[:3]}..."
        raise ValueError(msg)
    return np.isin(known, list(names))


def tied_units(units: Sequence[UnitShape], tie: str) -> np.ndarray | None:
    """`[K]` group numbers of units that receive the same, of one "layer" or one kind of "projection"; None for "none".

    Raises:
      ValueError: if units are no single projections and are to be tied by projection.
    """
    if tie == "none":
        return None
    if tie == "projection" and any(list(unit.projections) != [unit.name] for unit in units):
        msg = "tie by projection needs scores of single projections; score with --granularity module."
        raise ValueError(msg)
    keys = [unit.index if tie == "layer" else within_layer(unit.name) for unit in units]
    places: dict[str | int, int] = {}
    return np.asarray([places.setdefault(key, len(places)) for key in keys], np.int32)


def chosen(
    value: Float[np.ndarray, "K J"],
    menu: Num[np.ndarray, " J"],
    cost: Float[np.ndarray, " K"],
    *,
    budget: float,
    groups: np.ndarray | None,
) -> tuple[Whole, MenuChoice]:
    """One entry of a menu for each unit, of least total value within a budget.

    Args:
      value: of each entry for each unit; inf where it may not have it.
      menu: `[J]` amounts.
      cost: `[K]` of a unit of amount.
      budget: total.
      groups: `[K]` numbers of units that receive the same, or None.

    Returns:
      The whole amounts, and the choice itself, with a price.
    """
    found = allocate_bits(value, cost[:, None] * menu, budget=budget, ties=group_members(groups))
    return Whole(menu[found.choice], found.unspent, found.gap, found.exact, "chosen"), found
